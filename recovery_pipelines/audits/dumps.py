"""Directories of what pg_dump wrote, each file or folder a whole database."""

import re
from datetime import UTC, datetime
from pathlib import Path

from recovery_pipelines.audits.databases import DatabaseReader
from recovery_pipelines.audits.reader import Backup, Unrestorable
from recovery_pipelines.audits.scratch import ScratchServer, owner_of
from recovery_pipelines.engines.base import explained, size_bytes
from recovery_pipelines.errors import EngineError
from recovery_pipelines.tools import find_tool, postgres_programs

_NAMES = re.compile(r"\.(dump|dmp|pgdump|backup|tar|sql(\.(gz|bz2|xz|zst))?)$")
_UNPACKERS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_COMPLETE = b"-- PostgreSQL database dump complete"
"""The last words of a plain dump; without them psql takes a torn one for a whole one."""
_TAIL_BYTES = 4096
_NAME = r'"(?:[^"]|"")+"|\w+'
_ROLES = re.compile(
    rf"^(?:ALTER [^;]* OWNER TO|GRANT [^;]* TO|REVOKE [^;]* FROM|ALTER DEFAULT [^;]* FOR ROLE"
    rf"|CREATE POLICY [^;]* TO) ((?:{_NAME})(?:, *(?:{_NAME}))*)",
    re.MULTILINE,
)
_EMPTY_CLUSTER_BYTES = 60_000_000


class Dumps(DatabaseReader):
    """Restored by pg_restore or psql into an empty cluster; a dump's roles are made up before."""

    program = "pg_restore"
    package = "postgresql-client"
    database = "audited"

    @property
    def server_user(self) -> str:
        return owner_of(Path("/"))

    @property
    def read_only(self) -> dict[str, Path]:
        return {}

    def backups(self) -> list[Backup]:
        with explained("listing the backups"):
            found = [
                Backup(path.name, path.name, _written_at(path))
                for path in Path(self.location).iterdir()
                if self._is_dump(path)
            ]
        return sorted(found, key=lambda backup: (backup.created_at, backup.name))

    def programs(self, backup: Backup) -> Path:
        return postgres_programs()

    def needed_bytes(self, backup: Backup) -> int:
        path = self._path(backup)
        size = size_bytes(path) if path.is_dir() else path.stat().st_size
        return _EMPTY_CLUSTER_BYTES + 2 * size

    def restore(self, backup: Backup, server: ScratchServer) -> None:
        programs, doing = self.programs(backup), f"restore of {backup.name}"
        initdb = (programs / "initdb", "-D", server.data, "-U", "postgres", "-A", "trust")
        made = server.run(*initdb, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
        self.require_success(made, "making an empty cluster", EngineError)
        self.require_success(server.start(programs), "starting an empty cluster", EngineError)
        with explained(f"copying {backup.name}"):
            dump = server.take("dump", self._path(backup))
        plain = self._is_plain(self._path(backup))
        if plain:
            dump = self._unpacked(backup, server, dump)
            schema = dump
        else:
            schema = server.work / "schema.sql"
            listed = server.run(programs / "pg_restore", "--schema-only", "-f", schema, dump)
            self.require_success(listed, doing, Unrestorable)
        self._make_roles(server, programs, server.outside(schema))
        self.require_success(
            server.client(programs / "createdb", self.database), doing, EngineError
        )
        into = ("-d", self.database)
        if plain:
            quietly = ("-X", "-q", "-o", "/dev/null", "-v", "ON_ERROR_STOP=1")
            done = server.client(programs / "psql", *into, *quietly, "-f", dump)
        else:
            done = server.client(programs / "pg_restore", *into, "--exit-on-error", dump)
        self.require_success(done, doing, Unrestorable)

    def _is_dump(self, path: Path) -> bool:
        if path.name.startswith(".") or not self._wanted(path.name):
            return False
        return path.is_dir() or self.repository.match != "*" or bool(_NAMES.search(path.name))

    def _is_plain(self, path: Path) -> bool:
        return not path.is_dir() and (path.suffix in _UNPACKERS or path.suffix == ".sql")

    def _path(self, backup: Backup) -> Path:
        return Path(self.location) / backup.backup_id

    def _unpacked(self, backup: Backup, server: ScratchServer, dump: Path) -> Path:
        """The statements of a plain dump, which must be complete."""
        program = _UNPACKERS.get(self._path(backup).suffix)
        if program:
            words = 'exec "$0" -dc < "$1" > "$2"'
            tool, made = find_tool(program), server.work / "dump.sql"
            done = server.run("sh", "-c", words, tool, dump, made)
            self.require_success(done, f"unpacking {backup.name}", Unrestorable)
            dump = made
        tail = server.run("tail", "-c", str(_TAIL_BYTES), dump).stdout
        if _COMPLETE not in tail:
            raise Unrestorable(f"{backup.name} is torn: pg_dump's last line is missing")
        return dump

    def _make_roles(self, server: ScratchServer, programs: Path, schema: Path) -> None:
        roles: set[str] = set()
        with schema.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                for names in _ROLES.findall(line):
                    roles |= set(re.findall(_NAME, names))
        wanted = sorted(roles - {"PUBLIC", "postgres", "CURRENT_USER", "SESSION_USER"})
        for role in wanted:
            made = server.client(programs / "psql", "-X", "-q", "-c", f"create role {role}")
            self.require_success(made, f"making the role {role}", EngineError)


def _written_at(path: Path) -> datetime:
    """When it was finished: of a folder, its newest file."""
    newest = [path, *path.iterdir()] if path.is_dir() else [path]
    return datetime.fromtimestamp(max(each.stat().st_mtime for each in newest), UTC)
