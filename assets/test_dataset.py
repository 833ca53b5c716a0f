"""Stage 1: the data that a drill will damage and recover."""

from pathlib import Path

import dagster as dg

from recovery_pipelines.drills.recoveries import recovery_of
from recovery_pipelines.orchestration.stages import numbers, open_stage, stage_options
from recovery_pipelines.plan import DrillSpec

STAGE = "test_dataset"


def build(spec: DrillSpec) -> dg.AssetsDefinition:
    """The asset `<drill>/test_dataset`: the manifest of the data before anything happens."""

    @dg.asset(**stage_options(spec, STAGE, "The data of the drill, as a manifest."))
    def test_dataset(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Path]:
        with open_stage(context, spec, STAGE) as run:
            path = recovery_of(spec).create_test_dataset(run)
        metadata = numbers(run.dataset)
        snapshot = dg.MetadataValue.json(run.system_snapshot)
        return dg.MaterializeResult(value=path, metadata={**metadata, "system_snapshot": snapshot})

    return test_dataset
