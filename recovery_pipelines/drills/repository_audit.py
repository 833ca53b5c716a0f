"""The scenario `repository_audit`: does a backup that others made bring the data back?"""

import hashlib
import os
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pandas as pd

from recovery_pipelines.audits.coverage import CoverageLedger
from recovery_pipelines.audits.repositories import (
    Backup,
    Contents,
    Reader,
    Unrestorable,
    open_repository,
)
from recovery_pipelines.audits.verification import (
    Expectation,
    Outcome,
    chosen_by_lot,
    expectation,
    files_of,
    most_bad,
    newest_mark,
    verify,
    verify_record,
)
from recovery_pipelines.drills.preparation import prepare, require_resources
from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.errors import EngineError, RecoveryError
from recovery_pipelines.evidence import head_line
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.plan.repositories import Sample
from recovery_pipelines.tools import run_tool
from recovery_pipelines.verdict import CheckResult, Verdict

_HEADROOM = 1.2
_SHOWN = 5
_BACKUP_COLUMNS = ["backup", "name", "created_at", "age_seconds", "role"]
_FILE_COLUMNS = ["path", "problem"]


@dataclass
class Audit:
    """What the steps of one audit know."""

    reader: Reader
    backups: list[Backup]
    backup: Backup
    contents: Contents
    expected: Expectation
    seed: bytes
    drawn: list[bytes] | None = None
    """Files chosen by lot; None if all are verified."""
    added: list[bytes] = field(default_factory=list)
    """Files whose last verification is longest ago."""
    tree: Path | None = None
    outcome: Outcome | None = None
    refused: str = ""
    """Why the backup could not be restored."""

    @property
    def chosen(self) -> list[bytes] | None:
        return None if self.drawn is None else sorted({*self.drawn, *self.added})


def checks_of(spec: DrillSpec) -> tuple[str, ...]:
    """The checks beside the criteria: those that the target asks for."""
    target = spec.audited
    asked = {
        "backup_is_fresh": target.objectives.rpo_seconds is not None,
        "marks_are_fresh": target.marks is not None,
        "every_file_verified_in_time": target.coverage is not None,
        "command_succeeds": bool(target.verify_against.command),
    }
    return tuple(name for name, wanted in asked.items() if wanted)


def audit_restore(run: DrillRun) -> pd.DataFrame:
    """Choose a backup of the repository and restore it, or a sample of it, into the sandbox.

    Returns one row per backup: `backup`, `name`, `created_at`, `age_seconds`, `role`.
    """
    with run.stage("audit_restore"):
        prepare(run)
        run.state = audit = _begin(run)
        table = _backups(audit)
        run.keep("backups", table)
        _judge_freshness(run, audit)
        run.checks.append(_restore(run, audit))
    return table


def audit_verification(run: DrillRun) -> pd.DataFrame:
    """Verify what was restored against the strongest reference that there is.

    Returns one row per entry that is wrong: `path`, `problem`.
    """
    audit = _audit_of(run)
    table = pd.DataFrame(columns=_FILE_COLUMNS)
    with run.stage("audit_verification") as wanted:
        if wanted and audit.tree is not None:
            with run.phase("verify"):
                audit.outcome = _verified(run, audit, audit.tree)
            run.checks.append(_judge_data(run, audit))
            _judge_marks(run, audit, audit.tree)
            _judge_command(run, audit.tree)
            bad = audit.outcome.bad.items()
            table = pd.DataFrame(
                [(os.fsdecode(path), problem) for path, problem in bad], columns=_FILE_COLUMNS
            ).map(lambda text: text.encode("utf-8", "backslashreplace").decode())
        elif wanted:
            run.checks.append(
                CheckResult("data_match", Verdict.FAIL, "the data come back", audit.refused)
            )
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
            row = _measure(run, audit)
            _judge_coverage(run, audit)
            if run.verdict is Verdict.FAIL:
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


