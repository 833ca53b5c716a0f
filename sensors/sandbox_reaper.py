"""Removes what killed drills left behind, so that nothing waits for the next drill to start."""

from pathlib import Path

import dagster as dg

from recovery_pipelines.sandbox import reap


def build(home: Path) -> dg.SensorDefinition:
    """The sensor `recovery_sandbox_reaper`: removes only what dead leases under `home` name."""

    @dg.sensor(
        name="recovery_sandbox_reaper",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Removes what killed drills left behind.",
    )
    def recovery_sandbox_reaper(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        removed = reap(home) if home.is_dir() else []
        for name in removed:
            context.log.warning("removed what a killed drill left behind: %s", name)
        return dg.SkipReason(f"removed: {', '.join(removed)}" if removed else "nothing left behind")

    return recovery_sandbox_reaper
