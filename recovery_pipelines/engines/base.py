"""The protocol that every backup engine follows, and what engines over a command-line tool share.

An engine is one file that adapts one backup tool. It knows nothing of drills, faults or
verdicts: it runs the tool, maps exit codes strictly (anything but an unambiguous success is an
EngineError), and names snapshots by the tool's own recorded id, never by "latest".
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import xxhash

from recovery_pipelines.errors import EngineError, PlanError
from recovery_pipelines.tools import Finished, find_tool, run_tool

ENTRY_POINT_GROUP = "recovery_pipelines.engines"
SNAPSHOTS_LOST = "recorded snapshots are not in the repository"
"""What a check says of snapshots that expired or were removed."""


@dataclass(frozen=True)
class Snapshot:
    """One backup in an engine's repository. The drill keeps these as its ledger, elsewhere."""

    snapshot_id: str
    kind: str
    """`full`, `incremental`, or what else the tool calls it."""
    parent_id: str | None
    created_at: datetime
    """UTC."""
    digest: str
    """Identifies the repository content that this snapshot consists of (xxh3_128, hex)."""
    added_bytes: int
    """What this backup added to the repository."""
    position: str = ""
    """What a restore needs besides the id, in the engine's own words."""


@runtime_checkable
class Engine(Protocol):
    """An adapter to one backup tool, bound to one repository.

    Constructed as `EngineClass(repository, work, timeout_seconds=..., environment=...)`:
    `repository` is the directory of the backups, `work` a private directory for state files
    outside it. Both exist and are empty before `init`. A secret lives in the object alone.
    `timeout_seconds` is a number or a function that says how much time is left; each run of the
    tool asks anew. `environment` is added to each child's. A tool that reports anything but
    success raises EngineError, one that takes too long DrillTimeout.
    """

    name: ClassVar[str]

    def version(self) -> str:
        """The tool's version as it reports it."""
        ...

    def init(self) -> None:
        """Create an empty repository."""
        ...

    def backup(self, source: Path, parent: Snapshot | None) -> Snapshot:
        """Back up `source`: full if `parent` is None, else incremental upon `parent`."""
        ...

    def snapshot_ids(self) -> list[str]:
        """The ids that the repository itself lists, oldest first."""
        ...

    def check(self) -> None:
        """The tool's quick check; raises EngineError if it finds anything."""
        ...

    def full_check(self, snapshots: Sequence[Snapshot]) -> None:
        """The tool's thorough check, reading all data, and the ledger's digests and ids."""
        ...

    def restore(
        self, snapshot: Snapshot, staging: Path, paths: Collection[bytes] | None = None
    ) -> None:
        """Restore by recorded id into the empty directory `staging`.

        `staging` itself becomes the tree's root, its metadata included. With `paths` (relative,
        as in the manifest) at least those entries are restored, more is allowed: their parent
        directories exist too, but only what is in `paths` is sure to have its own metadata. An
        entry that the snapshot does not hold is absent afterwards; the manifest tells.
        """
        ...


