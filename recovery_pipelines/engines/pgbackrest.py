"""pgBackRest: physical backups of one running PostgreSQL cluster, and its archive of WAL.

It restores to a *named* restore point. Without a name PostgreSQL takes the end of whatever WAL it
finds for the end of the data, so a lost segment would pass for a success.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal

from recovery_pipelines.databases.postgres import HERE, PORT, SEGMENT_BYTES, beside_of
from recovery_pipelines.engines.base import Snapshot, understood
from recovery_pipelines.engines.postgres import WAL, Base, PostgresEngine, segments
from recovery_pipelines.errors import EngineError
from recovery_pipelines.tools import Finished, find_tool

Kind = Literal["full", "diff", "incr"]
_KINDS: dict[Kind, str] = {"full": "full", "diff": "differential", "incr": "incremental"}
_NEXT: dict[str, Kind | None] = {
    "full": "diff",
    "differential": "incr",
    "incremental": None,
    WAL: "diff",
}
"""By the kind of the backup before; None: WAL alone."""
_CONF = "pgbackrest.conf"
_SEGMENT = re.compile(r"^([0-9A-F]{24})-([0-9a-f]{40})(\.\w+)?$")


@dataclass(frozen=True)
class Cluster:
    """The PostgreSQL cluster, as the program sees it."""

    stanza: str
    data: Path
    port: int
    host: str = "127.0.0.1"
    """Of the server, or the folder of its socket."""
    segment_bytes: int = 16 << 20
    """What `initdb` makes unless it is told otherwise."""


@dataclass(frozen=True)
class Listed:
    """A backup, as `pgbackrest info` lists it."""

    label: str
    kind: str
    prior: str | None
    stopped_at: datetime
    added_bytes: int
    first_segment: str
    last_segment: str
    """Of the WAL without which it is not consistent."""
    has_bad_pages: bool


class PgBackRest:
    """One stanza in one repository. Anything but an unambiguous success is an EngineError."""

    name = "pgbackrest"

    def __init__(
        self,
        repository: Path,
        work: Path,
        cluster: Cluster,
        run: Callable[[Sequence[str]], Finished],
        seen: Callable[[Path], Path],
    ) -> None:
        """`work` holds configuration and locks; `seen` says where the program finds a path.

        `run` runs a program to its end where the cluster is, as the cluster's own user.
        """
        self._cluster = cluster
        self._run_there = run
        self._program = find_tool("pgbackrest")
        self._work = work
        self._seen = seen
        self._conf = seen(work / _CONF)
        self.repository = repository

    def configure(self) -> None:
        """Write the configuration, and make the folders that it names."""
        for folder in (self.repository, self._work / "lock", self._work / "spool"):
            folder.mkdir(exist_ok=True)
        (self._work / _CONF).write_text(
            "[global]\n"
            f"repo1-path={self._seen(self.repository)}\n"
            f"lock-path={self._seen(self._work / 'lock')}\n"
            f"spool-path={self._seen(self._work / 'spool')}\n"
            "repo1-retention-full=9999999\n"
            "repo1-bundle=y\n"  # else each small file is a file of its own, and synced
            "compress-type=lz4\n"
            "log-level-console=off\n"
            "log-level-file=off\n"
            "start-fast=y\n"
            "archive-timeout=30\n"
            "job-retry=0\n"  # a file that is damaged stays so
        )

    @property
    def settings(self) -> dict[str, str]:
        """What the server must be started with."""
        words = shlex.join([self._program, *self._options("archive-push"), "archive-push"])
        return {"archive_mode": "on", "archive_command": words.replace("%", "%%") + ' "%p"'}

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
        made = [each for each in self.backups() if each.label not in before]
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
            digest=self.digest(found.label),
            added_bytes=found.added_bytes,
        )

    def labels(self) -> list[str]:
        """The labels that the repository itself lists, oldest first."""
        return [each.label for each in self.backups()]

    def full_check(self, snapshots: Sequence[Snapshot], last_segment: str) -> str:
        """Every recorded backup is listed and unchanged, `pgbackrest verify` finds nothing (its
        exit code says nothing), and no segment of WAL is missing from the first backup to
        `last_segment`. Returns what was looked at."""
        if not snapshots:
            raise EngineError("no backup is recorded: there is nothing to check")
        listed = {each.label: each for each in self.backups()}
        for snapshot in snapshots:
            if snapshot.snapshot_id not in listed:
                raise EngineError(
                    f"recorded backup {snapshot.snapshot_id} is not in the repository"
                )
            if self.digest(snapshot.snapshot_id) != snapshot.digest:
                raise EngineError(f"backup {snapshot.snapshot_id} is not the one that was recorded")
        self.verify()
        first = listed[snapshots[0].snapshot_id].first_segment
        needed = segments(first, last_segment, self._cluster.segment_bytes)
        archived = self.archived()
        missing = [name for name in needed if name not in archived]
        if missing:
            raise EngineError(
                f"{len(missing)} of {len(needed)} WAL segments are not archived: "
                + ", ".join(missing[:5])
            )
        return f"{len(snapshots)} backups, {len(needed)} WAL segments without a gap"

    def verify(self) -> None:
        """Raises EngineError if `pgbackrest verify` finds anything; its exit code says nothing."""
        said = self._run("verify", "--output=text", "--verbose").stdout.decode()
        if not re.search(r"^stanza: \S+\nstatus: ok$", said, re.MULTILINE):
            raise EngineError(f"pgbackrest verify: {' '.join(said.split())[:1000] or 'no answer'}")

    def is_archived(self, segment: str) -> bool:
        """Whether the repository holds this segment of WAL."""
        return segment in self.archived()

    def restore(self, label: str, restore_point: str, timeline: int) -> None:
        """Restore a recorded backup into the cluster's own, empty directory, such that the server
        replays WAL to `restore_point` when it starts, and does not start if it cannot."""
        self._run(
            "restore",
            f"--set={label}",
            "--type=name",
            f"--target={restore_point}",
            f"--target-timeline={timeline}",
            "--target-action=promote",
        )

    def _options(self, command: str) -> list[str]:
        if command == "version":
            return []
        options = [f"--config={self._conf}", f"--stanza={self._cluster.stanza}"]
        if command not in ("info", "verify"):
            options.append(f"--pg1-path={self._cluster.data}")
        if command in ("backup", "stanza-create"):
            options += [f"--pg1-port={self._cluster.port}", "--pg1-user=postgres"]
        return options

    def _run(self, command: str, *options: str) -> Finished:
        words = [self._program, *self._options(command), *options, command]
        done = self._run_there(["env", f"PGHOST={self._cluster.host}", *words])
        if done.returncode:
            raise EngineError(
                f"pgbackrest {command}: exit code {done.returncode}: {done.complaint}"
            )
        return done

    def backups(self) -> list[Listed]:
        """As the repository itself lists them, oldest first."""
        return read_info(self._run("info", "--output=json").stdout)

    def digest(self, label: str) -> str:
        """Of the backup's own manifest, which holds a checksum of each of its files."""
        manifest = self.repository / "backup" / self._cluster.stanza / label / "backup.manifest"
        try:
            return hashlib.sha256(manifest.read_bytes()).hexdigest()[:32]
        except OSError as error:
            raise EngineError(f"backup {label}: {error}") from error

    def archived(self) -> dict[str, Path]:
        """The archived segments by name: their files are called `<segment>-<sha1>`."""
        folder = self.repository / "archive" / self._cluster.stanza
        found = ((_SEGMENT.match(path.name), path) for path in folder.rglob("*-*"))
        return {match[1]: path for match, path in found if match}


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
                last_segment=str(each["archive"]["stop"]),
                has_bad_pages=bool(each.get("error")),
            )
            for each in stanza["backup"]
        ]


