"""What the backups of a running PostgreSQL cluster have in common: an archive of WAL beside a copy.

Each backup ends with a restore point of its own, and a restore replays WAL up to exactly there. To
the end of whatever WAL there is would not do: PostgreSQL takes a lost segment for that end, starts,
and lacks rows without a word.
"""

import secrets
import time
from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import xxhash
from psycopg import sql

from recovery_pipelines.databases.postgres import (
    SEGMENT_BYTES,
    Site,
    beside_of,
    connect,
    serve,
)
from recovery_pipelines.databases.postgres_contents import make_restore_point
from recovery_pipelines.engines.base import (
    Snapshot,
    ToolEngine,
    explained,
    file_digest,
    require_empty,
    require_recorded,
    require_written,
    size_bytes,
)
from recovery_pipelines.errors import DatabaseError, EngineError
from recovery_pipelines.tools import Finished, run_tool

WAL = "wal"
"""The kind of a backup that adds nothing but WAL to the one before."""
_ARCHIVED_WITHIN_SECONDS = 30.0
_LOOK_SECONDS = 0.02
_REACHED = (
    "select pg_catalog.pg_read_file('pg_wal/' || pg_catalog.left(pg_catalog.pg_walfile_name("
    "pg_catalog.pg_current_wal_insert_lsn()), 8) || '.history')"
)
"""How the timeline on which the server is now came about."""


@dataclass(frozen=True)
class Base:
    """A copy of the cluster's files in the repository."""

    label: str
    first_segment: str
    last_segment: str
    """From the first to here, WAL must be replayed before the copy is consistent."""


class PostgresEngine(ToolEngine):
    """Backups of a running server, which archives its WAL into the repository.

    A snapshot's id is `<label of the copy>+<last segment of WAL>`, its position `<restore point>
    <LSN>`. Repository, work and clusters lie beside one another; the first two were there before
    the server that is backed up was started.
    """

    @property
    def _site(self) -> Site:
        return Site(self.repository.parent)

    # --- what the tools do differently --------------------------------------------------

    @abstractmethod
    def version(self) -> str:
        """As the tool reports it."""

    @abstractmethod
    def _archive_command(self, source: Path) -> str:
        """What the server does with each segment of WAL."""

    @abstractmethod
    def _prepare(self, source: Path) -> None:
        """Make the repository ready for the cluster, which archives already."""

    @abstractmethod
    def _back_up(self, source: Path, parent: Snapshot | None) -> tuple[str, str]:
        """Copy what the tool copies; returns the label to restore from, and the backup's kind."""

    @abstractmethod
    def _bases(self) -> list[Base]:
        """What the repository itself lists, oldest first."""

    @abstractmethod
    def _archived(self) -> dict[str, Path]:
        """By name of the segment: the file that holds it."""

    @abstractmethod
    def _base_digest(self, label: str) -> str:
        """Of a copy."""

    @abstractmethod
    def _verify(self, labels: Collection[str]) -> None:
        """The tool's own thorough check."""

    @abstractmethod
    def _lay_out(
        self, label: str, staging: Path, restore_point: str, timeline: int
    ) -> dict[str, str]:
        """Put the files of a copy into `staging`, from which a server with the returned settings
        replays WAL to the restore point, or refuses to start."""

    # --- the protocol -------------------------------------------------------------------

    def init(self) -> None:
        self.version()
        self._site.give(self.repository, self.work)

    def backup(self, source: Path, parent: Snapshot | None) -> Snapshot:
        """A backup of the server that runs in `source`."""
        created_at, before = datetime.now(UTC), size_bytes(self.repository)
        name = f"recovery-{secrets.token_hex(4)}"
        with _told(f"backup of {source}"), connect(source) as connection:
            if parent is None:
                _archive_with(connection, self._archive_command(source))
                self._prepare(source)
                self._archive_up_to(connection, f"{name}-begin")
            label, kind = self._back_up(source, parent)
            lsn, segment = self._archive_up_to(connection, name)
        return Snapshot(
            snapshot_id=f"{label}+{segment}",
            kind=kind,
            parent_id=parent.snapshot_id if parent else None,
            created_at=created_at,
            digest=self._digest(label, segment, self._base_digest(label)),
            added_bytes=size_bytes(self.repository) - before,
            position=f"{name} {lsn}",
        )

    def snapshot_ids(self) -> list[str]:
        """Each copy with each segment of WAL up to which none is missing."""
        archived = self._archived()
        found = []
        for base in self._bases():
            for segment in sorted(archived):
                if segment[:8] != base.first_segment[:8] or segment < base.last_segment:
                    continue
                if all(each in archived for each in _needed(base, segment)):
                    found.append(f"{base.label}+{segment}")
        return found

    def check(self) -> None:
        """There is a copy, with all the WAL that it needs."""
        if not self.snapshot_ids():
            raise EngineError(f"there is no whole backup in {self.repository}: nothing to check")

    def full_check(self, snapshots: Sequence[Snapshot]) -> None:
        """The tool's own, no segment of WAL is missing, and all is what was written."""
        require_recorded(snapshots, self.snapshot_ids())
        labels = {self._label_of(snapshot) for snapshot in snapshots}
        self._verify(labels)
        copies = {label: self._base_digest(label) for label in labels}
        for snapshot in snapshots:
            label, segment = _parts(snapshot)
            require_written(snapshot, self._digest(label, segment, copies[label]))

    def restore(
        self, snapshot: Snapshot, staging: Path, paths: Collection[bytes] | None = None
    ) -> None:
        """The cluster as it was at the snapshot's restore point, shut down cleanly."""
        require_empty(staging)
        require_recorded([snapshot], self.snapshot_ids())
        label, segment = _parts(snapshot)
        name, lsn = snapshot.position.split()
        beside_of(staging).mkdir(0o700, exist_ok=True)
        self._site.give(staging, beside_of(staging))
        settings = self._lay_out(label, staging, name, int(segment[:8], 16))
        settings |= {"archive_mode": "off", "hot_standby": "off"}
        with (
            _told(f"restore of {snapshot.snapshot_id}"),
            serve(staging, self._environment, settings) as connection,
        ):
            row = connection.execute(_REACHED).fetchone()
            _, reached, reason = str(row and row[0]).strip().splitlines()[-1].split("\t")
            if (reached, reason) != (lsn, f'at restore point "{name}"'):
                raise EngineError(
                    f"restore of {snapshot.snapshot_id} ended {reason} ({reached}), not at "
                    f"restore point {name} ({lsn})"
                )

    # --- helpers ------------------------------------------------------------------------

    def _there(
        self, argv: Sequence[str | Path], folder: Path, into: Path | None = None
    ) -> Finished:
        """Run a program in `folder` as the cluster's own user."""
        limit = self._timeout_seconds
        return run_tool(
            self._site.command(argv, folder),
            env=self._environment | {"TMPDIR": str(self._site.seen(self.work))},
            timeout_seconds=limit() if callable(limit) else limit,
            writable=[into, self.work, self.repository] if into else None,
        )

    def _label_of(self, snapshot: Snapshot) -> str:
        return _parts(snapshot)[0]

    def _digest(self, label: str, segment: str, copy_digest: str) -> str:
        """Of a copy, whose own digest is given, and all the WAL from it to this segment."""
        whole = xxhash.xxh3_128(copy_digest.encode())
        archived = self._archived()
        (base,) = (base for base in self._bases() if base.label == label)
        needed = _needed(base, segment)
        missing = [name for name in needed if name not in archived]
        if missing:
            raise EngineError(f"{len(missing)} WAL segments are not archived: {missing[0]}, ...")
        for name in needed:
            whole.update(f"{name} {file_digest(archived[name])}\n".encode())
        return whole.hexdigest()

    def _archive_up_to(
        self, connection: psycopg.Connection[Any], restore_point: str
    ) -> tuple[str, str]:
        """Make a restore point and wait until the repository holds all WAL up to it; returns its
        LSN and segment."""
        lsn, segment = make_restore_point(connection, restore_point)
        connection.execute("select pg_catalog.pg_switch_wal()")
        self._await_archived(connection, segment)
        return lsn, segment

    def _await_archived(self, connection: psycopg.Connection[Any], segment: str) -> None:
        deadline = time.monotonic() + _ARCHIVED_WITHIN_SECONDS
        while True:
            row = connection.execute(
                "select last_archived_wal, last_failed_wal from pg_catalog.pg_stat_archiver"
            ).fetchone()
            kept, failed = row or (None, None)
            with explained("looking for archived WAL"):
                if segment in self._archived():
                    return
            if kept and kept[:24] >= segment:
                raise EngineError(
                    f"archive_command reported success for WAL segment {segment}, and the "
                    "repository does not hold it whole"
                )
            if time.monotonic() > deadline:
                raise EngineError(
                    f"WAL segment {segment} was not archived within "
                    f"{_ARCHIVED_WITHIN_SECONDS:.0f} s (last failure: {failed or 'none'})"
                )
            time.sleep(_LOOK_SECONDS)


