"""`recovery monitor`: measure, and look at what was measured."""

import logging
import sys
import threading
import time
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recovery_pipelines.cli.plan import plan_option
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.plan import Plan, find_plan, load_plan
from recovery_pipelines.plan.monitoring import Monitoring


@click.group(name="monitor")
def command() -> None:
    """Measure hosts, services and applications, and look at what was measured."""


@command.command()
@plan_option
def run(plan_path: Path | None) -> None:
    """Measure until stopped with Ctrl-C or SIGTERM. Exit 3 if another collector runs."""
    from recovery_pipelines.monitoring import collector
    from recovery_pipelines.monitoring.supervise import write_settings

    plan, monitoring = _read(plan_path)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    write_settings(plan.data_home, monitoring)
    code = collector.main(plan.data_home, leased=False)
    if code == 3:
        click.echo(f"another collector measures into {plan.data_home} already", err=True)
    sys.exit(code)


@command.command()
@plan_option
def status(plan_path: Path | None) -> None:
    """Print the present state. Exit 0 healthy, 1 something failed, 3 blind or not checked."""
    from recovery_pipelines.monitoring.status import present_state

    plan, monitoring = _read(plan_path)
    state = present_state(plan.data_home, monitoring, time.time())
    console = Console()
    for title, frame in state.tables.items():
        table = Table(*frame.columns, title=title, title_justify="left")
        for row in frame.itertuples(index=False):
            table.add_row(*(escape(str(cell)) for cell in row))
        console.print(table)
    console.print(state.summary)
    sys.exit(state.exit_code)


@command.command()
@plan_option
@click.option("--address", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=9464, show_default=True, help="0: any free one.")
def export(plan_path: Path | None, address: str, port: int) -> None:
    """Serve the newest measurements to Prometheus (OpenMetrics) until stopped with Ctrl-C."""
    from recovery_pipelines.monitoring.export import serve

    plan, monitoring = _read(plan_path)
    port = serve(plan.data_home, monitoring, address, port)
    click.echo(f"http://{address}:{port}/metrics")
    threading.Event().wait()


@command.command(name="accept-clock")
@plan_option
@click.option("--by", required=True, help="Who says so.")
def accept_clock(plan_path: Path | None, by: str) -> None:
    """Say that the clock is right now, after it was set: old data may be removed again."""
    from recovery_pipelines.monitoring import rollup

    plan, _ = _read(plan_path)
    click.echo(f"{rollup.accept_clock(plan.data_home, by)} jumps of the clock accepted by {by}")


def _read(plan_path: Path | None) -> tuple[Plan, Monitoring]:
    path = plan_path or find_plan()
    plan = load_plan(path)
    if plan.monitoring is None:
        raise RecoveryError(f"{path} has no section `monitoring`: see docs/monitoring.md")
    return plan, plan.monitoring
