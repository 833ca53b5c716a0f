"""Reporting: what to do about what the drills found."""

import dagster as dg

from recovery_pipelines.analysis.history import keep_table
from recovery_pipelines.analysis.recommendations import recommendations as recommend
from recovery_pipelines.assets.drill_history import table_options
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.orchestration.stages import table
from recovery_pipelines.plan import Plan

NAME = "recommendations"
GROUP = "reporting"

_SHOWN = ["priority", "title", "evidence", "action", "gain", "owner", "due", "opened", "id"]


def build(plan: Plan) -> dg.AssetsDefinition:
    """The asset `recommendations`: one row per problem, open ones first."""

    @dg.asset(
        **table_options(
            plan,
            NAME,
            "What to do about what the drills found, each with its evidence. "
            "`recovery analysis assign` gives one an owner and a due date.",
        )
        | {"group_name": GROUP}
    )
    def recommendations() -> dg.MaterializeResult[None]:
        try:
            found = recommend(plan.data_home, plan)
        except RecoveryError as error:
            raise dg.Failure(str(error)) from None
        path = keep_table(plan.data_home, NAME, found)
        lasting = found[found["state"] == "open"]
        closed = found[found["state"] == "closed"].sort_values("closed", ascending=False)
        urgent = lasting["priority"].isin(["critical", "high"])
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": len(found),
                "path": dg.MetadataValue.path(str(path)),
                "open": len(lasting),
                "open_critical_or_high": int(urgent.sum()),
                "recommendations": table(lasting.fillna(""), _SHOWN),
                "closed": table(closed, ["title", "opened", "closed", "id"]),
            }
        )

    return recommendations
