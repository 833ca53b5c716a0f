"""Merges the shards of an audit when they are all there, or when nothing is gained by waiting."""

from collections.abc import Sequence
from functools import partial

import dagster as dg

from recovery_pipelines.drills.shard_round import due_merges
from recovery_pipelines.orchestration.controls import run_tags
from recovery_pipelines.orchestration.jobs import AnyJob
from recovery_pipelines.orchestration.shards import is_pending
from recovery_pipelines.plan import DrillSpec


def build(specs: Sequence[DrillSpec], jobs: Sequence[AnyJob]) -> dg.SensorDefinition:
    """The sensor `recovery_audit_merge` over audits in shards; `jobs` merge each of them.

    It goes by what the shards left in the data home, so it does not matter who ran them. A shard
    that runs or will be retried is waited for.
    """

    @dg.sensor(
        name="recovery_audit_merge",
        jobs=jobs,
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Merges the shards of an audit into one verdict.",
    )
    def recovery_audit_merge(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        requests = [
            dg.RunRequest(
                run_key=f"{spec.name} {month} {key}",
                job_name=spec.name,
                partition_key=month,
                tags=run_tags([spec]),
            )
            for spec in specs
            for month, key in due_merges(spec, partial(is_pending, context.instance, spec))
        ]
        if requests:
            return dg.SensorResult(run_requests=requests)
        return dg.SensorResult(skip_reason="no audit waits to be merged")

    return recovery_audit_merge
