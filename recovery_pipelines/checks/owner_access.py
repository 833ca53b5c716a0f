"""files_accessible: every file that its owner could read before can be read by its owner again."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

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
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.faults.base import Fault
from recovery_pipelines.sandbox import Tree
from recovery_pipelines.tools import run_tool
from recovery_pipelines.verdict import CheckResult, Verdict

READ = "read"
UNTESTED = "not tested"

_FILES_PER_PROCESS = 20_000


def read_as_owners(tree: Tree, files: pa.Table) -> list[str]:
    """Try to open and read each of `files` (columns path, uid, gid) as its owning user.

    Returns, in the order of `files`, `read`, the name of the error, or `not tested` for files of
    other users, whom only root can become. The owner has no capabilities and no groups but the
    file's own; directories above the tree do not count.
    """
    results = np.full(len(files), UNTESTED, dtype=object)
    uids, gids = files["uid"].to_numpy(), files["gid"].to_numpy()
    owners = np.unique(np.stack([uids, gids], axis=1), axis=0).tolist()
    root = tree.open(b"", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for uid, gid in owners:
            if os.geteuid() not in (0, uid):
                continue
            rows = np.flatnonzero((uids == uid) & (gids == gid))
            for start in range(0, len(rows), _FILES_PER_PROCESS):
                batch = rows[start : start + _FILES_PER_PROCESS]
                paths = files["path"].take(pa.array(batch)).to_pylist()
                results[batch] = _read_as(uid, gid, root, paths)
    finally:
        os.close(root)
    return list(results)


def _read_as(uid: int, gid: int, root: int, paths: list[bytes]) -> list[str]:
    program = [sys.executable, "-P", str(Path(_read_as_owner.__file__))]
    package_home = Path(recovery_pipelines.__file__).parent.parent
    done = run_tool(
        [*program, str(uid), str(gid), str(root)],
        stdin=b"\0".join(paths),
        pass_fds=(root,),
        env={"PYTHONPATH": str(package_home)},
    )
    if done.returncode == _read_as_owner.CANNOT_BECOME_OWNER:
        return [UNTESTED] * len(paths)
    answers = done.stdout.decode().splitlines()
    if done.returncode != 0 or len(answers) != len(paths):
        raise RecoveryError(
            f"could not read files as user {uid}, group {gid}: {done.complaint or 'no answer'}"
        )
    return answers


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

        answers = read_as_owners(state.tree, present)
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
