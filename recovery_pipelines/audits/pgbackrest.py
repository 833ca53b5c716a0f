"""Repositories of pgBackRest: clusters of PostgreSQL."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recovery_pipelines.audits.databases import DatabaseReader
from recovery_pipelines.audits.reader import Backup, Unrestorable
from recovery_pipelines.audits.scratch import MEMORY, ScratchServer, owner_of
from recovery_pipelines.errors import EngineError
from recovery_pipelines.services.service import ROOM, VOLUME
from recovery_pipelines.tools import find_tool, postgres_programs

_REPOSITORY = "repository"


class PgBackRestRepository(DatabaseReader):
    """One stanza of a folder. Backups are restored to a named point, or to their own end: never
    to the end of whatever WAL there is, since a lost segment would pass for it."""

    program = "pgbackrest"

    @property
    def server_user(self) -> str:
        return owner_of(Path(self.location))

    @property
    def read_only(self) -> dict[str, Path]:
        return {_REPOSITORY: Path(self.location)}

    def version(self) -> str:
        return self._run("asking for the version", "version").stdout.decode().strip()

    def backups(self) -> list[Backup]:
        found = [
            Backup(
                each["label"],
                each["label"],
                datetime.fromtimestamp(each["timestamp"]["start"], UTC),
            )
            for each in self._stanza()["backup"]
            if self._wanted(each["label"])
        ]
        return sorted(found, key=lambda backup: backup.created_at)

    def programs(self, backup: Backup) -> Path:
        versions = {each["id"]: each["version"] for each in self._stanza()["db"]}
        return postgres_programs(versions[self._told(backup)["database"]["id"]])

    def needed_bytes(self, backup: Backup) -> int:
        size: int = self._told(backup)["info"]["size"]
        return size

    def restore(self, backup: Backup, server: ScratchServer) -> None:
        told = self._told(backup)
        if told.get("error"):
            raise Unrestorable(
                f"{backup.name}: pgbackrest recorded pages with wrong checksums when it was made"
            )
        point = self.repository.restore_point
        target = [f"--type=name --target={point}"] if point else ["--type=immediate"]
        config = server.write("pgbackrest.conf", self._config(ROOM / _REPOSITORY, MEMORY))
        done = server.run(
            *(find_tool(self.program), f"--config={config}", f"--stanza={self._stanza()['name']}"),
            *(f"--pg1-path={server.data}", f"--tablespace-map-all={VOLUME}/tablespaces"),
            *(f"--set={backup.backup_id}", *target[0].split(" ", 1), "--target-action=promote"),
            "restore",
        )
        self.require_success(done, f"restore of {backup.name}", Unrestorable)
        done = server.start(self.programs(backup))
        self.require_success(done, f"recovery of {backup.name}", Unrestorable)

    def _stanza(self) -> dict[str, Any]:
        config = self._work / "pgbackrest.conf"
        config.touch(mode=0o600)
        config.write_text(self._config(Path(self.location), self._work))
        command = (f"--config={config}", "--output=json", "info")
        said = self._run("listing the backups", *command).stdout
        try:
            told = json.loads(said)
        except ValueError:  # with a wrong password it quotes what it decrypted, and exits with 0
            raise EngineError(
                f"{self.location}: pgbackrest info cannot be understood: is the password wrong?"
            ) from None
        wanted = self.repository.stanza
        found = [each for each in told if wanted in (None, each["name"])]
        if len(found) != 1:
            names = ", ".join(each["name"] for each in told) or "none"
            raise EngineError(
                f"{self.location} holds these stanzas: {names}; name one as `stanza` of the "
                "repository in the plan"
            )
        status = found[0]["status"]
        if status["code"] not in (0, 2):  # 2: no valid backup yet
            raise EngineError(f"{self.location}, stanza {found[0]['name']}: {status['message']}")
        stanza: dict[str, Any] = found[0]
        return stanza

    def _told(self, backup: Backup) -> dict[str, Any]:
        for each in self._stanza()["backup"]:
            if each["label"] == backup.backup_id:
                told: dict[str, Any] = each
                return told
        raise EngineError(f"{backup.name} is not in {self.location} any more")

    def _config(self, repository: Path, work: Path) -> str:
        secret = ""
        if self._secret:
            secret = f"repo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass={self._secret.decode()}\n"
        return (
            f"[global]\nrepo1-path={repository}\nlock-path={work}\nspool-path={work}\n"
            f"log-level-console=off\nlog-level-file=off\nlog-level-stderr=warn\n{secret}"
        )
