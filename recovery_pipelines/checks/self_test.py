"""The self-test: in every drill, each check is seen to pass what is sound and to fail what is not.

A small sample of the recovered tree is copied, with a few made files beside it. The very code that
judged the drill (capture, comparison, facts, checks) then judges an undamaged copy of the sample,
which must PASS, and copies with one fault each (canaries), which must FAIL.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import pyarrow as pa
import pyarrow.compute as pc

from recovery_pipelines import manifest
from recovery_pipelines.checks.base import RecoveredState, examine, is_among, run_check
from recovery_pipelines.checks.canaries import MADE_FOLDER, make_files
from recovery_pipelines.checks.facts import capture_facts
from recovery_pipelines.checks.registry import check_named
from recovery_pipelines.dataset import copy_tree
from recovery_pipelines.faults.base import Fault, InjectedFault, Layer
from recovery_pipelines.sandbox import Tree
from recovery_pipelines.tools import run_tool
from recovery_pipelines.verdict import CheckResult, Verdict

UNDAMAGED = "undamaged copy"

_SAMPLE_BYTES = 16 << 20
_FILE_BYTES = 4 << 20
_COPY_TIMEOUT_SECONDS = 300.0
_SAMPLED = {"application": 3, "hard_link_group": 3, "symlink": 6, "directory": 6, "file": 24}
_LINKS_PER_GROUP = 4
_DIRECTORIES_LOOKED_AT = 200
_NOT_POSSIBLE_HERE = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


@dataclass(frozen=True)
class Canary:
    """What one check said of one throw-away copy."""

    check: str
    kind: str
    """The fault's kind, or `undamaged copy`."""
    path: bytes
    caught: bool | None
    """The damage was found (or the undamaged copy passed). None: the fault found no place here."""
    detail: str


def self_test(
    names: Sequence[str], state: RecoveredState, scratch: Tree, seed: int
) -> list[Canary]:
    """Show for each criterion of `names` that it can pass and that it can fail.

    `scratch` is an empty directory, about 50 MB of it are used, and it is left empty. The same
    seed gives the same sample and faults.
    """
    scratch.mkdir(b"manifests", 0o700)
    manifests = scratch.path / "manifests"
    with _directory(scratch, b"sample") as sample:
        _fill(sample, state, Random(f"{seed}:sample"))
        expected = manifests / "expected.parquet"
        manifest.capture(sample.path, expected)
        facts = capture_facts(sample, expected, manifests / "facts.parquet")

        def look_at(copy: Tree) -> RecoveredState:
            return examine(copy, expected, manifests / "found.parquet", facts)

        rows = []
        with _copy_of(sample, scratch) as copy:
            sound = look_at(copy)
            for check in map(check_named, names):
                result = run_check(check, sound)
                passed = result.verdict is Verdict.PASS
                rows.append(Canary(check.name, UNDAMAGED, b"", passed, _words(result)))
            canaries = [
                (check, fault)
                for check in map(check_named, names)
                for fault in check.canaries(sound)
            ]
        for check, fault in canaries:
            with _copy_of(sample, scratch) as copy:
                injected = _plant(fault, copy, Random(f"{seed}:{check.name}:{fault.kind}"))
                if injected is None:
                    words = "not planted: no place for it here"
                    rows.append(Canary(check.name, fault.kind, b"", None, words))
                    continue
                result = run_check(check, look_at(copy))
                caught = result.verdict is Verdict.FAIL
                words = f"{injected.detail}: {_words(result)}"
                rows.append(Canary(check.name, fault.kind, injected.path, caught, words))
    scratch.rmtree(b"manifests")
    return rows


def self_test_verdict(rows: Sequence[Canary]) -> CheckResult:
    """INVALID if any check missed a canary, caught none, or failed the undamaged copy."""
    checks = list(dict.fromkeys(row.check for row in rows))
    planted = [row for row in rows if row.kind != UNDAMAGED and row.caught is not None]
    caught = [row for row in planted if row.caught]
    blind = [
        f"{row.check} {'failed' if row.kind == UNDAMAGED else 'missed'} {row.kind}"
        for row in rows
        if row.caught is False
    ]
    sighted = {row.check for row in caught}
    blind += [f"{name} caught nothing" for name in checks if name not in sighted]
    expected = f"{len(checks)} checks pass an undamaged copy and fail every damaged one"
    found = f"{len(caught)} of {len(planted)} planted faults were caught"
    if len(planted) + len(checks) < len(rows):
        found += f"; {len(rows) - len(planted) - len(checks)} found no place here"
    if blind:
        found += "; " + "; ".join(blind)
        return CheckResult("self_test", Verdict.INVALID, expected, found)
    verdict = Verdict.PASS if checks else Verdict.UNVERIFIED
    return CheckResult("self_test", verdict, expected, found)


