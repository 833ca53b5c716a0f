"""`recovery ui`: open Dagster on the data of a plan's drills."""

import os
import sys
from pathlib import Path

import click

from recovery_pipelines.cli.plan import plan_option
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.orchestration.controls import pool_of
from recovery_pipelines.orchestration.instance import open_instance, prepare_home
from recovery_pipelines.orchestration.interrupted import fail_killed_runs
from recovery_pipelines.plan import find_plan, load_plan
from recovery_pipelines.plan.load import PLAN_VARIABLE


@click.command(name="ui")
@plan_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=3000, show_default=True)
def command(plan_path: Path | None, host: str, port: int) -> None:
    """Open Dagster: the web page and the daemon that runs schedules, sensors and queued drills."""
    path = (plan_path or find_plan()).absolute()
    plan = load_plan(path)
    home = prepare_home(plan.data_home, path.parent)
    with open_instance(home, pool_of(plan)) as instance:
        fail_killed_runs(plan.data_home, instance)
    dagster = Path(sys.executable).with_name("dagster")
    if not dagster.exists():
        raise RecoveryError("the `dagster` command is missing beside this Python: run `make setup`")
    location = ["-m", "recovery_pipelines.definitions", "--working-directory", str(path.parent)]
    environment = os.environ | {"DAGSTER_HOME": str(home), PLAN_VARIABLE: str(path)}
    click.echo(f"Dagster on http://{host}:{port} (data: {home}); stop with Ctrl-C")
    os.chdir(home)
    argv = [str(dagster), "dev", *location, "--host", host, "--port", str(port)]
    sys.stdout.flush()
    os.execve(dagster, argv, environment)  # so that Dagster itself gets the signals, and ends all
