"""The months that drills belong to, the current one included, and the days of the monitoring."""

from datetime import UTC, datetime

import dagster as dg
from dagster._utils.schedules import cron_string_iterator

FIRST_MONTH = "2026-01-01"

MONTHS = dg.MonthlyPartitionsDefinition(start_date=FIRST_MONTH, end_offset=1)
DAYS = dg.DailyPartitionsDefinition(start_date=FIRST_MONTH)
"""The days (UTC) of the monitoring's aggregates."""


def current_month() -> str:
    """The partition key of the present month (UTC)."""
    return datetime.now(UTC).strftime("%Y-%m-01")


def first_start(cron_schedule: str, month: datetime) -> datetime | None:
    """The schedule's first start in the month that begins at `month`, if it has one (UTC)."""
    start = next(cron_string_iterator(month.timestamp(), cron_schedule, "UTC"))
    return start if (start.year, start.month) == (month.year, month.month) else None
