"""What the criteria of a data-recovery drill mean for a database, and that each can fail."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from recovery_pipelines.databases.base import (
    DATA_KINDS,
    PRIVILEGE,
    Contents,
    Database,
    differences,
)
from recovery_pipelines.databases.opening import faults_of, make_database, open_database
from recovery_pipelines.errors import DatabaseError
from recovery_pipelines.sandbox import Sandbox, Tree
from recovery_pipelines.verdict import CheckResult, Verdict

_CANARY_ROWS = 100
_NAMED = 5
ASPECTS = {
    "checksums_match": "checksums",
    "directory_structure_intact": "structure",
    "permissions_correct": "permissions",
}
"""The plan's `automated_checks.data_integrity` that a criterion needs."""
FILE_CUT = "file_cut"
"""A canary: the largest file of the database loses its second half."""
_DATA_FILES = {"postgres": b"base/", "dagster_postgres": b"base/"}
"""By kind: where files are that it cannot do without; all, where there is nothing else."""


@dataclass(frozen=True)
class DatabaseState:
    """A recovered database as the criteria look at it, and what it should hold."""

    expected: Contents
    found: Contents
    problem: str = ""
    """Why it cannot be opened and read whole, or what its own check says; empty: nothing."""
    written: bool = False
    """A row was written and read back."""

    @cached_property
    def differences(self) -> dict[str, str]:
        return differences(self.expected, self.found)

    @property
    def is_right(self) -> bool:
        return bool(self.expected) and not self.differences and not self.problem


@dataclass(frozen=True)
class Caught:
    """What one criterion said of one damage; `kind` is None for an undamaged database."""

    criterion: str
    kind: str | None
    result: CheckResult


def look_at(kind: str, folder: Path, sandbox: Sandbox, expected: Contents) -> DatabaseState:
    """Open the database in `folder` and read it whole; what does not work is in the state."""
    try:
        with open_database(kind, folder, sandbox) as database:
            return examine(database, expected)
    except DatabaseError as error:
        return DatabaseState(expected, {}, str(error))


def examine(database: Database, expected: Contents) -> DatabaseState:
    """Read an open database whole, and write to it."""
    try:
        found = database.describe()
        return DatabaseState(expected, found, database.problems(), database.written())
    except DatabaseError as error:
        return DatabaseState(expected, {}, str(error))


def judge(
    names: Sequence[str], state: DatabaseState, aspects: Collection[str] = tuple(ASPECTS.values())
) -> list[CheckResult]:
    """One result per criterion; one that is for file trees only, or whose aspect is left out, is
    UNVERIFIED."""
    return [
        CheckResult(name, Verdict.UNVERIFIED, f"{ASPECTS[name]} are compared", "the plan omits it")
        if name in ASPECTS and ASPECTS[name] not in aspects
        else _judge(name, state)
        for name in names
    ]


def show_that_they_fail(
    kind: str, names: Sequence[str], sandbox: Sandbox, scratch: Tree, seed: int
) -> list[Caught]:
    """Let each criterion judge a small database: undamaged, and with each damage it must catch."""
    shown: list[Caught] = []
    with make_database(
        kind, scratch.path, sandbox, rows=_CANARY_ROWS, seed=seed, taken_from=None
    ) as database:
        before = database.describe()
        sound = examine(database, before)
        shown += [Caught(name, None, _judge(name, sound)) for name in names]
        for number, (fault, planned) in enumerate(faults_of(kind).items()):
            before = database.describe()
            if planned.inject(database, Random(f"{seed}:{number}")) and planned.caught_by in names:
                damaged = examine(database, before)
                caught = _judge(planned.caught_by, damaged)
                shown.append(Caught(planned.caught_by, fault, caught))
        before = database.describe()
    cut_largest_file(scratch, _DATA_FILES.get(kind, b""))
    damaged = look_at(kind, scratch.path, sandbox, before)
    opened = [name for name in ("files_accessible", "applications_functional") if name in names]
    shown += [Caught(name, FILE_CUT, _judge(name, damaged)) for name in opened]
    scratch.clear()
    return shown


def cut_largest_file(tree: Tree, below: bytes) -> None:
    """The second half of the largest file below a folder is gone."""
    size, path = max(
        (found.st_size, path) for path, found in tree.walk() if path and path.startswith(below)
    )
    tree.write(path, tree.read(path)[: size // 2])


def _judge(name: str, state: DatabaseState) -> CheckResult:
    if name in _OF_CONTENTS:
        return _compared(name, state, *_OF_CONTENTS[name])
    if name == "files_accessible":
        expected = "the database opens, is read whole, and its own check finds nothing"
        verdict = Verdict.FAIL if state.problem else Verdict.PASS
        return CheckResult(name, verdict, expected, state.problem or "so it is")
    if name == "applications_functional":
        expected = "a row is written and read back"
        works = state.written and not state.problem
        found = "so it is" if works else state.problem or "it is not"
        return CheckResult(name, Verdict.PASS if works else Verdict.FAIL, expected, found)
    return CheckResult(
        name, Verdict.UNVERIFIED, "the criterion can be judged", "it is about file trees"
    )


def _compared(
    name: str, state: DatabaseState, what: str, is_about: Callable[[str, str], bool]
) -> CheckResult:
    subject = [each for each in state.expected if is_about(each, "")]
    wrong = {each: told for each, told in state.differences.items() if is_about(each, told)}
    expected = f"{len(subject)} {what}"
    if wrong:
        named = "; ".join(f"{each}: {told}" for each, told in list(wrong.items())[:_NAMED])
        return CheckResult(name, Verdict.FAIL, expected, f"{len(wrong)} are not: {named}")
    if not subject:
        return CheckResult(name, Verdict.UNVERIFIED, expected, "nothing to compare")
    return CheckResult(name, Verdict.PASS, expected, "so they are")


def _kind(name: str) -> str:
    return name.partition(" ")[0]


_OF_CONTENTS: Mapping[str, tuple[str, Callable[[str, str], bool]]] = {
    "all_files_recovered": (
        "tables, keys' types and objects are there, and no others",
        lambda name, told: told in ("", "missing", "not in the source"),
    ),
    "checksums_match": (
        "tables or types of keys hold the rows and values that they held",
        lambda name, told: _kind(name) in DATA_KINDS,
    ),
    "directory_structure_intact": (
        "definitions and settings are as they were",
        lambda name, told: _kind(name) not in (*DATA_KINDS, PRIVILEGE),
    ),
    "permissions_correct": (
        "owners and privileges are as they were",
        lambda name, told: _kind(name) == PRIVILEGE,
    ),
}