class PgBackRestEngine(PostgresEngine):
    """Full, differential and incremental backups in turn, then one of WAL alone."""

    name: ClassVar[str] = "pgbackrest"
    program: ClassVar[str] = "pgbackrest"
    exit_codes: ClassVar[Mapping[int, str]] = {}

    def version(self) -> str:
        return self._of().version()

    def init(self) -> None:
        super().init()
        self._of().configure()
        self._site.give(*self.work.iterdir())

    def check(self) -> None:
        """What `pgbackrest info` says of each backup."""
        super().check()
        bad = [each.label for each in self._of().backups() if each.has_bad_pages]
        if bad:
            raise EngineError(f"backup {bad[0]} holds pages with wrong checksums")

    def _archive_command(self, source: Path) -> str:
        return self._of(source).settings["archive_command"]

    def _prepare(self, source: Path) -> None:
        self._of(source).create_stanza()

    def _back_up(self, source: Path, parent: Snapshot | None) -> tuple[str, str]:
        kind = _NEXT[parent.kind] if parent else "full"
        if kind is None:
            assert parent is not None
            return self._label_of(parent), WAL
        made = self._of(source).backup(kind, parent)
        return made.snapshot_id, made.kind

    def _bases(self) -> list[Base]:
        return [
            Base(each.label, each.first_segment, each.last_segment) for each in self._of().backups()
        ]

    def _archived(self) -> dict[str, Path]:
        return self._of().archived()

    def _base_digest(self, label: str) -> str:
        return self._of().digest(label)

    def _verify(self, labels: Collection[str]) -> None:
        self._of().verify()

    def _lay_out(
        self, label: str, staging: Path, restore_point: str, timeline: int
    ) -> dict[str, str]:
        self._of(staging, into=staging).restore(label, restore_point, timeline)
        return {}

    def _of(self, cluster: Path | None = None, into: Path | None = None) -> PgBackRest:
        """The tool, for what concerns the repository alone or a cluster."""
        data = self._site.seen(cluster or self.work)
        told = Cluster("main", data, PORT, HERE, SEGMENT_BYTES)

        def run_there(argv: Sequence[str]) -> Finished:
            return self._there(argv, beside_of(cluster) if cluster else self.work, into)

        return PgBackRest(self.repository, self.work, told, run_there, self._site.seen)
