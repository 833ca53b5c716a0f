"""The scenario `repository_audit`: does a backup that others made bring the data back?"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pandas as pd

from recovery_pipelines.audits.coverage import CoverageLedger
from recovery_pipelines.audits.databases import DatabaseReader
from recovery_pipelines.audits.reader import Backup, Reader, TreeReader
from recovery_pipelines.audits.repositories import open_repository
from recovery_pipelines.audits.restic import Restic
from recovery_pipelines.drills.audit_trial import Trial
from recovery_pipelines.drills.database_trial import DatabaseTrial
from recovery_pipelines.drills.preparation import prepare
from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.drills.shard_round import Choice, join, note_begun
from recovery_pipelines.drills.shard_trial import ShardTrial, reference_of
from recovery_pipelines.drills.tree_trial import TreeTrial
from recovery_pipelines.errors import EngineError, RecoveryError
from recovery_pipelines.evidence import head_line
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.verdict import CheckResult, Verdict

_BACKUP_COLUMNS = ["backup", "name", "created_at", "age_seconds", "role"]
_WRONG_COLUMNS = ["path", "problem"]
MARKS = "marks_are_fresh"


@dataclass
class Audit:
    """What the steps of one audit know."""

    reader: Reader
    backups: list[Backup]
    trial: Trial


def checks_of(spec: DrillSpec) -> tuple[str, ...]:
    """The checks beside the criteria: those that the target asks for."""
    target = spec.audited
    asked = {
        "backup_is_fresh": target.objectives.rpo_seconds is not None,
        MARKS: target.marks is not None,
        "every_file_verified_in_time": target.coverage is not None,
        "command_succeeds": bool(target.verify_against.command),
        "pages_and_indexes_intact": target.is_database,
    }
    return tuple(name for name, wanted in asked.items() if wanted)


def audit_restore(run: DrillRun) -> pd.DataFrame:
    """Choose a backup of the repository and restore it, or a sample of it, into the sandbox.

    Returns one row per backup: `backup`, `name`, `created_at`, `age_seconds`, `role`.
    """
    with run.stage("audit_restore"):
        prepare(run)
        if run.spec.shard:
            note_begun(_whole(run), run.spec, run.month, run.run_id)
        run.state = audit = _begin(run)
        table = _backups(audit)
        run.keep("backups", table)
        _judge_freshness(run, audit)
        run.checks.append(audit.trial.restore())
    return table


def audit_verification(run: DrillRun) -> pd.DataFrame:
    """Verify what was restored against the strongest reference that there is.

    Returns one row per entry that is wrong: `path`, `problem`; of a database its queries.
    """
    trial = _audit_of(run).trial
    with run.stage("audit_verification") as wanted:
        if wanted and trial.refused:
            run.checks.append(
                CheckResult("data_match", Verdict.FAIL, "the data come back", trial.refused)
            )
        elif wanted:
            run.checks.append(trial.verify())
            _judge_marks(run, trial)
        table = kept_wrong(run, trial.wrong)
    return table


def kept_wrong(run: DrillRun, wrong: Mapping[bytes, str]) -> pd.DataFrame:
    """What is wrong, by path, as a table that stays with the results."""
    rows = [(_text(os.fsdecode(path)), _text(problem)) for path, problem in wrong.items()]
    table = pd.DataFrame(rows, columns=_WRONG_COLUMNS)
    run.keep("wrong_entries", table)
    return table


def audit_metrics(run: DrillRun) -> pd.DataFrame:
    """What the audit proves: how much was verified, with its exact bound, the last good backup.

    Returns one row; sizes in bytes, times in seconds.
    """
    audit = _audit_of(run)
    row: dict[str, object] = {}
    with run.stage("audit_metrics") as wanted:
        if wanted:
            run.published = run.automated_verdict in (Verdict.PASS, Verdict.STALE)
            if measures := audit.trial.measures():
                row = {
                    "backup": audit.trial.backup.name,
                    "seed": audit.trial.seed.hex(),
                    **measures,
                }
            if run.spec.shard is None:
                note_verified(run, audit.trial.backup)
            if run.verdict is Verdict.FAIL and run.spec.shard is None:
                row |= _search_last_good(run, audit)
            run.measured |= row
        table = pd.DataFrame([row])
        run.keep("audit", table)
    return table


STEPS = {step.__name__: step for step in (audit_restore, audit_verification, audit_metrics)}


def list_backups(spec: DrillSpec, work: Path, timeout_seconds: float) -> list[Backup]:
    """What the repository holds now, oldest first. EngineError if that cannot be told."""
    repository = spec.audited.repository
    return open_repository(repository, work, lambda: timeout_seconds, {}).backups()


def _text(said: str) -> str:
    """Names need not be text, and tables hold nothing else."""
    return said.encode("utf-8", "backslashreplace").decode()


# --- choosing ---------------------------------------------------------------------------


def _begin(run: DrillRun) -> Audit:
    target = run.spec.audited
    reader = open_repository(
        target.repository,
        run.sandbox.tree("engine").path,
        run.remaining_seconds,
        run.sandbox.environment,
    )
    backups = reader.backups()
    if not backups:
        raise EngineError(
            f"{target.repository.location} holds no backup of {run.spec.target_name}: look at "
            "its repository in the plan (`path`, `match`)"
        )
    if run.spec.shard:
        trial: Trial = _shard_trial(run, reader, backups)
    else:
        seed = _seed(run)
        trial = _trial(run, reader, _chosen(run, backups, seed), seed)
    backup, seed = trial.backup, trial.seed
    run.snapshots = [
        {"id": backup.backup_id, "kind": "audited", "created_at": backup.created_at.isoformat()}
    ]
    run.journal(event=f"audits {backup.name}", seed=seed.hex(), tool=reader.version())
    return Audit(reader, backups, trial)


def _chosen(run: DrillRun, backups: list[Backup], seed: bytes) -> Backup:
    how = run.spec.audited.snapshot
    if how == "random":
        return backups[Random(seed).randrange(len(backups))]
    if how == "stalest":
        by_id = {backup.backup_id.encode(): backup for backup in backups}
        (stalest,) = _verified_backups(run).stalest(list(by_id), 1)
        return by_id[stalest]
    return backups[-1]


def _trial(run: DrillRun, reader: Reader, backup: Backup, seed: bytes) -> Trial:
    if isinstance(reader, DatabaseReader):
        return DatabaseTrial(run, reader, backup, seed)
    assert isinstance(reader, TreeReader)
    return TreeTrial(run, reader, backup, seed)


def _shard_trial(run: DrillRun, reader: Reader, backups: list[Backup]) -> ShardTrial:
    """The part of the shard, of the backup that its round verifies."""
    assert isinstance(reader, Restic)

    def choose() -> Choice:
        seed = _seed(run)
        backup = _chosen(run, backups, seed)
        return backup, seed, reference_of(run.spec, backup)

    joined, backup = join(
        _whole(run),
        run.spec,
        run.month,
        run.run_id,
        backups,
        choose,
        lambda backup: reference_of(run.spec, backup),
    )
    return ShardTrial(run, reader, backup, joined)


def _whole(run: DrillRun) -> DrillSpec:
    """The audit that this shard is a part of."""
    target, name = run.spec.target_name, run.spec.scenario.name
    return next(
        spec
        for spec in run.spec.plan.drills()
        if (spec.target_name, spec.scenario.name) == (target, name)
    )


def _seed(run: DrillRun) -> bytes:
    """Of the newest evidence, so that nobody can choose what is looked at."""
    head = head_line(run.spec.plan.data_home)
    if head.startswith("none"):
        head = run.run_id
    return hashlib.sha256(f"{head} {run.spec.name}".encode()).digest()


def _verified_backups(run: DrillRun) -> CoverageLedger:
    """When each backup was last verified."""
    folder = run.spec.plan.data_home / "coverage"
    return CoverageLedger(folder / f"{run.spec.name}.backups.parquet")


def note_verified(run: DrillRun, backup: Backup) -> None:
    """A backup that was found wrong was verified too: `stalest` goes on to the next."""
    found = [check.verdict for check in run.checks if check.name == "data_match"]
    if found and found[0] in (Verdict.PASS, Verdict.FAIL):
        ledger = _verified_backups(run)
        ledger.note([backup.backup_id.encode()], datetime.now(UTC))
        ledger.save()


# --- judging ----------------------------------------------------------------------------


def _judge_freshness(run: DrillRun, audit: Audit) -> None:
    limit = run.spec.audited.objectives.rpo_seconds
    if limit is None:
        return
    age = _age_seconds(audit.backups[-1].created_at)
    run.measured["backup_age_seconds"] = age
    run.checks.append(_fresh("backup_is_fresh", "the newest backup", age, limit))


def _judge_marks(run: DrillRun, trial: Trial) -> None:
    target = run.spec.audited
    if target.marks is None or not trial.holds_marks:
        return
    name, limit = MARKS, target.objectives.rpo_seconds
    try:
        age = _age_seconds(trial.newest_mark())
    except RecoveryError as error:
        run.checks.append(CheckResult(name, Verdict.FAIL, "a time in the marks", str(error)))
        return
    run.measured["rpo_seconds"] = age
    if limit is None:
        found = f"the newest mark is {age:,.0f} s old, and no rpo_seconds says what is allowed"
        run.checks.append(CheckResult(name, Verdict.UNVERIFIED, "an objective", found))
    else:
        run.checks.append(_fresh(name, "the newest mark in the restored data", age, limit))


def _fresh(name: str, what: str, age: float, limit: float) -> CheckResult:
    verdict = Verdict.PASS if 0 <= age <= limit else Verdict.STALE if age > limit else Verdict.FAIL
    found = f"{what} is {age:,.0f} s old" + (": it lies in the future" if age < 0 else "")
    return CheckResult(name, verdict, f"{what} is at most {limit:,.0f} s old", found)


# --- older backups ----------------------------------------------------------------------


def _search_last_good(run: DrillRun, audit: Audit) -> dict[str, object]:
    """Try older backups, the newest first, until one is right."""
    bad = audit.trial.backup
    older = [each for each in audit.backups if each.created_at < bad.created_at]
    tried = older[::-1][: run.spec.audited.generations]
    audit.trial.close()
    for backup in tried:
        with run.working(f"tried {backup.name}") as working:
            reason = _why_bad(run, audit, backup)
            working(reason or "right", 1.0)
        if not reason:
            lost = (bad.created_at - backup.created_at).total_seconds()
            run.messages.append(
                f"the last good backup is {backup.name} of {backup.created_at:%Y-%m-%d %H:%M} UTC: "
                f"{lost:,.0f} s of changes are lost"
            )
            return {"last_good_backup": backup.name, "loss_window_seconds": lost}
    if tried:
        run.messages.append(f"none of the {len(tried)} backups before {bad.name} is good")
    return {}


def _why_bad(run: DrillRun, audit: Audit, backup: Backup) -> str:
    """Empty if it restores and is right. Its checks are no findings of this audit."""
    other = _trial(run, audit.reader, backup, audit.trial.seed)
    before = len(run.checks)
    try:
        other.restore()
        found = [] if other.refused else [other.verify(), *run.checks[before:]]
    finally:
        del run.checks[before:]
        other.close()
    bad = [check.found for check in found if check.verdict is not Verdict.PASS]
    return other.refused or "; ".join(bad)


# --- results ----------------------------------------------------------------------------


def _backups(audit: Audit) -> pd.DataFrame:
    rows = [
        (
            backup.backup_id,
            backup.name,
            backup.created_at,
            _age_seconds(backup.created_at),
            "audited" if backup is audit.trial.backup else "",
        )
        for backup in audit.backups
    ]
    return pd.DataFrame(rows, columns=_BACKUP_COLUMNS)


def _age_seconds(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()


def _audit_of(run: DrillRun) -> Audit:
    assert isinstance(run.state, Audit)
    return run.state
