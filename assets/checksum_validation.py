"""Stage 5: every validation criterion on every recovered tree, and the proof that it can fail."""

from collections.abc import Iterator

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

STAGE = "checksum_validation"


def check_names(spec: DrillSpec) -> list[str]:
    """The criteria of the plan and the two checks on the checks themselves."""
    return [*spec.scenario.validation_criteria.names, "all_faults_detected", "self_test"]


def build(spec: DrillSpec) -> dg.AssetsDefinition:
    """The asset `<drill>/checksum_validation`: one row per difference, checks beside it."""
    names = check_names(spec)

    @dg.asset(
        **stage_options(spec, STAGE, "What differs from the manifest, down to the last bit."),
        ins={"restored": upstream(spec, "restore"), "faults": upstream(spec, "corruption")},
        check_specs=check_specs(spec, STAGE, names),
    )
    def checksum_validation(
        context: dg.AssetExecutionContext, restored: pd.DataFrame, faults: pd.DataFrame
    ) -> Iterator[dg.MaterializeResult[pd.DataFrame]]:
        with open_stage(context, spec, STAGE) as run:
            differences = recovery_of(spec).validate(run, faults)
        yield dg.MaterializeResult(
            value=differences,
            check_results=check_results(context, run, names),
            metadata={
                "dagster/row_count": len(differences),
                "verdict": str(run.verdict),
                "checks": table(pd.DataFrame(run.checks)),
                "canaries": table(pd.DataFrame(run.canaries)),
                "differences": table(differences),
                "not_tested": dg.MetadataValue.md(
                    "\n".join(f"- {x}" for x in run.not_tested) or "(nothing)"
                ),
            },
        )

    return checksum_validation
