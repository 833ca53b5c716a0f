"""The protocol that every fault follows: one damage done on purpose, seeded and recorded."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import ClassVar, Protocol, runtime_checkable

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
    detail: str
    before: str
    after: str
    changes_data: bool
    """False for a damage that leaves every recorded property equal (zeros turned into a hole)."""
    caught_by: tuple[str, ...]
    """The validation criteria that must catch it; at least one of them has to fail."""


@runtime_checkable
class Fault(Protocol):
    """One kind of damage. Registered under the entry-point group `recovery_pipelines.faults`."""

    kind: ClassVar[str]
    family: ClassVar[Family]
    caught_by: ClassVar[tuple[str, ...]]

    def inject(self, tree: Tree, layer: Layer, rng: Random) -> InjectedFault | None:
        """Do the damage once at a place chosen by `rng`; None if the tree offers no place."""
        ...