def _words(result: CheckResult) -> str:
    return f"{result.verdict}, {result.found}"


def _plant(fault: Fault, tree: Tree, rng: Random) -> InjectedFault | None:
    try:
        return fault.inject(tree, Layer.RESTORED_COPY, rng)
    except OSError as error:
        if error.errno in _NOT_POSSIBLE_HERE:
            return None
        raise


@contextmanager
def _directory(scratch: Tree, name: bytes) -> Iterator[Tree]:
    scratch.mkdir(name)
    try:
        tree = scratch.subtree(name)
        tree.chmod(b"", 0o755)
        yield tree
    finally:
        scratch.rmtree(name)


@contextmanager
def _copy_of(sample: Tree, scratch: Tree) -> Iterator[Tree]:
    with _directory(scratch, b"copy") as copy:
        copy_tree(sample.path, copy, _COPY_TIMEOUT_SECONDS)
        yield copy


def _fill(sample: Tree, state: RecoveredState, rng: Random) -> None:
    """Copy some of the recovered entries, and make the files that a canary may need.

    What cannot be copied is left out: the sample is whatever it then holds.
    """
    paths = _choose(state, rng)
    if paths:
        run_tool(
            ["cp", "-a", "--parents", "--", *(b"./" + path for path in paths), sample.path],
            cwd=state.tree.path,
            timeout_seconds=_COPY_TIMEOUT_SECONDS,
        )
    make_files(sample)


def _choose(state: RecoveredState, rng: Random) -> list[bytes]:
    """Some 60 recovered entries with no more than 16 MB: some of each kind that there is."""
    columns = ["path", "type", "size", "hard_link_group", "error"]
    entries = manifest.read(state.found, columns)
    usable = pc.and_(
        pc.is_null(entries["error"]),
        pc.invert(pc.starts_with(entries["path"], MADE_FOLDER)),
    )
    entries = entries.filter(usable)
    kinds = entries["type"].cast(pa.string())
    small = pc.and_(pc.equal(kinds, "file"), pc.less_equal(entries["size"], _FILE_BYTES))
    files = entries.filter(small)
    working = state.facts.filter(pc.is_valid(state.facts["application_facts"]))

    chosen: list[bytes] = []
    for application in sorted(set(working["application"].to_pylist())):
        theirs = working.filter(pc.equal(working["application"], application))
        there = files.filter(is_among(files["path"], theirs["path"]))["path"]
        chosen += _some(there, _SAMPLED["application"], rng)
    linked = files.filter(pc.not_equal(files["hard_link_group"], pa.scalar(0, pa.uint64())))
    for group in _some(pc.unique(linked["hard_link_group"]), _SAMPLED["hard_link_group"], rng):
        names = linked.filter(pc.equal(linked["hard_link_group"], pa.scalar(group, pa.uint64())))[
            "path"
        ]
        chosen += names.to_pylist()[:_LINKS_PER_GROUP]
    symlinks = entries.filter(pc.equal(kinds, "symlink"))["path"]
    chosen += _some(symlinks, _SAMPLED["symlink"], rng)
    directories = entries.filter(pc.equal(kinds, "directory"))["path"]
    some = [path for path in _some(directories, _DIRECTORIES_LOOKED_AT, rng) if path]
    empty = [path for path in some if not state.tree.listdir(path)]
    chosen += empty[: _SAMPLED["directory"]]
    chosen += _some(files["path"], _SAMPLED["file"], rng)
    return _within(_SAMPLE_BYTES, list(dict.fromkeys(chosen)), files)


def _some(values: pa.ChunkedArray | pa.Array, count: int, rng: Random) -> list[bytes]:
    places = rng.sample(range(len(values)), min(count, len(values)))
    taken: list[bytes] = values.take(pa.array(places, pa.int64())).to_pylist()
    return taken


def _within(limit_bytes: int, paths: list[bytes], files: pa.Table) -> list[bytes]:
    """The paths, without those files that would exceed the limit together."""
    rows = files.filter(is_among(files["path"], pa.array(paths, pa.binary())))
    sizes = dict(zip(rows["path"].to_pylist(), rows["size"].to_pylist(), strict=True))
    kept, total = [], 0
    for path in paths:
        if total + sizes.get(path, 0) <= limit_bytes:
            total += sizes.get(path, 0)
            kept.append(path)
    return kept
