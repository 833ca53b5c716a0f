"""Joins the shards of an audit: one verdict, as if one worker had verified everything.

It goes by the sealed records of one round alone: each shard exactly once, the run that began last,
all of one backup, one manifest and one plan, their ranges end to end. A shard that is missing, was
not sealed or ended in ERROR keeps the audit from a PASS; what another has found stays found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from recovery_pipelines import manifest
from recovery_pipelines.audits.reader import Backup
from recovery_pipelines.audits.repositories import open_repository
from recovery_pipelines.audits.restic import Restic
from recovery_pipelines.audits.verification import expectation, part_outcome
from recovery_pipelines.drills.audit_trial import SHOWN
from recovery_pipelines.drills.preparation import prepare
from recovery_pipelines.drills.record import DrillRecord, read_record, results_of
from recovery_pipelines.drills.repository_audit import MARKS, checks_of, kept_wrong, note_verified
from recovery_pipelines.drills.run import MERGE_STAGE, DrillRun
from recovery_pipelines.drills.shard_round import Round, note_merged, read_round
from recovery_pipelines.drills.shard_trial import COMPARISON, reference_of
from recovery_pipelines.drills.tree_trial import TreeTrial
from recovery_pipelines.errors import EvidenceError, RecoveryError
from recovery_pipelines.evidence import Entry, read_chain
from recovery_pipelines.evidence.files import digests
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.verdict import CheckResult, Verdict, worst

_NOT_SEEN = "hard links between files of different shards that the manifest does not know"
_NOT_TRIED = "older backups: an audit in shards does not search for the last good one"
_SUMMED = ("fetch", "verify")
"""Phases: as if one worker had done them all in turn."""
_GREATEST = ("backup_age_seconds", "rpo_seconds")


@dataclass(frozen=True)
class _Part:
    """A shard with a sealed result."""

    spec: DrillSpec
    entry: Entry
    record: DrillRecord

    @property
    def number(self) -> int:
        assert self.spec.shard is not None
        return self.spec.shard.number

    @property
    def comparison(self) -> Path | None:
        file = self.record.folder / COMPARISON
        return file if COMPARISON in self.entry.files else None

    def check(self, name: str) -> CheckResult | None:
        return next((check for check in self.record.checks if check.name == name), None)


class _Merged(TreeTrial):
    """All shards together, judged as one trial."""

    def __init__(self, run: DrillRun, joined: Round, parts: Sequence[_Part]) -> None:
        reader = open_repository(
            run.spec.audited.repository,
            run.sandbox.tree("engine").path,
            run.remaining_seconds,
            run.sandbox.environment,
        )
        assert isinstance(reader, Restic)
        (about,) = parts[0].record.content["snapshots"]
        created_at = datetime.fromisoformat(about["created_at"])
        backup = Backup(joined.backup_id, joined.backup_name, created_at)
        super().__init__(run, reader, backup, bytes.fromhex(joined.seed))
        self.whole = reference_of(run.spec, backup)
        if manifest.read_info(self.whole)["digest"] != joined.manifest:
            raise RecoveryError(
                f"{self.whole} was replaced since the shards were verified: run them all again"
            )
        self.expected = expectation(run.spec.audited.verify_against, backup, Path())
        self.ignored: tuple[str, ...] = ()

    def join(self, parts: Sequence[_Part], lacking: bool) -> CheckResult | None:
        """`data_match` of the comparisons that the shards left; None if none did."""
        files = [file for part in parts if (file := part.comparison)]
        if not files:
            return None
        comparison = manifest.merge(files, lacking=lacking)
        self.ignored = comparison.ignored
        metrics = [part.record.metrics for part in parts if part.comparison]
        self.outcome = part_outcome(
            comparison,
            self.expected,
            self.backup,
            self.whole,
            sum(row.get("files_in_backup") or 0 for row in metrics),
            sum(row.get("bytes_in_backup") or 0 for row in metrics),
        )
        self.wrong = self.outcome.bad
        return self._judge()

    def _not_compared(self) -> tuple[str, ...]:
        return self.ignored

    def _judge_coverage(self) -> None:
        """Everything is verified each time."""


def audit_merge(run: DrillRun) -> pd.DataFrame:
    """One verdict of all shards, exactly as if the audit had been made in one piece.

    Returns one row per entry that is wrong: `path`, `problem`. Raises RecoveryError if a shard
    has no result, unless another one has found something.
    """
    with run.stage(MERGE_STAGE):
        prepare(run)
        joined = read_round(run.spec, run.month)
        if joined is None:
            raise RecoveryError(
                f"no shard of {run.spec.name} has run for {run.month}: launch the job "
                f"{run.spec.name}_shards, or `recovery audit {run.spec.target_name}`"
            )
        parts, lacking = _collect(run, joined)
        run.merged = [
            {
                "number": part.number,
                "entry": part.entry.seq,
                "sha256": part.entry.digest,
                "verdict": part.record.verdict,
            }
            for part in parts
        ]
        if parts:
            _judge(run, joined, parts, lacking)
        if lacking:
            _note_lacking(run, lacking)
        else:
            note_merged(run.spec, run.month, joined)
        table = kept_wrong(run, run.state.wrong if isinstance(run.state, _Merged) else {})
    return table


STEPS: dict[str, Callable[[DrillRun], pd.DataFrame]] = {MERGE_STAGE: audit_merge}


def _collect(run: DrillRun, joined: Round) -> tuple[list[_Part], list[str]]:
    """The shards with a result that counts, and why the others have none."""
    if joined.plan != run.spec.plan.identity["sha256"]:
        raise RecoveryError("the plan has changed since the shards ran: run them all again")
    sealed = {entry.folder: entry for entry in read_chain(run.spec.plan.data_home).drills}
    parts, lacking = [], []
    for number, spec in enumerate(run.spec.shards, 1):
        try:
            part = _sealed_part(run, spec, joined, sealed)
        except (OSError, RecoveryError) as error:
            lacking.append(f"shard {number}: {error}")
            continue
        parts.append(part)
        if part.record.errors or part.record.verdict is Verdict.ERROR:
            lacking.append(f"shard {number}: {part.record.reason}")
    return parts, lacking


def _sealed_part(
    run: DrillRun, spec: DrillSpec, joined: Round, sealed: dict[str | None, Entry]
) -> _Part:
    """The newest run of one shard, as it was sealed. EvidenceError if it is not of this audit."""
    assert spec.shard is not None
    number = spec.shard.number
    run_id = joined.runs.get(str(number))
    if run_id is None:
        raise EvidenceError("it has not run")
    folder = results_of(spec, run.month, run_id)
    entry = sealed.get(folder.relative_to(spec.plan.data_home).as_posix())
    if entry is None:
        raise EvidenceError(f"run {run_id} has not ended, was killed, or was not sealed")
    if digests(folder) != entry.files:
        raise EvidenceError(f"{folder} is not as it was sealed")
    part = _Part(spec, entry, read_record(folder))
    said = _identity(part)
    expected = {
        "shard": {
            "number": number,
            "of": spec.shard.count,
            "round": joined.round_id,
            "manifest": joined.manifest,
        },
        "backup": joined.backup_id,
        "plan": joined.plan,
        "range": _texts(joined.range_of(number)),
    }
    if not said and part.record.errors:
        return part  # it ended before it knew what to verify
    wrong = [name for name, value in expected.items() if said.get(name) != value]
    if wrong:
        raise EvidenceError(f"run {run_id} is of another {', '.join(wrong)}")
    return part


def _identity(part: _Part) -> dict[str, Any]:
    """What a shard says it has verified; empty if it did not come so far."""
    predicate, metrics = part.entry.predicate, part.record.metrics
    if "shard" not in predicate or not predicate["snapshots"]:
        return {}
    return {
        "shard": predicate["shard"],
        "backup": predicate["snapshots"][0]["id"],
        "plan": predicate["plan"]["sha256"],
        "range": (metrics["range_start"], metrics["range_end"]),
    }


def _texts(wanted: manifest.PathRange) -> tuple[str, str | None]:
    return wanted.start.decode(), None if wanted.end is None else wanted.end.decode()


def _judge(run: DrillRun, joined: Round, parts: Sequence[_Part], lacking: Sequence[str]) -> None:
    told = [part for part in parts if _identity(part)]
    if not told:
        return
    run.state = merged = _Merged(run, joined, told)
    run.snapshots = list(told[0].record.content["snapshots"])
    restores = _of_each("backup_restores", run, told)
    refused = restores is not None and restores.verdict is Verdict.FAIL
    found = [restores, _data_match(run, merged, told, bool(lacking) or refused)]
    for name in checks_of(run.spec):
        found.append(_of_each(name, run, told) if name != MARKS else _of_marks(told, refused))
    run.checks += [check for check in found if check]
    _require_no_better(run, told)
    for phase in _SUMMED:
        seconds = [part.record.metrics.get(f"{phase}_seconds") for part in told]
        run.phases[phase] = sum(each or 0.0 for each in seconds)
    for measure in _GREATEST:
        values = [part.record.metrics.get(measure) for part in told]
        run.measured |= (
            {measure: max(each)} if (each := [v for v in values if v is not None]) else {}
        )
    run.left_out += _left_out(run, told)
    run.published = not lacking and run.automated_verdict in (Verdict.PASS, Verdict.STALE)
    if measures := merged.measures():
        row = {"backup": merged.backup.name, "seed": joined.seed, **measures}
        run.measured |= row
        run.keep("audit", pd.DataFrame([row]))
    note_verified(run, merged.backup)


def _data_match(
    run: DrillRun, merged: _Merged, parts: Sequence[_Part], lacking: bool
) -> CheckResult | None:
    """Of all together; never better than what a shard said of its own part."""
    whole, each = merged.join(parts, lacking), _of_each("data_match", run, parts)
    if whole is None or each is None or worst([whole.verdict, each.verdict]) is whole.verdict:
        return whole or each
    return CheckResult(each.name, each.verdict, whole.expected, f"{each.found}; {whole.found}")


def _of_each(name: str, run: DrillRun, parts: Sequence[_Part]) -> CheckResult | None:
    """The worst that the shards said; UNVERIFIED at best if not every one said something."""
    count = len(run.spec.shards)
    said = [(part.record.drill, check) for part in parts if (check := part.check(name))]
    if not said:
        return None
    silent = count - len(said)
    verdict = worst([*(check.verdict for _, check in said), *[Verdict.UNVERIFIED] * (silent > 0)])
    worst_ones = [f"{drill}: {check.found}" for drill, check in said if check.verdict is verdict]
    texts = ([f"{silent} of {count} shards have not told"] if silent else []) + worst_ones[:SHOWN]
    found = f"in each of {count} shards" if verdict is Verdict.PASS else "; ".join(texts)
    return CheckResult(name, verdict, said[0][1].expected, found)


def _of_marks(parts: Sequence[_Part], refused: bool) -> CheckResult | None:
    """What the shard said that has them; it says nothing of what could not be restored."""
    said = next((check for part in parts if (check := part.check(MARKS))), None)
    if said or refused:
        return said
    return CheckResult(MARKS, Verdict.UNVERIFIED, "a time in the marks", "no shard has told")


def _require_no_better(run: DrillRun, parts: Sequence[_Part]) -> None:
    """Whatever kept a shard from a PASS, and be it something that no check tells, keeps all."""
    for part in parts:
        verdict = part.record.automated_verdict
        if worst([verdict, run.automated_verdict]) is not run.automated_verdict:
            run.note_error(RecoveryError(f"{part.spec.name} is {verdict}: {part.record.reason}"))


def _left_out(run: DrillRun, parts: Sequence[_Part]) -> list[str]:
    """What a shard did not prove, and what no shard can."""
    said = [*run.not_tested, *(text for part in parts for text in part.record.not_tested)]
    tried = run.automated_verdict is Verdict.FAIL and run.spec.audited.generations
    new = [*said, _NOT_SEEN, *([_NOT_TRIED] if tried else [])]
    return [text for text in dict.fromkeys(new) if text not in run.not_tested]


def _note_lacking(run: DrillRun, lacking: Sequence[str]) -> None:
    error = RecoveryError(
        f"{len(lacking)} of {len(run.spec.shards)} shards have no result: "
        f"{'; '.join(lacking[:SHOWN])}: run them again, then merge"
    )
    if not run.automated_verdict.is_finding:
        raise error
    run.note_error(error)
