"""Stage 6: the drill's metrics row; the end of the drill."""

from collections.abc import Iterator

import dagster as dg
import pandas as pd

from recovery_pipelines.analysis.objectives import judge_objectives, objective_names
from recovery_pipelines.drills.data_recovery import measure
from recovery_pipelines.drills.run import stages_of
from recovery_pipelines.orchestration import manual
from recovery_pipelines.orchestration.controls import forbid_retry
from recovery_pipelines.orchestration.demands import demand
from recovery_pipelines.orchestration.partitions import MONTHS
from recovery_pipelines.orchestration.stages import numbers, open_stage, stage_options, upstream
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.verdict import CheckResult, Verdict

STAGE = "recovery_metrics"
_FIRST = ("verdict", "recovery_seconds", "rpo_seconds", "lost_entries")
"""What people look for, before the rest of the row."""


def build(spec: DrillSpec) -> dg.AssetsDefinition:
    """The asset `<drill>/recovery_metrics`: one row; its numbers plot over the months.

    The plan's objectives are checks beside it that warn: the restore itself has its own verdict.
    """
    objectives = spec.target.objectives
    key = dg.AssetKey([spec.name, STAGE])

    @dg.asset(
        **stage_options(spec, STAGE, "Recovery time by phase, data loss, and what it cost."),
        ins={"differences": upstream(spec, stages_of(spec)[-2])},
        check_specs=[
            *(
                dg.AssetCheckSpec(name, asset=key, description=demand(name), partitions_def=MONTHS)
                for name in objective_names(objectives)
            ),
            *manual.check_specs(spec),
        ],
    )
    def recovery_metrics(
        context: dg.AssetExecutionContext, differences: pd.DataFrame
    ) -> Iterator[dg.MaterializeResult[pd.DataFrame]]:
        with open_stage(context, spec, STAGE) as run:
            measure(run)
        context.resources.recovery_drills.close()
        metadata = {
            **numbers({name: run.metrics.get(name) for name in _FIRST} | run.metrics),
            "folder": dg.MetadataValue.path(str(run.folder)),
            "evidence_head": dg.MetadataValue.text(run.evidence),
        }
        results = judge_objectives(objectives, run.metrics)
        yield dg.MaterializeResult(
            value=pd.DataFrame([run.metrics]),
            check_results=[
                *(_check_result(key, result) for result in results),
                *manual.check_results(spec),
            ],
            metadata=metadata,
        )
        if run.not_recovered:
            forbid_retry(context)
            raise dg.Failure(run.not_recovered)

    return recovery_metrics


def _check_result(key: dg.AssetKey, result: CheckResult) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=result.name,
        asset_key=key,
        passed=result.verdict is Verdict.PASS,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "verdict": str(result.verdict),
            "expected": result.expected,
            "found": result.found,
        },
        description=result.verdict.explanation,
    )
