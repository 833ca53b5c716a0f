"""pgBackRest: physical backups of one running PostgreSQL cluster, and its archive of WAL.

It is no tree engine: it backs up a live server and restores to a *named* restore point. Without a
name PostgreSQL takes the end of whatever WAL it finds for the end of the data, so a lost segment
would pass for a success.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from recovery_pipelines.engines.base import Snapshot, understood
from recovery_pipelines.errors import EngineError
from recovery_pipelines.tools import Finished, find_tool

Kind = Literal["full", "diff", "incr"]
_KINDS: dict[Kind, str] = {"full": "full", "diff": "differential", "incr": "incremental"}
_SEGMENT = re.compile(r"^([0-9A-F]{24})-([0-9a-f]{40})(\.\w+)?$")
_SEGMENTS_PER_LOG = 256
"""Of 16 MB each: what `initdb` makes unless it is told otherwise."""


@dataclass(frozen=True)
class Cluster:
    """The PostgreSQL cluster, as the program sees it."""

    stanza: str
    data: Path
    port: int


@dataclass(frozen=True)
class Listed:
    """A backup, as `pgbackrest info` lists it."""

    label: str
    kind: str
    prior: str | None
    stopped_at: datetime
    added_bytes: int
    first_segment: str
    has_bad_pages: bool


class PgBackRest:
    """One stanza in one repository. Anything but an unambiguous success is an EngineError."""

    name = "pgbackrest"

    def __init__(
        self,
        home: Path,
        cluster: Cluster,
        run: Callable[[Sequence[str]], Finished],
        *,
        seen_as: Path,
    ) -> None:
        """`home` holds repository, configuration and locks; the program sees it as `seen_as`.

        `run` runs a program to its end where the cluster is, as the cluster's own user.
        """
        self._cluster = cluster
        self._run_there = run
        self._program = find_tool("pgbackrest")
        self._conf = seen_as / "pgbackrest.conf"
        self.repository = home / "repository"
        for folder in ("repository", "lock", "spool"):
            (home / folder).mkdir(exist_ok=True)
        (home / "pgbackrest.conf").write_text(
            "[global]\n"
            f"repo1-path={seen_as}/repository\n"
            f"lock-path={seen_as}/lock\n"
            f"spool-path={seen_as}/spool\n"
            "repo1-retention-full=9999999\n"
            "repo1-bundle=y\n"  # else each small file is a file of its own, and synced
            "compress-type=lz4\n"
            "log-level-console=off\n"
            "log-level-file=off\n"
            "start-fast=y\n"
            "archive-timeout=30\n"
            f"[{cluster.stanza}]\n"
            f"pg1-path={cluster.data}\n"
            f"pg1-port={cluster.port}\n"
            "pg1-user=postgres\n"
        )

    @property
    def settings(self) -> dict[str, str]:
        """What the server must be started with."""
        push = f"{self._program} --config={self._conf} --stanza={self._cluster.stanza} archive-push"
        return {"archive_mode": "on", "archive_command": f'{push} "%p"'}

    def version(self) -> str:
        """As `pgbackrest version` prints it."""
        return self._run("version").stdout.decode().strip()

    def create_stanza(self) -> None:
        """Make an empty repository for the running cluster."""
        self._run("stanza-create")

    def backup(self, kind: Kind, parent: Snapshot | None = None) -> Snapshot:
        """Back up the running cluster; differential and incremental ones need what they build on.

        EngineError too if the tool silently made another kind, or found damaged pages.
        """
        before = set(self.labels())
        self._run("backup", f"--type={kind}")
        made = [each for each in self._backups() if each.label not in before]
        if len(made) != 1:
            raise EngineError(f"pgbackrest backup made {len(made)} backups, not one")
        found = made[0]
        if found.kind != kind:
            raise EngineError(
                f"pgbackrest was asked for a backup of type {kind} and made {found.kind}"
            )
        if found.has_bad_pages:
            raise EngineError(f"backup {found.label} holds pages with wrong checksums")
        if parent and found.prior is None:
            raise EngineError(f"backup {found.label} does not build on {parent.snapshot_id}")
        return Snapshot(
            snapshot_id=found.label,
            kind=_KINDS[kind],
            parent_id=found.prior,
            created_at=found.stopped_at,
            digest=self._digest(found.label),
            added_bytes=found.added_bytes,
        )

    def labels(self) -> list[str]:
        """The labels that the repository itself lists, oldest first."""
        return [each.label for each in self._backups()]

    def full_check(self, snapshots: Sequence[Snapshot], last_segment: str) -> str:
        """Every recorded backup is listed and unchanged, `pgbackrest verify` finds nothing (its
        exit code says nothing), and no segment of WAL is missing from the first backup to
        `last_segment`. Returns what was looked at."""
        if not snapshots:
            raise EngineError("no backup is recorded: there is nothing to check")
        listed = {each.label: each for each in self._backups()}
        for snapshot in snapshots:
            if snapshot.snapshot_id not in listed:
                raise EngineError(
                    f"recorded backup {snapshot.snapshot_id} is not in the repository"
                )
            if self._digest(snapshot.snapshot_id) != snapshot.digest:
                raise EngineError(f"backup {snapshot.snapshot_id} is not the one that was recorded")
        said = self._run("verify", "--output=text", "--verbose").stdout.decode()
        if not re.search(r"^stanza: \S+\nstatus: ok$", said, re.MULTILINE):
            raise EngineError(f"pgbackrest verify: {' '.join(said.split())[:1000] or 'no answer'}")
        first = listed[snapshots[0].snapshot_id].first_segment
        needed = segments(first, last_segment)
        archived = self._archived()
        missing = [name for name in needed if name not in archived]
        if missing:
            raise EngineError(
                f"{len(missing)} of {len(needed)} WAL segments are not archived: "
                + ", ".join(missing[:5])
            )
        return f"{len(snapshots)} backups, {len(needed)} WAL segments without a gap"

    def is_archived(self, segment: str) -> bool:
        """Whether the repository holds this segment of WAL."""
        return segment in self._archived()

    def restore(self, snapshot: Snapshot, restore_point: str) -> None:
        """Restore a recorded backup into the cluster's own, empty directory, such that the server
        replays WAL to `restore_point` when it starts, and does not start if it cannot."""
        self._run(
            "restore",
            f"--set={snapshot.snapshot_id}",
            "--type=name",
            f"--target={restore_point}",
            "--target-action=promote",
        )

    def _run(self, command: str, *options: str) -> Finished:
        stanza = [] if command == "version" else [f"--stanza={self._cluster.stanza}"]
        config = [] if command == "version" else [f"--config={self._conf}"]
        done = self._run_there(
            ["env", "PGHOST=127.0.0.1", self._program, *config, *stanza, *options, command]
        )
        if done.returncode:
            raise EngineError(
                f"pgbackrest {command}: exit code {done.returncode}: {done.complaint}"
            )
        return done

    def _backups(self) -> list[Listed]:
        return read_info(self._run("info", "--output=json").stdout)

    def _digest(self, label: str) -> str:
        """Of the backup's own manifest, which holds a checksum of each of its files."""
        manifest = self.repository / "backup" / self._cluster.stanza / label / "backup.manifest"
        try:
            return hashlib.sha256(manifest.read_bytes()).hexdigest()[:32]
        except OSError as error:
            raise EngineError(f"backup {label}: {error}") from error

    def _archived(self) -> set[str]:
        """Names of the archived segments: their files are called `<segment>-<sha1>`."""
        folder = self.repository / "archive" / self._cluster.stanza
        names = (_SEGMENT.match(path.name) for path in folder.rglob("*-*"))
        return {match[1] for match in names if match}


