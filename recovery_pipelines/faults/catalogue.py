"""Every kind of fault by name, ours and others', and how several are injected together."""

from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from random import Random

from recovery_pipelines.errors import PlanError
from recovery_pipelines.faults import content, metadata, ransomware, repository, structure
from recovery_pipelines.faults.base import Fault, InjectedFault, Layer
from recovery_pipelines.faults.kind import Entry, Kind, clear_of, survey
from recovery_pipelines.sandbox import Tree

SOURCE_ENTRY_POINTS = "recovery_pipelines.faults"
REPOSITORY_ENTRY_POINTS = "recovery_pipelines.repository_faults"


def source_faults() -> dict[str, Fault]:
    """Kind to fault, for source data and restored copies: they work on any tree."""
    ours = (*content.KINDS, *structure.KINDS, *metadata.KINDS, *ransomware.KINDS)
    return _by_kind([*ours, *_others(SOURCE_ENTRY_POINTS)])


def repository_faults() -> dict[str, Fault]:
    """Kind to fault, for the repository of any engine."""
    return _by_kind([*repository.KINDS, *_others(REPOSITORY_ENTRY_POINTS)])


def inject(faults: Sequence[Fault], tree: Tree, layer: Layer, seed: int) -> list[InjectedFault]:
    """Do each damage once, at different places of `tree`; the same seed gives the same damage.

    A fault that finds no place is left out of the result, so it may be shorter than `faults`.
    """
    injected: list[InjectedFault] = []
    entries: list[Entry] | None = None
    for number, fault in enumerate(faults):
        rng = Random(f"{seed}:{number}:{fault.kind}")
        damaged = [path for earlier in injected for path in (earlier.path, *earlier.also)]
        if isinstance(fault, Kind):  # one walk serves them all: what they change is in `damaged`
            entries = survey(tree) if entries is None else entries
            done = fault.inject_among(clear_of(damaged, entries), tree, layer, rng)
        else:
            done = fault.inject(tree, layer, rng, avoid=damaged)
            entries = None
        if done is not None:
            injected.append(done)
    return injected


def _others(group: str) -> list[Fault]:
    return [point.load()() for point in entry_points(group=group)]


def _by_kind(faults: Iterable[Fault]) -> dict[str, Fault]:
    known: dict[str, Fault] = {}
    for fault in faults:
        if fault.kind in known:
            raise PlanError(
                f"two faults are called {fault.kind!r}: rename the one that another package "
                "registers, or remove that package"
            )
        known[fault.kind] = fault
    return known
