"""Deals with what killed drills left behind: sandboxes, unfinished runs, missed retries."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from recovery_pipelines.orchestration.interrupted import (
    fail_killed_runs,
    fail_unbegun_runs,
    missed_retries,
)
from recovery_pipelines.orchestration.jobs import AnyJob
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.sandbox import reap


def build(home: Path, specs: Sequence[DrillSpec], jobs: Sequence[AnyJob]) -> dg.SensorDefinition:
    """The sensor `recovery_sandbox_reaper`: removes only what dead leases under `home` name.

    `jobs` are those of the drills `specs`.
    """

    @dg.sensor(
        name="recovery_sandbox_reaper",
        jobs=jobs or None,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Removes what killed drills left behind; their runs fail and are retried.",
    )
    def recovery_sandbox_reaper(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        removed = reap(home) if home.is_dir() else []
        for name in removed:
            context.log.warning("removed what a killed drill left behind: %s", name)
        failed = fail_killed_runs(home, context.instance) if home.is_dir() else []
        if context.code_location_origin:
            location = context.code_location_origin.location_name
            failed += fail_unbegun_runs(home, context.instance, specs, location)
        for run_id in failed:
            context.log.warning("run %s was killed: it has failed", run_id)
        requests = missed_retries(context.instance, specs, [job.name for job in jobs])
        if requests:
            return dg.SensorResult(run_requests=requests)
        done = ", ".join([*removed, *failed])
        return dg.SensorResult(skip_reason=done or "nothing left behind")

    return recovery_sandbox_reaper