# --- choosing and restoring -------------------------------------------------------------


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
            "`path` and `match` of its repository in the plan"
        )
    seed = _seed(run)
    backup = backups[-1]
    if target.snapshot == "random":
        backup = backups[Random(seed).randrange(len(backups))]
    run.snapshots = [
        {"id": backup.backup_id, "kind": "audited", "created_at": backup.created_at.isoformat()}
    ]
    run.journal(event=f"audits {backup.name}", seed=seed.hex(), tool=reader.version())
    audit = Audit(reader, backups, backup, Contents("", {}, 0), _no_expectation(), seed)
    _plan_restore(run, audit)
    return audit


def _no_expectation() -> Expectation:
    return Expectation("nothing", None)


def _seed(run: DrillRun) -> bytes:
    """Of the newest evidence, so that nobody can choose what is looked at."""
    head = head_line(run.spec.plan.data_home)
    if head.startswith("none"):
        head = run.run_id
    return hashlib.sha256(f"{head} {run.spec.name}".encode()).digest()


def _plan_restore(run: DrillRun, audit: Audit) -> None:
    """Find out what the backup should hold, and draw what is looked at."""
    target = run.spec.audited
    scratch = run.sandbox.tree("manifests").path
    audit.expected = expectation(target.verify_against, audit.backup, scratch)
    audit.drawn, audit.added = None, []
    if target.sample is None:
        return
    if audit.expected.file is None:
        raise RecoveryError(
            f"no manifest for {audit.backup.name} in {target.verify_against.manifests}: without "
            "one no sample can be drawn; leave `sample` out, or give `live`"
        )
    paths, sizes = files_of(audit.expected.file)
    audit.drawn = chosen_by_lot(paths, sizes, target.sample, audit.seed)
    if target.coverage:
        rest = sorted(set(paths) - set(audit.drawn))
        audit.added = _ledger(run).stalest(rest, target.coverage.files)


def _restore(run: DrillRun, audit: Audit) -> CheckResult:
    """Restore what was chosen; sets `tree`, or `refused` if the tool cannot."""
    expected = f"{audit.reader.version()} restores {audit.backup.name}"
    began = datetime.now(UTC)
    staging = run.sandbox.tree("restored")
    staging.clear()
    chosen = audit.chosen
    try:
        audit.contents = audit.reader.contents(audit.backup)
        _require_room(run, audit)
        with run.phase("fetch"), run.working(f"restored {audit.backup.name}") as working:
            tree = audit.reader.restore(audit.backup, audit.contents, staging.path, chosen)
            working("all" if chosen is None else f"{len(chosen):,} files", 1.0)
    except Unrestorable as error:
        audit.tree, audit.refused = None, str(error)
        return CheckResult("backup_restores", Verdict.FAIL, expected, str(error))
    if not tree.is_dir():
        audit.tree, audit.refused = None, "the restored data lack the audited folder"
        return CheckResult("backup_restores", Verdict.FAIL, expected, audit.refused)
    audit.tree = tree
    seconds = (datetime.now(UTC) - began).total_seconds()
    return CheckResult("backup_restores", Verdict.PASS, expected, f"in {seconds:.1f} s")


def _require_room(run: DrillRun, audit: Audit) -> None:
    sizes = audit.contents.sizes_bytes
    needed, entries = sum(sizes.values()), audit.contents.entries
    if audit.drawn is not None and run.spec.audited.repository.tool != "directory":
        names = {os.fsdecode(path) for path in audit.chosen or ()}
        needed = sum(size for name, size in sizes.items() if name in names)
        entries = len(names)
    require_resources(run.sandbox.path, int(needed * _HEADROOM), int(entries * _HEADROOM))


# --- judging ----------------------------------------------------------------------------


def _verified(run: DrillRun, audit: Audit, tree: Path) -> Outcome:
    scratch = run.sandbox.tree("manifests").path
    if audit.expected.file is None:
        return verify_record(audit.contents, tree)
    ignore = _not_compared(run)
    return verify(audit.expected, audit.backup, tree, audit.chosen, ignore, scratch)


