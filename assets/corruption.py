"""Stage 3: damage on purpose, seeded and recorded."""

import dagster as dg
import pandas as pd

from recovery_pipelines.drills.recoveries import recovery_of
from recovery_pipelines.orchestration.stages import open_stage, stage_options, table, upstream
from recovery_pipelines.plan import DrillSpec

STAGE = "corruption"


def build(spec: DrillSpec) -> dg.AssetsDefinition:
    """The asset `<drill>/corruption`: one row per fault."""

    @dg.asset(
        **stage_options(spec, STAGE, "What was damaged, where, with the state before and after."),
        ins={"snapshots": upstream(spec, "incremental_backups")},
    )
    def corruption(
        context: dg.AssetExecutionContext, snapshots: pd.DataFrame
    ) -> dg.MaterializeResult[pd.DataFrame]:
        with open_stage(context, spec, STAGE) as run:
            faults = recovery_of(spec).simulate_damage(run)
        return dg.MaterializeResult(
            value=faults,
            metadata={
                "dagster/row_count": len(faults),
                "faults": table(faults, ["kind", "path", "detail", "caught_by"]),
            },
        )

    return corruption
