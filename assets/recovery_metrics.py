"""Stage 6: the drill's metrics row; the end of the drill."""

import dagster as dg
import pandas as pd

from recovery_pipelines.drills.data_recovery import measure
from recovery_pipelines.orchestration.stages import numbers, open_stage, stage_options, upstream
from recovery_pipelines.plan import DrillSpec

STAGE = "recovery_metrics"


def build(spec: DrillSpec) -> dg.AssetsDefinition:
    """The asset `<drill>/recovery_metrics`: one row; its numbers plot over the months."""

    @dg.asset(
        **stage_options(spec, STAGE, "Recovery time by phase, data loss, and what it cost."),
        ins={"differences": upstream(spec, "checksum_validation")},
    )
    def recovery_metrics(
        context: dg.AssetExecutionContext, differences: pd.DataFrame
    ) -> dg.MaterializeResult[pd.DataFrame]:
        with open_stage(context, spec, STAGE) as run:
            measure(run)
        context.resources.recovery_drills.close()
        metadata = {
            **numbers(run.metrics),
            "folder": dg.MetadataValue.path(str(run.folder)),
            "evidence_head": dg.MetadataValue.text(run.evidence),
        }
        return dg.MaterializeResult(value=pd.DataFrame([run.metrics]), metadata=metadata)

    return recovery_metrics
