"""SQLite's own backup interface: a consistent copy of a database that is in use.

A copy of the file alone lacks what a journal beside it still holds; this does not.
"""

import secrets
import shutil
import sqlite3
from collections.abc import Collection, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from recovery_pipelines.databases.sqlite import FILE_NAME, connect
from recovery_pipelines.engines.base import (
    Snapshot,
    explained,
    file_digest,
    require_empty,
    require_recorded,
    require_written,
)
from recovery_pipelines.errors import DatabaseError, EngineError

_SUFFIX = ".sqlite"


class SqliteEngine:
    """A whole copy for each backup; a full check is SQLite's, and the recorded digest."""

    name: ClassVar[str] = "sqlite"

    def __init__(self, repository: Path, work: Path, **_: object) -> None:
        self.repository = repository.absolute()

    def version(self) -> str:
        """Of the library."""
        return f"SQLite {sqlite3.sqlite_version}"

    def init(self) -> None:
        """An empty directory is an empty repository."""

    def backup(self, source: Path, parent: Snapshot | None) -> Snapshot:
        """A copy of the database in `source`; `parent` saves nothing."""
        created_at = datetime.now(UTC)
        snapshot_id = f"{created_at:%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}{_SUFFIX}"
        copy = self.repository / snapshot_id
        live = source / FILE_NAME
        with explained(f"backup of {live}"):
            try:
                with (
                    closing(connect(live, mode="ro")) as origin,
                    closing(sqlite3.connect(copy)) as sink,
                ):
                    origin.backup(sink)
                    sink.execute("pragma journal_mode = delete")
            except (sqlite3.Error, DatabaseError) as error:
                copy.unlink(missing_ok=True)
                raise EngineError(f"backup of {live}: {error}") from error
            _same_owner(live, copy)
            return Snapshot(
                snapshot_id=snapshot_id,
                kind="full",
                parent_id=None,
                created_at=created_at,
                digest=file_digest(copy),
                added_bytes=copy.stat().st_size,
            )

    def snapshot_ids(self) -> list[str]:
        """By the names of the copies."""
        return sorted(path.name for path in self.repository.glob(f"*{_SUFFIX}"))

    def check(self) -> None:
        """`quick_check` of each copy."""
        if not self.snapshot_ids():
            raise EngineError(f"there is no backup in {self.repository}: nothing to check")
        for name in self.snapshot_ids():
            self._ask(name, "quick_check")

    def full_check(self, snapshots: Sequence[Snapshot]) -> None:
        """`integrity_check` of each copy, and that it is what was written."""
        require_recorded(snapshots, self.snapshot_ids())
        for snapshot in snapshots:
            self._ask(snapshot.snapshot_id, "integrity_check")
            with explained(f"check of {snapshot.snapshot_id}"):
                found = file_digest(self.repository / snapshot.snapshot_id)
            require_written(snapshot, found)

    def restore(
        self, snapshot: Snapshot, staging: Path, paths: Collection[bytes] | None = None
    ) -> None:
        """The copy, as the database's file."""
        require_empty(staging)
        require_recorded([snapshot], self.snapshot_ids())
        with explained(f"restore of {snapshot.snapshot_id}"):
            copy = self.repository / snapshot.snapshot_id
            shutil.copyfile(copy, staging / FILE_NAME)
            _same_owner(copy, staging / FILE_NAME)

    def _ask(self, name: str, check: str) -> None:
        try:
            file = self.repository / name
            with closing(connect(file, mode="ro", more="&immutable=1")) as copy:
                said = [row[0] for row in copy.execute(f"pragma {check}(3)")]
        except (sqlite3.Error, DatabaseError) as error:
            said = [str(error)]
        if said != ["ok"]:
            raise EngineError(f"{check} of {name}: {'; '.join(map(str, said))}")


def _same_owner(original: Path, copy: Path) -> None:
    found = original.stat()
    if (found.st_uid, found.st_gid) != (copy.stat().st_uid, copy.stat().st_gid):
        shutil.chown(copy, found.st_uid, found.st_gid)
    copy.chmod(found.st_mode & 0o777)  # a set-id bit would be no backup's
