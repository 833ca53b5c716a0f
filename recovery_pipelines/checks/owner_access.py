"""files_accessible: every file that its owner could read before can be read by its owner again."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import recovery_pipelines
from recovery_pipelines.checks import _read_as_owner
from recovery_pipelines.checks.base import (
    RecoveredState,
    count,
    examples,
    files_of,
    is_among,
    printable,
)
from recovery_pipelines.checks.canaries import owner_canaries
from recovery_pipelines.checks.readers import application_of
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.faults.base import Fault
from recovery_pipelines.sandbox import Tree, beneath
from recovery_pipelines.tools import run_tool
from recovery_pipelines.verdict import CheckResult, Verdict

READ = "read"
UNTESTED = "not tested"

_FILES_PER_PROCESS = 10_000
_START = (
    "import sys; sys.path.extend(sys.argv[4:]); del sys.argv[4:]; "
    "import _read_as_owner; _read_as_owner.main()"
)
"""Without the packages of the site, which take longer to load than the files to read."""


class Access(NamedTuple):
    """What became of the owner's attempt to read one file."""

    answer: str
    """`read`, the name of the error, or `not tested`: only root can become another user."""
    application: str | None = None
    """The application that the first bytes belong to, if they were read."""


def read_as_owners(tree: Tree, files: pa.Table) -> list[Access]:
    """Try to open and read each of `files` (columns path, uid, gid) as its owning user, in order.

    The owner has no capabilities and no groups but the file's own; directories above the tree do
    not count.
    """
    results: list[Access] = [Access(UNTESTED)] * len(files)
    uids, gids = files["uid"].to_numpy(), files["gid"].to_numpy()
    owners = np.unique(np.stack([uids, gids], axis=1), axis=0).tolist()
    batches: list[tuple[int, int, list[int]]] = []
    for uid, gid in owners:
        if os.geteuid() in (0, uid):
            rows = np.flatnonzero((uids == uid) & (gids == gid)).tolist()
            for start in range(0, len(rows), _FILES_PER_PROCESS):
                batches.append((uid, gid, rows[start : start + _FILES_PER_PROCESS]))
    root = tree.open(b"", os.O_RDONLY | os.O_DIRECTORY)

    def read_batch(batch: tuple[int, int, list[int]]) -> list[Access]:
        uid, gid, rows = batch
        return _read_as(uid, gid, root, files["path"].take(pa.array(rows)).to_pylist())

    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for (_, _, rows), answers in zip(batches, pool.map(read_batch, batches), strict=True):
                for row, answer in zip(rows, answers, strict=True):
                    results[row] = answer
    finally:
        os.close(root)
    return results


def _read_as(uid: int, gid: int, root: int, paths: list[bytes]) -> list[Access]:
    folders = (
        Path(_read_as_owner.__file__).parent,
        Path(beneath.__file__).parent,
        Path(recovery_pipelines.__file__).parent.parent,
    )
    done = run_tool(
        [sys.executable, "-I", "-S", "-c", _START, str(uid), str(gid), str(root), *folders],
        stdin=b"\0".join(paths),
        pass_fds=(root,),
    )
    if done.returncode == _read_as_owner.CANNOT_BECOME_OWNER:
        return [Access(UNTESTED)] * len(paths)
    lines = done.stdout.decode().splitlines()
    if done.returncode != 0 or len(lines) != len(paths):
        raise RecoveryError(
            f"could not read files as user {uid}, group {gid}: {done.complaint or 'no answer'}"
        )
    return [_access(line) for line in lines]


def _access(line: str) -> Access:
    answer, _, head = line.partition(" ")
    if answer == READ:
        return Access(READ, application_of(bytes.fromhex(head)))
    return Access(line)


class FilesAccessible:
    """Opens and reads (first 4 KiB, last byte) every recovered file as its owning user."""

    name: ClassVar[str] = "files_accessible"

    def canaries(self, sample: RecoveredState) -> Sequence[Fault]:
        return owner_canaries(_with_access(sample.facts, READ)["path"].to_pylist(), self.name)

    def run(self, state: RecoveredState) -> CheckResult:
        facts = state.facts
        readable, untested = _with_access(facts, READ), _with_access(facts, UNTESTED)
        unreadable = len(facts) - len(readable) - len(untested)
        expected_files = files_of(state.expected_entries)["path"]
        without_facts = len(expected_files) - count(is_among(expected_files, facts["path"]))
        there = is_among(readable["path"], files_of(state.found_entries)["path"])
        present, gone = readable.filter(there), readable.filter(pc.invert(there))

        answers = [access.answer for access in read_as_owners(state.tree, present)]
        denied = [f"{printable(path)}: no such file" for path in gone["path"].to_pylist()] + [
            f"{printable(path)}: {answer}"
            for path, answer in zip(present["path"].to_pylist(), answers, strict=True)
            if answer not in (READ, UNTESTED)
        ]
        not_tested = len(untested) + answers.count(UNTESTED)

        claim = "files were opened and read as their owning users"
        expected, found = f"{len(readable)} {claim}", f"{answers.count(READ)} {claim}"
        if denied:
            found += f"; {len(denied)} files were not{examples(denied)}"
        if not_tested:
            found += f"; {not_tested} files of other users not tested: run the drill as root"
        if unreadable:
            found += f"; {unreadable} files not counted: their owner could not read them before"
        if without_facts:
            found += f"; {without_facts} files not tested: no facts from before the damage"
        if denied:
            return CheckResult(self.name, Verdict.FAIL, expected, found)
        proven = READ in answers and UNTESTED not in answers and not without_facts
        verdict = Verdict.PASS if proven else Verdict.UNVERIFIED
        return CheckResult(self.name, verdict, expected, found)


def _with_access(facts: pa.Table, access: str) -> pa.Table:
    return facts.filter(pc.equal(facts["owner_access"], access))
