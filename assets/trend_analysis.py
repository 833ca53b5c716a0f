"""Analysis: how each drill's metrics grow, and the recovery time to expect."""

from collections.abc import Sequence

import dagster as dg

from recovery_pipelines.analysis.drills import forecast, trends
from recovery_pipelines.analysis.history import keep_table
from recovery_pipelines.analysis.objectives import recovery_time_objectives
from recovery_pipelines.assets.drill_history import read_inputs, table_options
from recovery_pipelines.orchestration.stages import numbers, table
from recovery_pipelines.plan import DrillSpec, Plan

NAME = "trend_analysis"


def build(plan: Plan, specs: Sequence[DrillSpec]) -> dg.AssetsDefinition:
    """The asset `trend_analysis`: one row per drill and metric; the forecast beside it."""

    @dg.asset(
        **table_options(plan, NAME, "Growth per month, and the recovery time to expect next month.")
    )
    def trend_analysis() -> dg.MaterializeResult[None]:
        months, said = read_inputs(plan.data_home)
        found = trends(months, said)
        path = keep_table(plan.data_home, NAME, found)
        ahead = forecast(months, said, recovery_time_objectives(specs))
        keep_table(plan.data_home, "forecast", ahead)
        growing = found[found["outcome"] == "growing"]
        expected = {
            f"{row.drill} expected seconds": row.expected_seconds for row in ahead.itertuples()
        }
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": len(found),
                "path": dg.MetadataValue.path(str(path)),
                "growing_metrics": len(growing),
                **numbers(expected),
                "forecast": table(ahead),
                "growing": table(growing),
                "all_metrics": table(found),
            }
        )

    return trend_analysis