class ToolEngine:
    """What engines over a command-line tool share: its environment, time limit and exit codes."""

    name: ClassVar[str]
    program: ClassVar[str]
    package: ClassVar[str | None] = None
    """The system package that holds the program, if it has another name."""
    exit_codes: ClassVar[Mapping[int, str]]
    """What the tool's non-zero exit codes mean."""
    give_up_on: ClassVar[bytes | None] = None
    """The tool is stopped as soon as it says this on stderr."""

    def __init__(
        self,
        repository: Path,
        work: Path,
        *,
        timeout_seconds: Callable[[], float] | float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.repository = repository.absolute()
        self.work = work.absolute()
        self._timeout_seconds = timeout_seconds
        self._environment = {"TMPDIR": str(self.work)} | dict(environment or {})

    def _run(
        self,
        doing: str,
        *arguments: str | bytes | Path,
        program: str | None = None,
        cwd: Path | None = None,
        stdin: bytes | None = None,
        environment: Mapping[str, str] | None = None,
        into: Path | None = None,
    ) -> Finished:
        """Run the tool; any exit code but 0 is an EngineError that starts with `doing`.

        What restores names the folder `into` which: it can write nowhere outside the engine's own.
        """
        limit = self._timeout_seconds
        program = program or self.program
        finished = run_tool(
            [find_tool(program, self.package), *arguments],
            cwd=cwd,
            env=self._environment | dict(environment or {}),
            stdin=stdin,
            timeout_seconds=limit() if callable(limit) else limit,
            give_up_on=self.give_up_on,
            writable=[into, self.work, self.repository] if into else None,
        )
        if finished.returncode != 0:
            code = finished.returncode
            meaning = self.exit_codes.get(code, "failed") if program == self.program else "failed"
            raise EngineError(
                f"{doing}: {program} exit code {code} ({meaning}): {finished.complaint}"
            )
        return finished


def size_bytes(repository: Path) -> int:
    """What the files of a repository hold together."""
    return sum(path.stat().st_size for path in repository.rglob("*") if path.is_file())


def file_digest(path: Path) -> str:
    """xxh3_128 of a file's content, hex. Raises EngineError if it cannot be read."""
    digest = xxhash.xxh3_128()
    with explained(f"reading {path.name}"), path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """xxh3_128 of the names and contents of all files below, hex."""
    whole = xxhash.xxh3_128()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            whole.update(f"{path.relative_to(folder)}\0{file_digest(path)}\n".encode())
    return whole.hexdigest()


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """A file that we ourselves cannot read or write (no space, no rights) is an EngineError."""
    try:
        yield
    except OSError as error:
        raise EngineError(f"{doing}: {error}") from error


@contextmanager
def understood(doing: str) -> Iterator[None]:
    """A tool's answer that is not what it should be (no JSON, no such key) is an EngineError."""
    try:
        yield
    except (
        *(ValueError, LookupError, TypeError, AttributeError),
        *(OverflowError, RecursionError),
    ) as error:
        lacks = f": {error}" if isinstance(error, KeyError) else ""  # else it quotes the answer
        raise EngineError(
            f"{doing}: the tool's answer cannot be understood ({type(error).__name__}{lacks}); "
            "is it the version that we know?"
        ) from None


def require_recorded(snapshots: Sequence[Snapshot], listed: Collection[str]) -> None:
    """EngineError unless there are recorded snapshots and the repository lists each of them."""
    if not snapshots:
        raise EngineError("no snapshot is recorded for this repository: there is nothing to check")
    lost = [each.snapshot_id for each in snapshots if each.snapshot_id not in listed]
    if lost:
        raise EngineError(f"{len(lost)} of {len(snapshots)} {SNAPSHOTS_LOST}: " + ", ".join(lost))


def require_written(snapshot: Snapshot, found: str) -> None:
    """EngineError unless the digest `found` in the repository is the recorded one."""
    if found != snapshot.digest:
        raise EngineError(
            f"backup {snapshot.snapshot_id} is not what was written: recorded digest "
            f"{snapshot.digest}, found {found}"
        )


def require_empty(staging: Path) -> None:
    """EngineError unless `staging` is an empty directory."""
    if not staging.is_dir():
        raise EngineError(f"the staging directory {staging} does not exist: create it first")
    with os.scandir(staging) as entries:
        if next(entries, None) is not None:
            raise EngineError(
                f"the staging directory {staging} is not empty: restore into an empty one"
            )


def engine_class(name: str) -> type[Engine]:
    """The engine registered under `name`, or a PlanError that lists the known ones."""
    known = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in known:
        raise PlanError(f"unknown engine {name!r}; known engines: {', '.join(sorted(known))}")
    loaded: type[Engine] = known[name].load()
    return loaded