def read_info(said: bytes) -> list[Listed]:
    """The backups of the one stanza that `pgbackrest info` tells about, oldest first."""
    with understood("pgbackrest info"):
        (stanza,) = json.loads(said)
        if stanza["status"]["code"] not in (0, 2):  # 2: no valid backup yet
            raise EngineError(f"pgbackrest info: {stanza['status']}")
        return [
            Listed(
                label=str(each["label"]),
                kind=str(each["type"]),
                prior=each["prior"],
                stopped_at=datetime.fromtimestamp(each["timestamp"]["stop"], UTC),
                added_bytes=int(each["info"]["repository"]["delta"]),
                first_segment=str(each["archive"]["start"]),
                has_bad_pages=bool(each.get("error")),
            )
            for each in stanza["backup"]
        ]


def segments(first: str, last: str) -> list[str]:
    """The names of all segments of WAL from `first` to `last`, on one timeline."""
    if first[:8] != last[:8]:
        raise EngineError(f"WAL segments {first} and {last} are on different timelines")
    begin, end = (
        int(name[8:16], 16) * _SEGMENTS_PER_LOG + int(name[16:], 16) for name in (first, last)
    )
    return [
        f"{first[:8]}{number // _SEGMENTS_PER_LOG:08X}{number % _SEGMENTS_PER_LOG:08X}"
        for number in range(begin, end + 1)
    ]
