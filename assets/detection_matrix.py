"""Detection matrix: which damage is noticed by whom, measured by planting it in generated data."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pandas as pd

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.faults.base import Layer
from recovery_pipelines.matrix.cells import CHECKS, cells, judge, silent_restores, totals
from recovery_pipelines.matrix.picture import heat_map
from recovery_pipelines.matrix.run import carry_out_matrix
from recovery_pipelines.orchestration.controls import asset_key, pool_of
from recovery_pipelines.orchestration.partitions import MONTHS
from recovery_pipelines.orchestration.stages import table
from recovery_pipelines.plan import Plan
from recovery_pipelines.plan.matrix import DetectionMatrix
from recovery_pipelines.verdict import Verdict

GROUP = JOB = "detection_matrix"
NAME = "fault_detection"
"""Dagster does not allow an asset and a job of one name."""


def build(plan: Plan, wanted: DetectionMatrix) -> dg.AssetsDefinition:
    """The asset `fault_detection`: one row per trial, in the data home."""
    key = asset_key(plan, NAME)

    @dg.asset(
        key=key,
        group_name=GROUP,
        partitions_def=MONTHS,
        pool=pool_of(plan),
        kinds={"parquet", *wanted.engines},
        check_specs=[
            dg.AssetCheckSpec(name, asset=key, partitions_def=MONTHS, description=what)
            for name, what in CHECKS.items()
        ],
        description="Every kind of fault, planted in repositories and restored copies of "
        "generated data: who notices it, and who raises a false alarm?",
        code_version="1",
    )
    def fault_detection(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.MaterializeResult[None]]:
        try:
            path, rows = carry_out_matrix(plan, wanted, context.partition_key)
        except RecoveryError as error:
            raise dg.Failure(f"{type(error).__name__}: {error}") from None
        yield dg.MaterializeResult(
            metadata={"path": dg.MetadataValue.path(str(path)), **_metadata(rows)},
            check_results=[
                dg.AssetCheckResult(
                    check_name=result.name,
                    passed=result.verdict is Verdict.PASS,
                    metadata={
                        "verdict": str(result.verdict),
                        "expected": dg.MetadataValue.text(result.expected),
                        "found": dg.MetadataValue.text(result.found),
                    },
                    description=result.verdict.explanation,
                )
                for result in judge(rows)
            ],
        )

    return fault_detection


def job(plan: Plan) -> Any:
    """Measures the matrix of a month."""
    timeout = plan.test_framework.test_execution.execution_controls.timeout
    return dg.define_asset_job(
        JOB,
        dg.AssetSelection.assets(asset_key(plan, NAME)),
        description="Plants every kind of fault and counts who notices it",
        executor_def=dg.in_process_executor,
        run_tags={"dagster/max_runtime": str(timeout)},
    )


def _metadata(rows: pd.DataFrame) -> dict[str, Any]:
    counted = cells(rows)
    pictures = {
        layer: heat_map(counted, layer) for layer in (Layer.REPOSITORY, Layer.RESTORED_COPY)
    }
    return {
        "dagster/row_count": len(rows),
        **{
            f"faults in the {layer}": dg.MetadataValue.md(
                f"![faults in the {layer}](data:image/png;base64,{image})"
            )
            for layer, image in pictures.items()
            if image
        },
        "totals": table(totals(rows)),
        "silent_wrong_restores": table(silent_restores(rows)),
    }
