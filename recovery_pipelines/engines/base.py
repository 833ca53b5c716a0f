"""The protocol that every backup engine follows, and the ledger of its snapshots.

An engine is one file that adapts one backup tool. It knows nothing of drills, faults or
verdicts: it runs the tool, maps exit codes strictly (anything but an unambiguous success is an
EngineError), and names snapshots by the tool's own recorded id, never by "latest".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from recovery_pipelines.errors import PlanError

ENTRY_POINT_GROUP = "recovery_pipelines.engines"


@dataclass(frozen=True)
class Snapshot:
    """One backup in an engine's repository, as recorded in our ledger outside the repository."""

    snapshot_id: str
    kind: str
    """`full` or `incremental`."""
    parent_id: str | None
    created_at: datetime
    """UTC."""
    digest: str
    """Identifies the repository content that this snapshot consists of (xxh3_128, hex)."""
    added_bytes: int
    """What this backup added to the repository."""


@runtime_checkable
class Engine(Protocol):
    """An adapter to one backup tool, bound to one repository.

    Constructed as `EngineClass(repository, work, timeout_seconds=...)`: `repository` is the
    directory of the backups, `work` a private directory for caches, state files and secrets
    outside the repository. Both exist and are empty before `init`.
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
        self, snapshot: Snapshot, staging: Path, paths: Sequence[bytes] | None = None
    ) -> None:
        """Restore by recorded id into the empty directory `staging`.

        `staging` itself becomes the tree's root, its metadata included. With `paths` (relative,
        as in the manifest) at least those entries are restored; more is allowed.
        """
        ...


def engine_class(name: str) -> type[Engine]:
    """The engine registered under `name`, or a PlanError that lists the known ones."""
    known = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in known:
        raise PlanError(f"unknown engine {name!r}; known engines: {', '.join(sorted(known))}")
    loaded: type[Engine] = known[name].load()
    return loaded
