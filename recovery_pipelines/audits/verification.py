"""Verifying restored data against what they should be, and how much that proves."""

import os
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recovery_pipelines import manifest
from recovery_pipelines.audits.reader import Backup, Contents, moment
from recovery_pipelines.audits.sampling import (
    allocate,
    byte_limit,
    choose,
    choose_by_size,
    sample_size,
    stratified_limit,
    stratified_size,
    upper_limit,
)
from recovery_pipelines.errors import RecoveryError, SandboxError
from recovery_pipelines.plan.repositories import Reference, Sample
from recovery_pipelines.sandbox import Tree

_DIRECTORY = "directory"


@dataclass(frozen=True)
class Expectation:
    """What a backup should hold."""

    source: str
    """`manifest`, `live data`, or `the tool's own record`."""
    file: Path | None
    """A manifest; None for the tool's own record."""
    live: Path | None = None
    """Where it was captured just now, if it was."""


@dataclass(frozen=True)
class Outcome:
    """What verifying one backup showed."""

    files: int
    """In the backup, as far as is known: N."""
    size_bytes: int
    verified: int
    """Files that were looked at: n."""
    verified_bytes: int
    bad: dict[bytes, str]
    """What is wrong, by path."""
    changed_since: int
    """Entries that differ from the live data because those changed after the backup."""
    good: list[bytes]
    """Files that were looked at and are right."""
    undecided: int
    sizes_bytes: Mapping[bytes, int]
    """By path."""


@dataclass(frozen=True)
class Sampling:
    """What was drawn by lot, and from what."""

    sample: Sample
    drawn: list[bytes]
    sizes_bytes: npt.NDArray[np.int64]
    """Of all files."""
    strata: Sequence[int] = ()
    """Files in each folder of the first level."""
    sampled: Sequence[int] = ()
    """How many were drawn of each."""


@dataclass(frozen=True)
class Bounds:
    """Most files, and most bytes, that may be wrong; None where the sample says nothing of it."""

    files: int | None
    bytes: int | None


def expectation(reference: Reference, backup: Backup, scratch: Path) -> Expectation:
    """The strongest that there is for this backup. Captures the live data if it comes to that."""
    if reference.manifests:
        names = (backup.backup_id, backup.name)
        for name in names:
            file = reference.manifests / f"{name}.parquet"
            if file.is_file():
                return Expectation("manifest", file)
    if reference.live:
        file = scratch / "live.parquet"
        if not file.exists():
            manifest.capture(reference.live, file)
        return Expectation("live data", file, reference.live)
    return Expectation("the tool's own record", None)


def files_of(file: Path) -> tuple[list[bytes], list[int]]:
    """Paths of all entries of a manifest but directories, sorted, and their sizes."""
    table = manifest.read(file, ["path", "type", "size"])
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    wanted = [(path, size or 0) for path, kind, size in rows if kind != _DIRECTORY]
    return [path for path, _ in wanted], [size for _, size in wanted]


def draw(paths: Sequence[bytes], sizes: Sequence[int], sample: Sample, seed: bytes) -> Sampling:
    """As many as the statement of `sample` needs."""
    array = np.array(sizes, np.int64)
    if sample.by == "bytes":
        drawn = choose_by_size(paths, array, sample.bad_share, sample.confidence, seed)
        return Sampling(sample, drawn, array)
    if sample.by == "files":
        count = sample_size(len(paths), sample.bad_share, sample.confidence)
        return Sampling(sample, choose(paths, count, seed), array)
    folders: dict[bytes, list[bytes]] = {}
    for path in paths:
        folders.setdefault(path.partition(b"/")[0] if b"/" in path else b"", []).append(path)
    strata = [len(each) for each in folders.values()]
    count = stratified_size(strata, sample.bad_share, sample.confidence)
    sampled = allocate(strata, count)
    chosen = [choose(*each, seed) for each in zip(folders.values(), sampled, strict=True)]
    return Sampling(sample, [path for each in chosen for path in each], array, strata, sampled)


def verify(
    expected: Expectation,
    backup: Backup,
    tree: Path,
    chosen: Collection[bytes] | None,
    ignore: Collection[str],
    scratch: Path,
) -> Outcome:
    """Compare the restored `tree` with a manifest: all of it, or only the files `chosen`."""
    assert expected.file is not None
    found = scratch / "found.parquet"
    manifest.capture(tree, found)
    paths, sizes = files_of(expected.file)
    size_of = dict(zip(paths, sizes, strict=True))
    against = expected.file
    if chosen is not None:
        against = scratch / "chosen.parquet"
        manifest.subset(expected.file, chosen, against)
        manifest.subset(found, chosen, scratch / "found-chosen.parquet")
        found = scratch / "found-chosen.parquet"
    comparison = manifest.compare(against, found, ignore=ignore)
    bad, changed = _sorted_out(comparison.differences, expected, backup)
    looked_at = paths if chosen is None else list(chosen)
    undecided = set(comparison.undecided_entries["path"].to_pylist())
    verified = [path for path in looked_at if path not in changed and path not in undecided]
    return Outcome(
        files=len(paths),
        size_bytes=sum(sizes),
        verified=len(verified),
        verified_bytes=sum(size_of.get(path, 0) for path in verified),
        bad=bad,
        changed_since=len(changed),
        good=[path for path in verified if path not in bad],
        undecided=len(undecided),
        sizes_bytes=size_of,
    )


