"""One shard of an audit is a partition of its own: runs of several go on beside each other."""

from collections.abc import Iterator

import dagster as dg
import pandas as pd

from recovery_pipelines.drills.data_recovery import measure
from recovery_pipelines.drills.repository_audit import MARKS
from recovery_pipelines.drills.run import SHARD_STAGE
from recovery_pipelines.drills.scenarios import scenario_of
from recovery_pipelines.orchestration.repositories import repository_key
from recovery_pipelines.orchestration.shards import part_of, partitions_of
from recovery_pipelines.orchestration.stages import (
    check_results,
    check_specs,
    numbers,
    open_stage,
    stage_options,
    table,
)
from recovery_pipelines.plan import DrillSpec


def build(spec: DrillSpec) -> dg.AssetsDefinition:
    """The asset `<drill>/audit_shard`, partitioned by month and shard."""
    first, partitions = spec.shards[0], partitions_of(spec)
    asked = [*spec.scenario.validation_criteria.names, *scenario_of(first).checks]
    names = [name for name in asked if name != MARKS]  # in one shard only: the merge shows it
    what = "Restore and verify one part of a backup, and leave a sealed record for the merge."
    options = stage_options(first, SHARD_STAGE, what)

    @dg.asset(
        **options | {"key_prefix": [spec.name], "partitions_def": partitions},
        deps=[repository_key(spec)],
        check_specs=check_specs(spec, SHARD_STAGE, names, partitions),
    )
    def audit_shard(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        part = part_of(spec, context.run.tags)
        with open_stage(context, part, SHARD_STAGE) as run:
            for step in scenario_of(part).steps.values():
                step(run)
            measure(run)
        context.resources.recovery_drills.close()
        yield dg.MaterializeResult(
            check_results=check_results(context, run, names),
            metadata={
                **numbers(run.metrics),
                "checks": table(pd.DataFrame(run.checks)),
                "folder": dg.MetadataValue.path(str(run.folder)),
                "evidence_head": dg.MetadataValue.text(run.evidence),
            },
        )

    return audit_shard
