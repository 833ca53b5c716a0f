"""Redis: copies of a running server's dump (RDB), or of its log of writes (AOF).

Each backup is a folder with the files that a server starts from, and its users.
"""

import secrets
import shutil
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from recovery_pipelines.databases.redis import DUMP, LOG_FOLDER, USERS, await_idle, connect
from recovery_pipelines.engines.base import (
    Snapshot,
    ToolEngine,
    explained,
    folder_digest,
    require_empty,
    require_recorded,
    require_written,
    size_bytes,
)
from recovery_pipelines.errors import DatabaseError, EngineError


class RedisDumpEngine(ToolEngine):
    """BGSAVE, then a copy of dump.rdb."""

    name: ClassVar[str] = "redis_rdb"
    program: ClassVar[str] = "redis-check-rdb"
    package: ClassVar[str | None] = "redis-server"
    exit_codes: ClassVar[Mapping[int, str]] = {1: "the file is damaged"}

    def version(self) -> str:
        """As `redis-server --version` prints it."""
        output = self._run("asking for the version", "--version", program="redis-server").stdout
        return " ".join(output.decode().split()[:3])

    def init(self) -> None:
        """An empty directory is an empty repository; the program must be there."""
        self.version()

    def backup(self, source: Path, parent: Snapshot | None) -> Snapshot:
        """A copy of the files of the server that runs in `source`; `parent` saves nothing."""
        created_at = datetime.now(UTC)
        snapshot_id = f"{created_at:%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}"
        copy = self.repository / snapshot_id
        try:
            with explained(f"backup of {source}"):
                copy.mkdir()
                self._copy(source, copy)
                shutil.copy2(source / USERS, copy / USERS)
                digest = folder_digest(copy)
        except BaseException as error:
            shutil.rmtree(copy, ignore_errors=True)
            if isinstance(error, DatabaseError):
                raise EngineError(f"backup of {source}: {error}") from error
            raise
        return Snapshot(
            snapshot_id=snapshot_id,
            kind="full",
            parent_id=None,
            created_at=created_at,
            digest=digest,
            added_bytes=size_bytes(copy),
        )

    def snapshot_ids(self) -> list[str]:
        """By the names of the folders."""
        return sorted(path.name for path in self.repository.iterdir() if path.is_dir())

    def check(self) -> None:
        """Redis's own check of each copy."""
        if not self.snapshot_ids():
            raise EngineError(f"there is no backup in {self.repository}: nothing to check")
        for name in self.snapshot_ids():
            self._check(self.repository / name)

    def full_check(self, snapshots: Sequence[Snapshot]) -> None:
        """Redis's own check of each copy, and that it is what was written."""
        require_recorded(snapshots, self.snapshot_ids())
        for snapshot in snapshots:
            copy = self.repository / snapshot.snapshot_id
            self._check(copy)
            with explained(f"check of {snapshot.snapshot_id}"):
                found = folder_digest(copy)
            require_written(snapshot, found)

    def restore(
        self, snapshot: Snapshot, staging: Path, paths: Collection[bytes] | None = None
    ) -> None:
        """The files, where a server starts from them."""
        require_empty(staging)
        require_recorded([snapshot], self.snapshot_ids())
        with explained(f"restore of {snapshot.snapshot_id}"):
            shutil.copytree(self.repository / snapshot.snapshot_id, staging, dirs_exist_ok=True)

    def _copy(self, source: Path, copy: Path) -> None:
        with connect(source) as client:
            await_idle(client)
            client.bgsave()
            await_idle(client)
        shutil.copy2(source / DUMP, copy / DUMP)

    def _check(self, copy: Path) -> None:
        self._run(f"check of {copy.name}", copy / DUMP)


class RedisLogEngine(RedisDumpEngine):
    """A copy of appendonlydir while the server does not rewrite it."""

    name: ClassVar[str] = "redis_aof"
    program: ClassVar[str] = "redis-check-aof"

    def _copy(self, source: Path, copy: Path) -> None:
        key = "auto-aof-rewrite-percentage"
        with connect(source) as client:
            before = client.config_get(key)[key]
            client.config_set(key, "0")
            try:
                await_idle(client)
                shutil.copytree(source / LOG_FOLDER, copy / LOG_FOLDER)
            finally:
                client.config_set(key, before)

    def _check(self, copy: Path) -> None:
        manifests = sorted((copy / LOG_FOLDER).glob("*.manifest"))
        if len(manifests) != 1:
            raise EngineError(f"{copy.name} holds {len(manifests)} manifests of a log, not one")
        self._run(f"check of {copy.name}", manifests[0])