def _not_compared(run: DrillRun) -> tuple[str, ...]:
    promised = run.spec.audited.not_kept
    if os.geteuid() == 0 or "owner" in promised:
        return promised
    note = "aspect owner: only root can restore it"
    if note not in run.left_out:
        run.left_out.append(note)
    return (*promised, "owner")


def _judge_data(run: DrillRun, audit: Audit) -> CheckResult:
    outcome, source = audit.outcome, audit.expected.source
    assert outcome is not None
    sample = run.spec.audited.sample
    expected = f"every entry that is looked at is as {source} says"
    words = f"against {source}: {outcome.verified:,} of {outcome.files:,} files looked at"
    if audit.added:
        words += f" ({len(audit.drawn or ()):,} by lot, {len(audit.added):,} longest ago)"
    if outcome.bad:
        shown = [
            f"{os.fsdecode(path)!a} {what}" for path, what in list(outcome.bad.items())[:_SHOWN]
        ]
        words += f"; {len(outcome.bad):,} wrong: {'; '.join(shown)}"
        return CheckResult("data_match", Verdict.FAIL, expected, words)
    if outcome.changed_since:
        words += f"; {outcome.changed_since:,} changed since the backup and prove nothing"
        run.left_out.append(f"{outcome.changed_since:,} entries that changed since the backup")
    if outcome.undecided:
        words += f"; {outcome.undecided:,} could not be told"
        return CheckResult("data_match", Verdict.UNVERIFIED, expected, words)
    if not outcome.verified:
        return CheckResult("data_match", Verdict.UNVERIFIED, expected, f"{words}: nothing proven")
    words += _bound(audit, outcome, sample)
    if audit.expected.file is None:
        if not run.spec.audited.verify_against.command:
            words += "; names and sizes only, the content is not verified: give a reference"
            return CheckResult("data_match", Verdict.UNVERIFIED, expected, words)
        words += "; names and sizes only, the content is what the command says"
        run.left_out.append("content beyond what the command looks at")
    return CheckResult("data_match", Verdict.PASS, expected, words)


def _bound(audit: Audit, outcome: Outcome, sample: Sample | None) -> str:
    """What a sample without a wrong file says of all files."""
    if sample is None or outcome.verified >= outcome.files:
        return ""
    if sample.by == "files":
        return (
            f"; at most {most_bad(outcome, sample, audit.drawn or ()):,} of {outcome.files:,} "
            f"files are wrong ({sample.confidence:.0%})"
        )
    if not set(audit.drawn or ()) <= set(outcome.good):
        return "; not all that were drawn could be looked at: no bound on the bytes"
    return f"; less than {sample.bad_share:.3%} of the bytes is wrong ({sample.confidence:.0%})"


def _judge_freshness(run: DrillRun, audit: Audit) -> None:
    limit = run.spec.audited.objectives.rpo_seconds
    if limit is None:
        return
    age = _age_seconds(audit.backups[-1].created_at)
    run.measured["backup_age_seconds"] = age
    run.checks.append(_fresh("backup_is_fresh", "the newest backup", age, limit))


def _judge_marks(run: DrillRun, audit: Audit, tree: Path) -> None:
    target = run.spec.audited
    if target.marks is None:
        return
    name, limit = "marks_are_fresh", target.objectives.rpo_seconds
    mark = os.fsencode(target.marks)
    if audit.drawn is not None and not (tree / target.marks).exists():
        staging = run.sandbox.tree("marks").path
        tree = audit.reader.restore(audit.backup, audit.contents, staging, [mark])
    try:
        age = _age_seconds(newest_mark(tree / target.marks))
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


