"""Tells the teams when a month's drill is overdue: nothing else notices what did not happen."""

from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg

from recovery_pipelines.drills.overdue import tell_overdue
from recovery_pipelines.orchestration.partitions import first_start
from recovery_pipelines.plan import DrillSpec


def build(specs: Sequence[DrillSpec]) -> dg.SensorDefinition:
    """The sensor `recovery_drill_overdue`."""

    @dg.sensor(
        name="recovery_drill_overdue",
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tells the plan's teams, once, of a month without its drill.",
    )
    def recovery_drill_overdue() -> dg.SkipReason:
        told = tell_overdue(specs, first_start, datetime.now(UTC))
        return dg.SkipReason(f"overdue: {', '.join(told)}" if told else "nothing is overdue")

    return recovery_drill_overdue