def part_outcome(
    comparison: manifest.Comparison,
    expected: Expectation,
    backup: Backup,
    file: Path,
    files: int,
    size_bytes: int,
) -> Outcome:
    """The same of a comparison that was made already, of `files` entries other than directories.

    `file` is a manifest that has them. Nothing is held for what is right.
    """
    bad, _ = _sorted_out(comparison.differences, expected, backup)
    undecided = comparison.undecided_entries["path"].to_pylist()
    sizes = manifest.sizes_of(file, {*bad, *undecided})
    unsure = [sizes[path] for path in undecided if path in sizes]
    return Outcome(
        files=files,
        size_bytes=size_bytes,
        verified=files - len(unsure),
        verified_bytes=size_bytes - sum(unsure),
        bad=bad,
        changed_since=0,
        good=[],
        undecided=len(undecided),
        sizes_bytes=sizes,
    )


def verify_record(contents: Contents, tree: Path) -> Outcome:
    """Compare names and sizes of the restored files with what the tool recorded."""
    bad = {}
    restored = Tree.read_only(tree)
    for name, size in contents.sizes_bytes.items():
        try:
            found = restored.stat(os.fsencode(name))
        except (OSError, SandboxError) as error:
            bad[os.fsencode(name)] = f"recorded, but not restored: {error}"
            continue
        if not stat.S_ISREG(found.st_mode):
            bad[os.fsencode(name)] = "recorded as a file, restored as something else"
        elif found.st_size != size:
            bad[os.fsencode(name)] = f"{size:,} bytes recorded, {found.st_size:,} restored"
    names = [os.fsencode(name) for name in contents.sizes_bytes]
    total = sum(contents.sizes_bytes.values())
    good = [name for name in names if name not in bad]
    sizes = {os.fsencode(name): size for name, size in contents.sizes_bytes.items()}
    return Outcome(len(names), total, len(names), total, bad, 0, good, 0, sizes)


def bounds(outcome: Outcome, sampling: Sampling | None) -> Bounds:
    """The most that may be wrong, at the sample's confidence; what was seen, where all was.

    Rests on the files that were drawn by lot alone, and is no less than what is known to be wrong.
    One that could not be judged counts as bad.
    """
    known = [outcome.sizes_bytes[path] for path in outcome.bad if path in outcome.sizes_bytes]
    if sampling is None or outcome.verified >= outcome.files:
        return Bounds(len(outcome.bad), sum(known))
    sample, good = sampling.sample, set(outcome.good)
    suspects = [path for path in sampling.drawn if path not in good]
    if sample.by == "bytes":
        sizes = [outcome.sizes_bytes[path] for path in suspects]
        limit = byte_limit(sampling.sizes_bytes, sample.bad_share, sample.confidence, sizes)
        return Bounds(None, max(limit, sum(known)))
    if sample.by == "files":
        drawn = len(sampling.drawn)
        limit = upper_limit(outcome.files, drawn, len(suspects), sample.confidence)
    else:
        strata, sampled = sampling.strata, sampling.sampled
        limit = stratified_limit(strata, sampled, len(suspects), sample.confidence)
    return Bounds(max(limit, len(known)), None)


def newest_mark(tree: Path, name: str) -> datetime:
    """The last time that a job wrote into the file `name`. RecoveryError if it holds none."""
    try:
        lines = Tree.read_only(tree).read(os.fsencode(name)).decode("ascii").split()
        return max(map(moment, lines))
    except (OSError, ValueError, SandboxError) as error:
        raise RecoveryError(f"the marks {name} of the restored data: {error}") from None


def _sorted_out(
    differences: pa.Table, expected: Expectation, backup: Backup
) -> tuple[dict[bytes, str], set[bytes]]:
    """What is wrong, by path, and what only changed in the live data after the backup."""
    bad: dict[bytes, str] = {}
    changed: set[bytes] = set()
    for row in differences.to_pylist():
        path = row["path"]
        if expected.live and _changed_after(expected.live, path, backup.created_at):
            changed.add(path)
        elif path not in bad:
            bad[path] = f"{row['kind']}: {row['expected']} → {row['found']}"
    return bad, changed


def _changed_after(live: Path, path: bytes, moment: datetime) -> bool:
    """Whether a live entry changed after a moment; of one that is gone, its nearest folder."""
    entry = live / os.fsdecode(path)
    while not os.path.lexists(entry) and entry != live:
        entry = entry.parent
    return entry.lstat().st_ctime >= moment.timestamp()
