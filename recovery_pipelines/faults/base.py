"""The protocol that every fault follows: one damage done on purpose, seeded and recorded."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Protocol, runtime_checkable

from recovery_pipelines.sandbox import Tree


class Layer(StrEnum):
    """Where a fault is done."""

    SOURCE = "source"
    REPOSITORY = "repository"
    RESTORED_COPY = "restored_copy"


class Family(StrEnum):
    """What a fault damages."""

    CONTENT = "content"
    STRUCTURE = "structure"
    METADATA = "metadata"
    RANSOMWARE = "ransomware"


@dataclass(frozen=True)
class InjectedFault:
    """What was done, where, with the state before and after."""

    kind: str
    layer: Layer
    family: Family
    path: bytes
    """An entry that differs afterwards."""
    detail: str
    before: str
    after: str
    changes_data: bool
    """False for a damage that leaves every recorded property equal (zeros turned into a hole)."""
    caught_by: tuple[str, ...]
    """The validation criteria that must catch it; at least one of them has to fail."""
    also: tuple[bytes, ...] = ()
    """Other entries that differ, too, or that hold those that do."""


@runtime_checkable
class Fault(Protocol):
    """One kind of damage.

    Others are registered as classes (or factories) without arguments: under the entry-point
    group `recovery_pipelines.faults` for any tree, `recovery_pipelines.repository_faults` for
    the repositories of backup engines.
    """

    @property
    def kind(self) -> str:
        """Unique in its catalogue."""
        ...

    @property
    def family(self) -> Family: ...

    @property
    def caught_by(self) -> tuple[str, ...]:
        """As in `InjectedFault`."""
        ...

    def inject(
        self, tree: Tree, layer: Layer, rng: Random, avoid: Collection[bytes] = ()
    ) -> InjectedFault | None:
        """Do the damage once at a place chosen by `rng`; None if the tree offers no place.

        Does nothing at the paths in `avoid` or below them, and removes no directory that holds
        one, so that several faults do not undo or hide one another.
        """
        ...
