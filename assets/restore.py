"""Stage 4: detect, restore by recorded id into staging, verify there, publish."""

import dagster as dg
import pandas as pd

from recovery_pipelines.drills.recoveries import recovery_of
from recovery_pipelines.orchestration.stages import (
    numbers,
    open_stage,
    stage_options,
    table,
    upstream,
)
from recovery_pipelines.plan import DrillSpec

STAGE = "restore"


def build(spec: DrillSpec) -> dg.AssetsDefinition:
    """The asset `<drill>/restore`: one row per restored generation."""

    @dg.asset(
        **stage_options(spec, STAGE, "What was restored; published only after verification."),
        ins={
            "snapshots": upstream(spec, "incremental_backups"),
            "faults": upstream(spec, "corruption"),
        },
    )
    def restore(
        context: dg.AssetExecutionContext, snapshots: pd.DataFrame, faults: pd.DataFrame
    ) -> dg.MaterializeResult[pd.DataFrame]:
        with open_stage(context, spec, STAGE) as run:
            restored = recovery_of(spec).recover(run, snapshots)
        seconds = {f"{phase}_seconds": value for phase, value in run.phases.items()}
        return dg.MaterializeResult(
            value=restored,
            metadata={
                "dagster/row_count": len(restored),
                **numbers(seconds),
                "restored": table(restored),
            },
        )

    return restore
