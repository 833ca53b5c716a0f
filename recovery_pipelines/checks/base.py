"""What a check is, what it looks at, and the only way in which checks are run.

A check is one validation criterion. It looks at a recovered state and says PASS, FAIL or
UNVERIFIED; `run_checks` adds what no single check may decide for itself: a check that breaks is an
ERROR, and a state without files is never a PASS.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.compute as pc

from recovery_pipelines import manifest
from recovery_pipelines.errors import DrillTimeout, RecoveryError
from recovery_pipelines.faults.base import Fault
from recovery_pipelines.manifest import Comparison
from recovery_pipelines.sandbox import Tree
from recovery_pipelines.tools import escaped
from recovery_pipelines.verdict import CheckResult, Verdict

ALL_ASPECTS = frozenset({"checksums", "structure", "permissions"})

_ENTRY_COLUMNS = ("path", "type", "mode", "xattr_xxh3_128", "error")
_EXAMPLES = 5


@dataclass(frozen=True)
class RecoveredState:
    """What the checks look at: one recovered tree, and what it should be."""

    tree: Tree
    """The recovered tree."""
    expected: Path
    """Manifest of the generation that must be there."""
    found: Path
    """Manifest captured from `tree` after the recovery."""
    comparison: Comparison
    """`expected` against `found`."""
    facts: pa.Table
    """What owners and applications could do with the data before the damage (`capture_facts`)."""
    aspects: frozenset[str] = ALL_ASPECTS
    """The plan's `validation.automated_checks.data_integrity`."""

    @cached_property
    def expected_entries(self) -> pa.Table:
        """Every expected entry: path, type, mode, xattr_xxh3_128, error."""
        return manifest.read(self.expected, _ENTRY_COLUMNS)

    @cached_property
    def found_entries(self) -> pa.Table:
        """Every entry found: the same columns."""
        return manifest.read(self.found, _ENTRY_COLUMNS)

    @property
    def has_files(self) -> bool:
        """Whether files were expected, and files are there."""
        return bool(len(files_of(self.expected_entries)) and len(files_of(self.found_entries)))

    def differences(self, *kinds: str) -> pa.Table:
        """The rows of the comparison that are of one of these kinds."""
        table = self.comparison.differences
        return table.filter(is_among(table["kind"], pa.array(kinds, pa.string())))


def examine(
    tree: Tree,
    expected: Path,
    found: Path,
    facts: pa.Table,
    *,
    aspects: Collection[str] = ALL_ASPECTS,
    not_kept: Collection[str] = (),
) -> RecoveredState:
    """Capture `tree` into the new manifest `found` and compare it with `expected`.

    Drills and the self-test both look at trees through this function, so that the canaries test
    this code as well.
    """
    manifest.capture(tree.path, found)
    return RecoveredState(
        tree=tree,
        expected=expected,
        found=found,
        comparison=manifest.compare(expected, found, ignore=not_kept),
        facts=facts,
        aspects=frozenset(aspects),
    )


@runtime_checkable
class Check(Protocol):
    """One validation criterion. Registered under the entry-point group `recovery_pipelines.checks`.

    Constructed without arguments.
    """

    name: ClassVar[str]

    def canaries(self, sample: RecoveredState) -> Sequence[Fault]:
        """Faults that this check must catch when they are planted in copies of `sample`."""
        ...

    def run(self, state: RecoveredState) -> CheckResult:
        """PASS only if everything the criterion is about was looked at and is right."""
        ...


def run_check(check: Check, state: RecoveredState) -> CheckResult:
    """Run one check: what breaks is an ERROR, what has no files is UNVERIFIED, never a PASS."""
    try:
        if state.comparison.entries != len(state.expected_entries):
            raise RecoveryError("the comparison is not one with the expected manifest")
        result = check.run(state)
        if result.verdict is Verdict.PASS and not state.has_files:
            found = f"{result.found}; but there are no files, so nothing is proven"
            return replace(result, verdict=Verdict.UNVERIFIED, found=found)
    except DrillTimeout:
        raise
    except Exception as error:  # whatever a check raises, it could not run
        found = f"the check could not run: {type(error).__name__}: {error}"
        return CheckResult(check.name, Verdict.ERROR, "the check runs to its end", found)
    return result


def files_of(entries: pa.Table) -> pa.Table:
    """The rows of regular files."""
    return entries.filter(pc.equal(entries["type"].cast(pa.string()), "file"))


def is_among(values: pa.ChunkedArray, allowed: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """For each value, whether it is one of `allowed`."""
    return pc.is_in(values, allowed)


def count(mask: pa.ChunkedArray) -> int:
    """How many values are true."""
    return int(pc.sum(mask).as_py() or 0)


def printable(path: bytes) -> str:
    """A path inside a tree as text on one line; the root is `.`."""
    return escaped(path.decode("utf-8", "backslashreplace") or ".")


def examples(lines: Iterable[str]) -> str:
    """` (a, b, c, d, e, …)`: the first five of `lines`, or nothing if there are none."""
    shown: list[str] = []
    for line in lines:
        if len(shown) == _EXAMPLES:
            shown.append("…")
            break
        shown.append(line)
    return f" ({'; '.join(shown)})" if shown else ""
