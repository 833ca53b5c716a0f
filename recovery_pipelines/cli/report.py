"""`recovery report`: make the reports of a month and say where they are."""

from pathlib import Path

import click

from recovery_pipelines.cli.plan import plan_option
from recovery_pipelines.plan import find_plan, load_plan
from recovery_pipelines.reporting.publish import month_label, newest_month, write_reports
from recovery_pipelines.reporting.summary import summarize


@click.command(name="report")
@plan_option
@click.option("--month", help="The month, YYYY-MM; default: the newest that has a drill.")
def command(plan_path: Path | None, month: str | None) -> None:
    """Make the reports of a month from its results, and print where they are."""
    plan = load_plan(plan_path or find_plan())
    label = month_label(month) if month else newest_month(plan.data_home)
    publication = write_reports(plan.data_home, plan, label)
    summary = summarize(publication.report)
    click.echo(f"{label}: {summary.verdict}: {summary.headline}")
    for line in summary.attention:
        click.echo(f"  {line}")
    for file in publication.files:
        click.echo(file.path)
    for note in publication.notes:
        click.echo(note, err=True)
