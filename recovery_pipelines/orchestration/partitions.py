"""The months that drills belong to, the current one included, and the days of the monitoring."""

from collections.abc import Mapping
from datetime import UTC, datetime

import dagster as dg
from dagster._utils.schedules import cron_string_iterator

FIRST_MONTH = "2026-01-01"

MONTHS = dg.MonthlyPartitionsDefinition(start_date=FIRST_MONTH, end_offset=1)
DAYS = dg.DailyPartitionsDefinition(start_date=FIRST_MONTH)
"""The days (UTC) of the monitoring's aggregates."""


MONTH = "month"
"""The dimension of partitions that are for a month and something else."""
PARTITION_TAG = "dagster/partition"
MONTH_TAG = f"{PARTITION_TAG}/{MONTH}"


def month_of(tags: Mapping[str, str]) -> str | None:
    """The month of a run with these tags."""
    return tags.get(MONTH_TAG) or tags.get(PARTITION_TAG)


def current_month() -> str:
    """The partition key of the present month (UTC)."""
    return datetime.now(UTC).strftime("%Y-%m-01")


def month_of_tick(context: dg.ScheduleEvaluationContext) -> str:
    """The partition key of the month in which a schedule's tick lies (UTC)."""
    return MONTHS.get_partition_key_for_timestamp(
        context.scheduled_execution_time.timestamp(), end_closed=False
    )


def first_start(cron_schedule: str, month: datetime) -> datetime | None:
    """The schedule's first start in the month that begins at `month`, if it has one (UTC)."""
    start = next(cron_string_iterator(month.timestamp(), cron_schedule, "UTC"))
    return start if (start.year, start.month) == (month.year, month.month) else None
