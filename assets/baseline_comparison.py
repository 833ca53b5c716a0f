"""Analysis: each drill's newest month against the months before it."""

import dagster as dg

from recovery_pipelines.analysis.drills import INSUFFICIENT, compare_with_baseline
from recovery_pipelines.analysis.history import keep_table
from recovery_pipelines.assets.drill_history import read_inputs, table_options
from recovery_pipelines.orchestration.stages import numbers, table
from recovery_pipelines.plan import Plan

NAME = "baseline_comparison"


def build(plan: Plan) -> dg.AssetsDefinition:
    """The asset `baseline_comparison`: one row per drill and metric."""

    @dg.asset(
        **table_options(
            plan, NAME, "Each drill's newest month against its baseline, the months before it."
        )
    )
    def baseline_comparison() -> dg.MaterializeResult[None]:
        compared = compare_with_baseline(*read_inputs(plan.data_home))
        path = keep_table(plan.data_home, NAME, compared)
        unusual = compared[compared["outcome"] == "unusual"]
        values = compared[compared["metric"] == "recovery_seconds"]
        typical = {f"{row.drill} typical seconds": row.typical for row in values.itertuples()}
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": len(compared),
                "path": dg.MetadataValue.path(str(path)),
                "unusual_metrics": len(unusual),
                "without_enough_history": int((compared["outcome"] == INSUFFICIENT).sum()),
                **numbers(typical),
                "unusual": table(unusual),
                "recovery_time": table(values),
                "all_metrics": table(compared),
            }
        )

    return baseline_comparison
