"""Jobs and schedules: a job per drill, per scenario and per group, and the monthly start."""

from collections.abc import Iterator, Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from recovery_pipelines.drills.run import stages_of
from recovery_pipelines.orchestration.controls import run_tags
from recovery_pipelines.orchestration.partitions import month_of_tick
from recovery_pipelines.plan import DrillSpec

AnyJob = UnresolvedAssetJobDefinition
UNFINISHED = (
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
)
"""Runs that go on, or will, unless somebody stops them."""


def asset_keys(spec: DrillSpec) -> list[dg.AssetKey]:
    return [dg.AssetKey([spec.name, stage]) for stage in stages_of(spec)]


def belongs_to(run: dg.DagsterRun, spec: DrillSpec) -> bool:
    """Whether a run carries out stages of this drill."""
    keys = run.asset_selection or frozenset()
    if keys:
        return any(key.path[0] == spec.name for key in keys)
    if spec.shards:
        return run.job_name in (spec.name, shards_job_name(spec))
    return run.job_name in (spec.name, spec.scenario.name, spec.group)


def shards_job_name(spec: DrillSpec) -> str:
    return f"{spec.name}_shards"


def drill_job(
    name: str, specs: Sequence[DrillSpec], description: str
) -> UnresolvedAssetJobDefinition:
    """A job over the stages of one or several drills, in one process."""
    keys = [key for spec in specs for key in asset_keys(spec)]
    return job_over(name, keys, specs, description)


def job_over(
    name: str, keys: Sequence[dg.AssetKey], specs: Sequence[DrillSpec], description: str
) -> UnresolvedAssetJobDefinition:
    """A job over these assets of drills, in one process, with the drills' tags on its runs."""
    return dg.define_asset_job(
        name,
        dg.AssetSelection.assets(*keys),
        description=description,
        executor_def=dg.in_process_executor,
        run_tags=run_tags(specs),
    )


def jobs(specs: Sequence[DrillSpec]) -> list[UnresolvedAssetJobDefinition]:
    """A job for each drill and for each scenario of the plan; what merges shards waits for them, so
    it has its own alone."""
    found = [drill_job(spec.name, [spec], spec.scenario.description) for spec in specs]
    for scenario in dict.fromkeys(spec.scenario.name for spec in specs if not spec.shards):
        of_scenario = [s for s in specs if s.scenario.name == scenario and not s.shards]
        found.append(drill_job(scenario, of_scenario, f"Every drill of {scenario}"))
    return found


def drill_schedule(
    job: UnresolvedAssetJobDefinition, specs: Sequence[DrillSpec], cron_schedule: str
) -> dg.ScheduleDefinition:
    """Start the month's drills, each as a run of its own."""

    @dg.schedule(
        job=job,
        name=f"{job.name}_schedule",
        cron_schedule=cron_schedule,
        execution_timezone="UTC",
        description="Starts the month's drills, each as a run of its own.",
    )
    def start_drills(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        month = month_of_tick(context)
        for spec in specs:
            yield dg.RunRequest(
                run_key=f"{spec.name} {month}",
                partition_key=month,
                asset_selection=asset_keys(spec),
                tags=run_tags([spec]),
            )

    return start_drills


def monitoring_job(assets: Sequence[dg.AssetsDefinition]) -> UnresolvedAssetJobDefinition:
    """The job that rolls up one day, shows the state of everything and removes what is too old."""
    return dg.define_asset_job(
        "monitoring_daily",
        dg.AssetSelection.assets(*(asset.key for asset in assets)),
        description="Roll up one day of the monitoring, show its state, remove what is too old",
        executor_def=dg.in_process_executor,
    )
