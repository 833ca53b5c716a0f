"""Stage 2: a full backup and increments, read back before anything is damaged."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pandas as pd

from recovery_pipelines.drills.recoveries import recovery_of
from recovery_pipelines.orchestration.stages import (
    check_results,
    check_specs,
    open_stage,
    stage_options,
    table,
    upstream,
)
from recovery_pipelines.plan import DrillSpec

STAGE = "incremental_backups"


def build(spec: DrillSpec) -> dg.AssetsDefinition:
    """The asset `<drill>/incremental_backups`: one row per generation."""
    required = spec.plan.test_framework.test_execution.preparation.requirements
    checks = ["backup_verification"] if "backup_verification" in required else []

    @dg.asset(
        **stage_options(spec, STAGE, "A full backup and increments, with changes between them."),
        ins={"dataset": upstream(spec, "test_dataset")},
        check_specs=check_specs(spec, STAGE, checks),
    )
    def incremental_backups(
        context: dg.AssetExecutionContext, dataset: Path
    ) -> Iterator[dg.MaterializeResult[pd.DataFrame]]:
        with open_stage(context, spec, STAGE) as run:
            snapshots = recovery_of(spec).create_incremental_backups(run)
        yield dg.MaterializeResult(
            value=snapshots,
            check_results=check_results(context, run, checks),
            metadata={
                "dagster/row_count": len(snapshots),
                "added_bytes": int(snapshots["added_bytes"].sum()),
                "snapshots": table(
                    snapshots,
                    ["generation", "kind", "snapshot_id", "entries", "bytes", "added_bytes"],
                ),
            },
        )

    return incremental_backups
