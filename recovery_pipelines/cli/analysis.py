"""`recovery analysis`: what the drills so far say together, and answers to anomalies."""

from datetime import datetime
from pathlib import Path

import click
import pandas as pd

from recovery_pipelines.analysis import drills
from recovery_pipelines.analysis.acknowledgements import read_acknowledgements
from recovery_pipelines.analysis.history import load_history, missed_months, monthly
from recovery_pipelines.analysis.objectives import recovery_time_objectives
from recovery_pipelines.analysis.recommendations import assign as give
from recovery_pipelines.analysis.recommendations import recommendations
from recovery_pipelines.cli.plan import plan_option
from recovery_pipelines.plan import find_plan, load_plan


@click.group(name="analysis")
def command() -> None:
    """What the drills so far say together, and answers to anomalies."""


@command.command()
@plan_option
def show(plan_path: Path | None) -> None:
    """Print what the drills prove, baselines, growth, the forecast and anomalies."""
    plan = load_plan(plan_path or find_plan())
    home, objectives = plan.data_home, recovery_time_objectives(plan.drills())
    history = load_history(home)
    months, said = monthly(history), read_acknowledgements(home)
    problems = history[history["problem"].notna()]
    tables = {
        "What the drills prove": drills.recoverability(months),
        "Missed months": missed_months(history),
        "Damaged records": problems[["drill", "month", "run_id", "problem"]],
        "Newest month against the baseline": drills.compare_with_baseline(months, said),
        "Growth": drills.trends(months, said),
        "Recovery time to expect": drills.forecast(months, said, objectives),
        "Anomalies": drills.anomalies(months, said),
        "Recommendations": recommendations(home, plan, history=history),
    }
    for title, table in tables.items():
        click.echo(f"{title}\n{_text(table)}\n")


@command.command()
@plan_option
@click.argument("drill")
@click.argument("metric")
@click.argument("month")
@click.option("--by", required=True, help="Who says so.")
@click.option("--reason", required=True, help="Why the metric is no longer as usual.")
def acknowledge(
    plan_path: Path | None, drill: str, metric: str, month: str, by: str, reason: str
) -> None:
    """Say that an anomaly is known. If it lasts, its level is the new normal from MONTH on."""
    home = load_plan(plan_path or find_plan()).data_home
    said = drills.acknowledge(home, drill, metric, month, by, reason)
    effect = f"the baseline starts anew with {month}" if said.restarts_baseline else "it is over"
    click.echo(f"{drill} {metric} {month}: acknowledged by {by}; {effect}")


@command.command()
@plan_option
@click.argument("id")
@click.option("--owner", help="Who takes care of it.")
@click.option("--due", type=click.DateTime(["%Y-%m-%d"]), help="Until when.")
def assign(plan_path: Path | None, id: str, owner: str | None, due: datetime | None) -> None:
    """Give the recommendation ID an owner, a due date, or both."""
    if owner is None and due is None:
        raise click.UsageError("give --owner, --due, or both")
    plan = load_plan(plan_path or find_plan())
    said = give(plan.data_home, plan, id, owner, due.date() if due else None)
    click.echo(f"{id}: owner {said.owner or 'nobody'}, due {said.due or 'not set'}")


def _text(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, tablefmt="simple") if len(table) else "none"