def segment_of(timeline: int, lsn: str, segment_bytes: int) -> str:
    """The name of the segment of WAL that holds an LSN such as `0/2000028`."""
    high, low = (int(part, 16) for part in lsn.split("/"))
    return f"{timeline:08X}{high:08X}{low // segment_bytes:08X}"


def segments(first: str, last: str, segment_bytes: int) -> list[str]:
    """The names of all segments of WAL from `first` to `last`, on one timeline."""
    if first[:8] != last[:8]:
        raise EngineError(f"WAL segments {first} and {last} are on different timelines")
    per_log = (1 << 32) // segment_bytes
    begin, end = (int(name[8:16], 16) * per_log + int(name[16:], 16) for name in (first, last))
    return [
        f"{first[:8]}{number // per_log:08X}{number % per_log:08X}"
        for number in range(begin, end + 1)
    ]


def _needed(base: Base, segment: str) -> list[str]:
    return segments(base.first_segment, segment, SEGMENT_BYTES)


def _parts(snapshot: Snapshot) -> tuple[str, str]:
    label, _, segment = snapshot.snapshot_id.partition("+")
    return label, segment


def _archive_with(connection: psycopg.Connection[Any], command: str) -> None:
    """Set the server's archive_command, and see that it is in force."""
    wanted = sql.Literal(command)
    connection.execute(sql.SQL("alter system set archive_command = {}").format(wanted))
    connection.execute("select pg_catalog.pg_reload_conf()")
    deadline = time.monotonic() + _ARCHIVED_WITHIN_SECONDS
    while connection.execute("show archive_command").fetchone() != (command,):
        if time.monotonic() > deadline:
            raise EngineError("the server does not take its archive_command")
        time.sleep(_LOOK_SECONDS)


@contextmanager
def _told(doing: str) -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        raise EngineError(f"{doing}: {error}") from error
