"""Drills that should have left a result by now, and did not."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from recovery_pipelines.files import replacing
from recovery_pipelines.notifications import notify
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.sandbox import exclusive, is_alive
from recovery_pipelines.sandbox.lease import private_directory

log = logging.getLogger("recovery_pipelines")

_FILE_NAME = "overdue.json"
_LOCK = "overdue"
_LOCK_TIMEOUT_SECONDS = 30.0

FirstStart = Callable[[str, datetime], datetime | None]
"""The first start that a cron schedule has in the month which begins then, if it has one."""


def tell_overdue(specs: Sequence[DrillSpec], first_start: FirstStart, now: datetime) -> list[str]:
    """Tell the teams of drills without a result for a month that is due; returns what was told.

    A month is due when its scheduled drills have had the longest time that they may take, retries
    included. What was scheduled before the first call for a drill does not count. Each drill and
    month is told once.
    """
    if not specs:
        return []
    plan = specs[0].plan
    told_now: list[str] = []
    with exclusive(plan.data_home, _LOCK, _LOCK_TIMEOUT_SECONDS):
        path = private_directory(plan.data_home, "notifications") / _FILE_NAME
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        missing: dict[tuple[str, str], list[DrillSpec]] = {}
        for spec in specs:
            watched = known.setdefault(spec.name, {"since": now.isoformat(), "told": []})
            since = datetime.fromisoformat(watched["since"])
            for month, start in _starts(spec, first_start, since, now):
                is_due = start >= since and start + longest_time(specs) <= now
                if is_due and month not in watched["told"] and _has_no_result(spec, month):
                    missing.setdefault((spec.group, month), []).append(spec)
                    watched["told"].append(month)
        for (group, month), drills in missing.items():
            names = [spec.name for spec in drills]
            notify(
                plan,
                drills[0].automation.notification,
                f"recovery drills overdue {month}: {', '.join(names)}",
                {
                    "group": group,
                    "month": month,
                    "drills": names,
                    "reason": "no result, though the schedule's time and all retries are over: "
                    "look whether Dagster's daemon runs, then backfill the month",
                },
            )
            told_now += [f"{name} {month}" for name in names]
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(known, indent=2), encoding="utf-8")
    return told_now


def longest_time(specs: Sequence[DrillSpec]) -> timedelta:
    """The longest time that the drills of a month may take, each with all its retries; a merge
    comes after its shards."""
    parallel = specs[0].controls.parallel_tests
    runs = [1 + (min(1, len(s.shards)) if parallel else len(s.shards)) for s in specs]
    seconds = [
        s.controls.timeout * (1 + s.controls.retry_attempts) * count
        for s, count in zip(specs, runs, strict=True)
    ]
    return timedelta(seconds=max(seconds) if parallel else sum(seconds))


def _starts(
    spec: DrillSpec, first_start: FirstStart, since: datetime, now: datetime
) -> Iterator[tuple[str, datetime]]:
    """Each month from `since` to `now` with its scheduled start."""
    cron = spec.automation.cron_schedule
    month = datetime(since.year, since.month, 1, tzinfo=UTC)
    while cron and month <= now:
        start = first_start(cron, month)
        if start is not None:
            yield f"{month:%Y-%m-01}", start
        month = (month + timedelta(days=32)).replace(day=1)


def _has_no_result(spec: DrillSpec, month: str) -> bool:
    home: Path = spec.plan.data_home
    if any((home / "drills" / spec.name / month).glob("*/record.json")):
        return False
    return not is_alive(home, spec.name)
