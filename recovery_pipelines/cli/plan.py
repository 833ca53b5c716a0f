"""`recovery plan`: look at the plan and validate it."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Column, Table

from recovery_pipelines.drills.data_recovery import require_known
from recovery_pipelines.plan import find_plan, load_plan

plan_option = click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    help="The plan file; default: $RECOVERY_PLAN, else recovery.yaml here or above.",
)


@click.group(name="plan")
def command() -> None:
    """Look at the plan and validate it."""


@command.command()
@plan_option
def check(plan_path: Path | None) -> None:
    """Validate the plan and list its drills. Exit 0 valid, 2 not."""
    path = plan_path or find_plan()
    plan = load_plan(path)
    specs = plan.drills()
    table = Table(Column("drill", overflow="fold"), "group", "schedule")
    for spec in specs:
        require_known(spec)
        schedule = spec.automation.cron_schedule or "by hand"
        table.add_row(spec.name, spec.group, schedule)
    console = Console()
    console.print(table)
    console.print(f"{path}: valid; {len(specs)} drills; data home {plan.data_home}", soft_wrap=True)
