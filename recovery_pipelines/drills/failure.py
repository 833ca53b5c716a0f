"""Failures: the teams hear of each once, and again when it is over.

`notifications/failures.json` in the data home remembers for each drill the failure that the teams
were told of, and when the drill last passed.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recovery_pipelines.drills.record import DrillRecord, read_record, results_of
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.evidence.signoff import Standing
from recovery_pipelines.files import replacing
from recovery_pipelines.notifications import post, receipts, send_pending
from recovery_pipelines.plan import DrillSpec, Plan
from recovery_pipelines.sandbox import exclusive
from recovery_pipelines.sandbox.lease import private_directory
from recovery_pipelines.verdict import Verdict

log = logging.getLogger("recovery_pipelines")

_FILE_NAME = "failures.json"
_LOCK = "failures"
_LOCK_TIMEOUT_SECONDS = 30.0
_DIFFERS_EACH_TIME = re.compile(r"[0-9a-f]{8,}|\d+")


def tell_failure(
    spec: DrillSpec, month: str, run_id: str, reason: str, stopped: Sequence[str]
) -> None:
    """Tell the teams of the group's `automation.notification`.

    The same failure of the same target with the same engine is told once: until a drill passes
    again, fails in another way, or the message turns out to have reached nobody.
    """
    record = _record(spec, month, run_id)
    if record and record.reason not in reason:
        reason = f"{record.reason} ({reason})" if reason else record.reason
    what = _failure(record, reason)
    began_at = str(record.metrics["started_at"]) if record else datetime.now(UTC).isoformat()
    subject = f"recovery drill {spec.name} {month}: failed"
    if stopped:
        subject += f"; stopped: {', '.join(stopped)}"
    verdict = record.verdict if record else Verdict.ERROR
    details = {"run_id": run_id, "verdict": verdict, "reason": reason, "stopped": list(stopped)}
    _tell_once(spec, month, began_at, what, subject, details)


def tell_sign_off(plan: Plan, after: Standing) -> bool:
    """Tell the teams if the newest sign-off turned the effective verdict; returns whether it did.

    Never raises for what cannot be kept or sent. A drill that left the plan has no teams.
    """
    if after.before.verdict is after.verdict:
        return False
    predicate = after.drill.predicate
    drill, month, began_at = predicate["drill"], after.drill.month, predicate["started_at"]
    spec = next((spec for spec in plan.drills() if spec.name == drill["drill"]), None)
    if spec is None:
        log.warning("%s is not in the plan: nobody is told", drill["drill"])
    elif after.verdict is Verdict.PASS:
        tell_resolved(spec, month, datetime.fromisoformat(began_at))
    elif after.verdict is Verdict.FAIL:
        signed = after.sign_offs[-1]
        details = {
            "run_id": drill["run_id"],
            "verdict": after.verdict,
            "reason": f"{signed.check} was signed `fail` by {signed.by} ({signed.role})",
            "evidence": f"{signed.entry.seq} {signed.entry.digest}",
        }
        what = f"FAIL by sign-off of {signed.check}"
        subject = f"recovery drill {spec.name} {month}: failed by sign-off of {signed.check}"
        _tell_once(spec, month, began_at, what, subject, details)
    return True


def _tell_once(
    spec: DrillSpec,
    month: str,
    began_at: str,
    what: str,
    subject: str,
    details: Mapping[str, object],
) -> None:
    """Tell of the failure `what` of the drill that began then, unless the teams know of it."""
    details = {"drill": spec.name, "target": spec.target_name, "month": month, **details}
    teams = spec.automation.notification
    try:
        with _remembered(spec.plan.data_home) as failures:
            told = _told(failures, spec, what)
            message_id = told or post(spec.plan, teams, subject, details)
            before = failures.get(spec.name, {})
            if _is_latest(began_at, before.get("passed_at")):
                failures[spec.name] = before | {
                    "target": spec.target_name,
                    "engine": spec.engine,
                    "failure": what,
                    "failed_at": began_at,
                    "month": month,
                    "message_id": message_id,
                }
    except (OSError, RecoveryError) as error:
        log.error("whether this failure is known cannot be told (%s)", error)
        post(spec.plan, teams, subject, details)
    else:
        if told:
            log.info("%s %s failed as message %s says; not told again", spec.name, month, told)
    send_pending(spec.plan)


def tell_resolved(spec: DrillSpec, month: str, began_at: datetime) -> None:
    """A drill passed: if its failure was told and no other drill has it still, say that it is over.

    `began_at` is when the drill that passed began. Never raises for what cannot be kept or sent.
    """
    try:
        with _remembered(spec.plan.data_home) as failures:
            before = failures.get(spec.name, {})
            was_open = _is_open(before) and _after(began_at.isoformat(), before["failed_at"])
            failures[spec.name] = before | {"passed_at": began_at.isoformat()}
            if not was_open or _told(failures, spec, before["failure"]):
                return
            post(
                spec.plan,
                spec.automation.notification,
                f"recovery drill {spec.name} {month}: resolved",
                {
                    "drill": spec.name,
                    "target": spec.target_name,
                    "month": month,
                    "failed_in": before["month"],
                    "was": before["failure"],
                    "told_in_message": before["message_id"],
                },
            )
    except (OSError, RecoveryError) as error:
        log.error("the teams may not hear that %s is resolved: %s", spec.name, error)
    send_pending(spec.plan)


def passed(spec: DrillSpec, month: str, run_id: str) -> bool:
    """Whether this attempt passed: a run over several drills fails if one of them does."""
    record = _record(spec, month, run_id)
    return record is not None and record.verdict is Verdict.PASS


def _record(spec: DrillSpec, month: str, run_id: str) -> DrillRecord | None:
    """None if the drill was killed or never began."""
    try:
        return read_record(results_of(spec, month, run_id))
    except (OSError, RecoveryError, ValueError, KeyError, TypeError):
        return None


def _failure(record: DrillRecord | None, reason: str) -> str:
    """What failed, without what differs each time: numbers and names that were drawn."""
    if record is None:
        return _DIFFERS_EACH_TIME.sub("#", f"no record: {reason}")
    checks = [f"{c.name} {c.verdict}" for c in record.checks if c.verdict is not Verdict.PASS]
    return _DIFFERS_EACH_TIME.sub("#", "; ".join([record.verdict, *checks, *record.messages]))


def _told(failures: dict[str, Any], spec: DrillSpec, what: str) -> str | None:
    """The message that told of this failure of the target, if it is open and reached someone."""
    same = {"target": spec.target_name, "engine": spec.engine, "failure": what}
    ids = [
        entry["message_id"]
        for entry in failures.values()
        if _is_open(entry) and same.items() <= entry.items()
    ]
    table = receipts(spec.plan.data_home)
    reached = set(table[table["state"] != "failed"]["message_id"])
    return next((message_id for message_id in ids if message_id in reached), None)


def _is_open(entry: dict[str, Any]) -> bool:
    return "failed_at" in entry and _is_latest(entry["failed_at"], entry.get("passed_at"))


def _is_latest(failed_at: str, passed_at: str | None) -> bool:
    """Times are those of the drills' starts. A drill that passed can fail by a later sign-off."""
    return passed_at is None or not _after(passed_at, failed_at)


def _after(moment: str, other: str) -> bool:
    return datetime.fromisoformat(moment) > datetime.fromisoformat(other)


@contextmanager
def _remembered(home: Path) -> Iterator[dict[str, Any]]:
    """What is remembered, by drill; changes are kept when the block ends."""
    with exclusive(home, _LOCK, _LOCK_TIMEOUT_SECONDS):
        path = private_directory(home, "notifications") / _FILE_NAME
        try:
            failures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        except ValueError:
            log.error("%s is damaged: what is open is told again", path)
            failures = {}
        before = json.dumps(failures)
        yield failures
        if json.dumps(failures) != before:
            with replacing(path) as unfinished:
                unfinished.write_text(json.dumps(failures, indent=2), encoding="utf-8")
