"""The months that drills belong to: one partition per month, the current one included."""

from datetime import UTC, datetime

import dagster as dg

FIRST_MONTH = "2026-01-01"

MONTHS = dg.MonthlyPartitionsDefinition(start_date=FIRST_MONTH, end_offset=1)


def current_month() -> str:
    """The partition key of the present month (UTC)."""
    return datetime.now(UTC).strftime("%Y-%m-01")
