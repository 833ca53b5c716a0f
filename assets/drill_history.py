"""Analysis: every drill so far, and what they prove together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from recovery_pipelines.analysis.acknowledgements import Acknowledgement, read_acknowledgements
from recovery_pipelines.analysis.drills import recoverability
from recovery_pipelines.analysis.history import (
    keep_table,
    load_history,
    missed_months,
    monthly,
    read_table,
)
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.orchestration.controls import asset_key
from recovery_pipelines.orchestration.stages import numbers, table
from recovery_pipelines.plan import DrillSpec, Plan

NAME = "drill_history"
GROUP = "analysis"

# Not `eager()`, which waits until every month of every drill is there: a missed month would stop
# it for ever. A drill that failed is news too.
_A_DRILL_ENDED = (
    dg.AutomationCondition.any_deps_updated()
    | dg.AutomationCondition.any_deps_match(dg.AutomationCondition.execution_failed().newly_true())
).since_last_handled()
_CONDITION = (
    _A_DRILL_ENDED
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
)


def build(plan: Plan, specs: Sequence[DrillSpec]) -> dg.AssetsDefinition:
    """The asset `drill_history`: one row per attempt; damaged records are rows with a problem."""
    home = plan.data_home

    @dg.asset(
        key=asset_key(plan, NAME),
        group_name=GROUP,
        deps=[dg.AssetKey([spec.name, "recovery_metrics"]) for spec in specs],
        automation_condition=_CONDITION.with_label("a drill has ended"),
        kinds={"parquet"},
        description="Every drill so far, what they prove together, and what is missing.",
        code_version="1",
    )
    def drill_history() -> dg.MaterializeResult[None]:
        history = load_history(home)
        path = keep_table(home, NAME, history)
        months = monthly(history)
        proven = recoverability(months)
        missed = missed_months(history)
        problems = history[history["problem"].notna()]
        shown = months[["drill", "month", "verdict", "proven", "attempts", "recovery_seconds"]]
        bounds = {
            f"{row.drill} success at least": row.success_at_least for row in proven.itertuples()
        }
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": len(history),
                "path": dg.MetadataValue.path(str(path)),
                "recoverability": table(proven),
                **numbers(bounds),
                "newest_drills": table(shown.sort_values("month", ascending=False)),
                "missed_months": table(missed),
                "damaged_records": len(problems),
                "problems": table(problems, ["drill", "month", "run_id", "problem"]),
            }
        )

    return drill_history


def table_options(plan: Plan, name: str, what: str) -> dict[str, Any]:
    """The arguments of `@dg.asset` for a table that is made of the history."""
    return {
        "key": asset_key(plan, name),
        "group_name": GROUP,
        "deps": [asset_key(plan, NAME)],
        "automation_condition": dg.AutomationCondition.eager(),
        "kinds": {"parquet"},
        "description": what,
        "code_version": "1",
    }


def read_inputs(home: Path) -> tuple[pd.DataFrame, list[Acknowledgement]]:
    """What the tables after this one are made of: the months, and what people said about them."""
    try:
        return monthly(read_table(home, NAME)), read_acknowledgements(home)
    except RecoveryError as error:
        raise dg.Failure(str(error)) from None
