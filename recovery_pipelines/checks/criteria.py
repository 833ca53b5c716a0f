"""The criteria that follow from comparing the recovered tree's manifest with the expected one.

A criterion is about every expected entry of its kind, since it may stand alone in a plan. So an
entry that is missing, or that cannot be read, fails each criterion that had to look at it; an
entry that could not be read even before the damage leaves the criterion unverified.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from recovery_pipelines.checks.base import (
    RecoveredState,
    count,
    examples,
    files_of,
    is_among,
    printable,
)
from recovery_pipelines.checks.canaries import catalogue_canaries
from recovery_pipelines.faults.base import Fault
from recovery_pipelines.verdict import CheckResult, Verdict


class AllFilesRecovered:
    """Nothing is missing, nothing is there that should not be, no file became something else."""

    name: ClassVar[str] = "all_files_recovered"

    def canaries(self, sample: RecoveredState) -> Sequence[Fault]:
        return catalogue_canaries("delete_file", "rename_file", "unexpected_file")

    def run(self, state: RecoveredState) -> CheckResult:
        undecided = state.comparison.undecided_entries
        files = files_of(state.expected_entries), files_of(state.found_entries)
        there = pc.and_(*(is_among(undecided["path"], side["path"]) for side in files))
        return _judge(
            self.name,
            state,
            subject=state.expected_entries,
            claim=f"({len(files[0])} files among them) are there, and no others",
            kinds=("missing", "unexpected", "type"),
            wrong=state.differences("missing", "unexpected", "type"),
            undecided=undecided.filter(pc.invert(there)),
        )


class ChecksumsMatch:
    """Every expected file is a file again, with the size and content that it had."""

    name: ClassVar[str] = "checksums_match"

    def canaries(self, sample: RecoveredState) -> Sequence[Fault]:
        return catalogue_canaries("bit_flip", "truncate", "encrypt_in_place", "swap_files")

    def run(self, state: RecoveredState) -> CheckResult:
        files = files_of(state.expected_entries)
        wrong = state.differences("content", "missing", "type")
        undecided = state.comparison.undecided_entries
        return _judge(
            self.name,
            state,
            aspect="checksums",
            subject=files,
            unit="files",
            claim="have the size and content that they had",
            kinds=("content",),
            wrong=wrong.filter(is_among(wrong["path"], files["path"])),
            undecided=undecided.filter(is_among(undecided["path"], files["path"])),
        )


class DirectoryStructureIntact:
    """Types, links and device numbers of all entries; directories and links are all there."""

    name: ClassVar[str] = "directory_structure_intact"

    def canaries(self, sample: RecoveredState) -> Sequence[Fault]:
        return catalogue_canaries(
            "symlink_retarget", "hard_link_break", "type_change", "empty_directory_lost"
        )

    def run(self, state: RecoveredState) -> CheckResult:
        kinds = ("type", "link_target", "hard_link_group", "device")
        one_sided = state.differences("missing", "unexpected")
        undecided = state.comparison.undecided_entries
        files = files_of(state.expected_entries), files_of(state.found_entries)
        sides = [is_among(one_sided["path"], side["path"]) for side in files]
        of_files = pc.or_(*sides)
        return _judge(
            self.name,
            state,
            aspect="structure",
            subject=state.expected_entries,
            claim="have their type, links and device; directories and links are all there",
            kinds=kinds,
            wrong=pa.concat_tables(
                [state.differences(*kinds), one_sided.filter(pc.invert(of_files))]
            ),
            undecided=undecided.filter(pc.invert(is_among(undecided["path"], files[0]["path"]))),
        )


class PermissionsCorrect:
    """Mode, owner, extended attributes (ACLs among them) and modification time of all entries."""

    name: ClassVar[str] = "permissions_correct"

    def canaries(self, sample: RecoveredState) -> Sequence[Fault]:
        return catalogue_canaries("chmod", "chown", "xattr_change", "acl_change", "mtime_change")

    def run(self, state: RecoveredState) -> CheckResult:
        kinds = ("mode", "owner", "xattr", "mtime")
        undecided = state.comparison.undecided_entries
        known = [
            side.filter(pc.and_(pc.is_valid(side["mode"]), pc.is_valid(side["xattr_xxh3_128"])))
            for side in (state.expected_entries, state.found_entries)
        ]
        looked_at = pc.and_(*(is_among(undecided["path"], side["path"]) for side in known))
        return _judge(
            self.name,
            state,
            aspect="permissions",
            subject=state.expected_entries,
            claim="have the mode, owner, extended attributes and mtime that they had",
            kinds=kinds,
            wrong=state.differences(*kinds, "missing"),
            undecided=undecided.filter(pc.invert(looked_at)),
        )


def _judge(
    name: str,
    state: RecoveredState,
    *,
    subject: pa.Table,
    claim: str,
    unit: str = "entries",
    kinds: Sequence[str],
    wrong: pa.Table,
    undecided: pa.Table,
    aspect: str | None = None,
) -> CheckResult:
    """The result of a criterion.

    `subject` are the expected entries that it is about, `kinds` what it compares, `wrong` the
    differences that fail it, `undecided` the entries that it had to look at and could not.
    """
    expected = f"{len(subject)} {unit} {claim}"
    ignored = [kind for kind in kinds if kind in state.comparison.ignored]
    reason = None
    if aspect is not None and aspect not in state.aspects:
        reason = f"the plan's validation.automated_checks.data_integrity leaves out {aspect!r}"
    elif len(ignored) == len(kinds):
        reason = f"the target does not promise to keep {', '.join(ignored)}"
    if reason:
        return CheckResult(name, Verdict.UNVERIFIED, expected, f"not compared: {reason}")

    unknown_before = pc.or_(
        is_among(undecided["path"], _with_error(state.expected_entries)),
        pc.starts_with(undecided["reason"], "unexpected"),
    )
    unknown = undecided.filter(unknown_before)
    unreadable = undecided.filter(pc.invert(unknown_before))
    bad = pc.unique(pa.chunked_array(wrong["path"].chunks + unreadable["path"].chunks, pa.binary()))
    not_good = pa.chunked_array([bad, *unknown["path"].chunks], pa.binary())
    good = len(subject) - count(is_among(subject["path"], not_good))

    found = f"{good} of {len(subject)} {unit} as expected"
    if len(bad):
        found += f"; {len(bad)} entries wrong{examples(_lines(wrong, unreadable))}"
    if len(unknown):
        found += (
            f"; {len(unknown)} entries could not be read before the damage, so nothing can be "
            f"said of them{examples(_lines(wrong.slice(0, 0), unknown))}"
        )
    if ignored:
        found += f"; not compared, as the target does not promise to keep it: {', '.join(ignored)}"
    if len(bad):
        return CheckResult(name, Verdict.FAIL, expected, found)
    proven = good > 0 and not len(unknown)
    return CheckResult(name, Verdict.PASS if proven else Verdict.UNVERIFIED, expected, found)


def _with_error(entries: pa.Table) -> pa.ChunkedArray:
    return entries.filter(pc.is_valid(entries["error"]))["path"]


def _lines(differences: pa.Table, undecided: pa.Table) -> Iterator[str]:
    for batch in differences.to_batches(1000):
        for row in batch.to_pylist():
            change = f"{row['kind']}: {row['expected']} → {row['found']}"
            yield f"{printable(row['path'])}, {change}"
    for batch in undecided.to_batches(1000):
        for row in batch.to_pylist():
            yield f"{printable(row['path'])}, {row['reason']}"
