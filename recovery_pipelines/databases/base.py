"""What a drill needs of a database, whatever it is; and how two descriptions are compared."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Protocol

from recovery_pipelines.faults.base import Family, InjectedFault, Layer

Contents = dict[str, str]
"""By `kind name`: what it is. Of a table its rows: their count and a digest without order."""

DATA_KINDS = ("rows", "sequence")
PRIVILEGE = "privilege"
_FAMILIES = {
    "checksums_match": Family.CONTENT,
    "permissions_correct": Family.METADATA,
    "directory_structure_intact": Family.STRUCTURE,
    "all_files_recovered": Family.STRUCTURE,
    "files_accessible": Family.CONTENT,
}


class Database(Protocol):
    """A database whose files are in one folder, and which can be used while this is open."""

    kind: ClassVar[str]
    faults: ClassVar[Mapping[str, "DatabaseFault"]]

    def fill(self, rows: int, seed: int) -> None:
        """Make test data: one object of each kind, so that no comparison is empty."""
        ...

    def load(self, file: Path) -> None:
        """Take over the data of a file of the team's own, which is only read."""
        ...

    def change(self, seed: int) -> None:
        """Write something that no earlier backup holds."""
        ...

    def describe(self) -> Contents:
        """Everything that it holds, read whole."""
        ...

    def problems(self) -> str:
        """What the database's own check of its files says; empty: nothing."""
        ...

    def written(self) -> bool:
        """Write, read back and remove; leaves what `describe` says as it was."""
        ...


@dataclass(frozen=True)
class DatabaseFault:
    """One damage through the database's own front door, such as a statement that went wrong."""

    caught_by: str
    """The criterion that must fail."""
    inject: Callable[[Any, Random], str]
    """Does it to an open database; returns what was done, or nothing if there is no place."""

    @property
    def family(self) -> Family:
        """What it damages."""
        return _FAMILIES[self.caught_by]

    def done(
        self, kind: str, layer: Layer, detail: str, before: Contents, after: Contents
    ) -> InjectedFault:
        """The record of a damage, from the descriptions before and after it."""
        changed = differences(before, after)
        return InjectedFault(
            kind=kind,
            layer=layer,
            family=self.family,
            path=os.fsencode(next(iter(changed), "")),
            detail=detail,
            before="; ".join(before.get(name, "absent")[:200] for name in changed),
            after="; ".join(after.get(name, "absent")[:200] for name in changed),
            changes_data=bool(changed),
            caught_by=(self.caught_by,),
        )


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """What is missing, changed or too much in `found`, by name.

    A sequence may have jumped forward as far as the server had logged it in advance, never back.
    """
    told = {name: "missing" for name in expected if name not in found}
    told |= {name: "not in the source" for name in found if name not in expected}
    for name, was in expected.items():
        now = found.get(name, was)
        if name.startswith("sequence ") and now != was:
            if not _may_have_become(json.loads(was), json.loads(now)):
                told[name] = f"was {was}, is {now}"
        elif now != was:
            told[name] = f"was {was[:200]!r}, is {now[:200]!r}"
    return told


def _may_have_become(was: list[Any], now: list[Any]) -> bool:
    (what, step, last, called, ahead), (what_now, step_now, last_now, called_now, _) = was, now
    jumped = (last_now - last) / step
    return (what, step) == (what_now, step_now) and called_now >= called and 0 <= jumped <= ahead
