"""Analysis: what was not as usual, as events that people can acknowledge."""

import dagster as dg

from recovery_pipelines.analysis.drills import anomalies
from recovery_pipelines.analysis.history import keep_table
from recovery_pipelines.assets.drill_history import read_inputs, table_options
from recovery_pipelines.orchestration.stages import table
from recovery_pipelines.plan import Plan

NAME = "anomaly_detection"


def build(plan: Plan) -> dg.AssetsDefinition:
    """The asset `anomaly_detection`: one row per event."""

    @dg.asset(
        **table_options(
            plan,
            NAME,
            "Unusual values, level shifts and trends, each as one event until it is over. "
            "`recovery analysis acknowledge` answers one.",
        )
    )
    def anomaly_detection() -> dg.MaterializeResult[None]:
        events = anomalies(*read_inputs(plan.data_home))
        path = keep_table(plan.data_home, NAME, events)
        lasting = events[events["state"] == "open"]
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": len(events),
                "path": dg.MetadataValue.path(str(path)),
                "open_events": len(lasting),
                "open": table(lasting),
                "all_events": table(events.sort_values("first_month", ascending=False)),
            }
        )

    return anomaly_detection