def _judge_command(run: DrillRun, tree: Path) -> None:
    command = run.spec.audited.verify_against.command
    if not command:
        return
    done = run_tool(
        command,
        cwd=tree,
        env=run.sandbox.environment,
        timeout_seconds=run.remaining_seconds(),
    )
    said = " ".join((done.stdout + b" " + done.stderr).decode(errors="replace").split())[-200:]
    verdict = Verdict.FAIL if done.returncode else Verdict.PASS
    found = f"exit code {done.returncode}" + (f": {said}" if said else "")
    run.checks.append(
        CheckResult("command_succeeds", verdict, f"{command[0]} ends with exit code 0", found)
    )


def _judge_coverage(run: DrillRun, audit: Audit) -> None:
    """Note what was verified, and see whether every file was in time."""
    coverage, file = run.spec.audited.coverage, audit.expected.file
    if audit.outcome is None or file is None:
        return
    ledger, now = _ledger(run), datetime.now(UTC)
    ledger.note(audit.outcome.good, now)
    ledger.save()
    if coverage is None:
        return
    never, late = ledger.outside(files_of(file)[0], coverage.days, now)
    found = f"{never:,} never, {late:,} longer ago, of {audit.outcome.files:,}"
    verdict = Verdict.UNVERIFIED if never else Verdict.STALE if late else Verdict.PASS
    expected = f"every file was verified within {coverage.days} days"
    run.checks.append(CheckResult("every_file_verified_in_time", verdict, expected, found))


# --- results ----------------------------------------------------------------------------


def _measure(run: DrillRun, audit: Audit) -> dict[str, object]:
    outcome = audit.outcome
    if outcome is None:
        return {}
    sample = run.spec.audited.sample
    run.recovered_files, run.recovered_bytes = outcome.verified, outcome.verified_bytes
    run.published = run.automated_verdict in (Verdict.PASS, Verdict.STALE)
    run.compared.append(
        {
            "backup": audit.backup.name,
            "entries": outcome.files,
            "compared": outcome.verified,
            "undecided": outcome.undecided,
            "is_sample": outcome.verified < outcome.files,
            "not_compared": list(_not_compared(run)),
        }
    )
    return {
        "backup": audit.backup.name,
        "verified_against": audit.expected.source,
        "files_in_backup": outcome.files,
        "bytes_in_backup": outcome.size_bytes,
        "files_verified": outcome.verified,
        "bytes_verified": outcome.verified_bytes,
        "entries_wrong": len(outcome.bad),
        "entries_changed_since": outcome.changed_since,
        "files_wrong_at_most": most_bad(outcome, sample, audit.drawn or ()),
        "confidence": sample.confidence if sample else 1.0,
        "seed": audit.seed.hex(),
    }


def _search_last_good(run: DrillRun, audit: Audit) -> dict[str, object]:
    """Try older backups, the newest first, until one is right."""
    older = [each for each in audit.backups if each.created_at < audit.backup.created_at]
    tried = older[::-1][: run.spec.audited.generations]
    bad = audit.backup
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
    other = replace(audit, backup=backup, tree=None, outcome=None, refused="")
    _plan_restore(run, other)
    _restore(run, other)
    if other.tree is None:
        return other.refused
    other.outcome = _verified(run, other, other.tree)
    judged = _judge_data(run, other)
    return "" if judged.verdict is Verdict.PASS else judged.found


def _backups(audit: Audit) -> pd.DataFrame:
    rows = [
        (
            backup.backup_id,
            backup.name,
            backup.created_at,
            _age_seconds(backup.created_at),
            "audited" if backup is audit.backup else "",
        )
        for backup in audit.backups
    ]
    return pd.DataFrame(rows, columns=_BACKUP_COLUMNS)


def _ledger(run: DrillRun) -> CoverageLedger:
    return CoverageLedger(run.spec.plan.data_home / "coverage" / f"{run.spec.name}.parquet")


def _age_seconds(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()


def _audit_of(run: DrillRun) -> Audit:
    assert isinstance(run.state, Audit)
    return run.state
