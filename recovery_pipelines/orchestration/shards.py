"""Audits in shards as Dagster runs them: a partition for each month and shard, a run for each."""

from collections.abc import Iterator, Mapping

import dagster as dg

from recovery_pipelines.drills.run import SHARD_STAGE
from recovery_pipelines.orchestration.controls import run_tags
from recovery_pipelines.orchestration.interrupted import should_retry
from recovery_pipelines.orchestration.jobs import UNFINISHED, AnyJob, job_over, shards_job_name
from recovery_pipelines.orchestration.partitions import MONTH, MONTH_TAG, MONTHS, month_of_tick
from recovery_pipelines.plan import DrillSpec

_SHARD = "shard"
_SHARD_TAG = f"dagster/partition/{_SHARD}"


def shard_key(spec: DrillSpec) -> dg.AssetKey:
    """The asset that holds all shards of an audit."""
    return dg.AssetKey([spec.name, SHARD_STAGE])


def partitions_of(spec: DrillSpec) -> dg.MultiPartitionsDefinition:
    names = [part.shard.name for part in spec.shards if part.shard]
    return dg.MultiPartitionsDefinition(
        {MONTH: MONTHS, _SHARD: dg.StaticPartitionsDefinition(names)}
    )


def partition_of(part: DrillSpec, month: str) -> dg.MultiPartitionKey:
    assert part.shard is not None
    return dg.MultiPartitionKey({MONTH: month, _SHARD: part.shard.name})


def part_of(spec: DrillSpec, tags: Mapping[str, str]) -> DrillSpec:
    """What a run with these tags carries out: one shard of a drill, or the drill itself."""
    name = tags.get(_SHARD_TAG)
    return next((part for part in spec.shards if part.shard and part.shard.name == name), spec)


def shards_job(spec: DrillSpec) -> AnyJob:
    """A job over the shards: a run for each."""
    description = f"The shards of {spec.name}: launch all of a month as a backfill."
    return job_over(shards_job_name(spec), [shard_key(spec)], spec.shards[:1], description)


def shards_schedule(job: AnyJob, spec: DrillSpec, cron_schedule: str) -> dg.ScheduleDefinition:
    """Start the month's shards, each as a run of its own."""

    @dg.schedule(
        job=job,
        name=f"{job.name}_schedule",
        cron_schedule=cron_schedule,
        execution_timezone="UTC",
        description="Starts the month's shards, each as a run of its own.",
    )
    def start_shards(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        month = month_of_tick(context)
        for part in spec.shards:
            yield dg.RunRequest(
                run_key=f"{part.name} {month}",
                partition_key=partition_of(part, month),
                tags=run_tags([part]),
            )

    return start_shards


def is_pending(instance: dg.DagsterInstance, spec: DrillSpec, month: str) -> bool:
    """Whether a shard of the month runs, waits to run, or will be retried."""
    newest: dict[str, dg.DagsterRun] = {}
    for run in instance.get_runs(dg.RunsFilter(tags={MONTH_TAG: month})):  # the newest first
        if run.job_name == shards_job_name(spec) or shard_key(spec) in (run.asset_selection or ()):
            newest.setdefault(part_of(spec, run.tags).name, run)
    return any(
        run.status in (*UNFINISHED, dg.DagsterRunStatus.CANCELING)
        or (run.status is dg.DagsterRunStatus.FAILURE and should_retry(instance, run))
        for run in newest.values()
    )
