"""`recovery drill`: run drills outside the UI, with the same code, and show their verdicts.

A drill runs as a Dagster run in this process, on the instance that `recovery ui` shows.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import dagster as dg
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recovery_pipelines.assets.reports import JOB as REPORTS_JOB
from recovery_pipelines.build import build_definitions
from recovery_pipelines.cli.plan import plan_option
from recovery_pipelines.drills.failure import tell_failure
from recovery_pipelines.drills.record import DrillRecord, read_record, results_of
from recovery_pipelines.drills.shard_round import open_shards
from recovery_pipelines.errors import PlanError
from recovery_pipelines.evidence import head_line
from recovery_pipelines.orchestration.controls import pool_of
from recovery_pipelines.orchestration.instance import open_instance, prepare_home
from recovery_pipelines.orchestration.interrupted import fail_killed_runs
from recovery_pipelines.orchestration.jobs import shards_job_name
from recovery_pipelines.orchestration.partitions import current_month
from recovery_pipelines.orchestration.resources import COMMAND_TAG
from recovery_pipelines.orchestration.shards import partition_of
from recovery_pipelines.plan import DrillSpec, find_plan, load_plan
from recovery_pipelines.verdict import Verdict, worst

_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INVALID: "red"}

_WIDTH_WITHOUT_TERMINAL = 140
# The run's journal is shown instead of Dagster's own log, which the UI keeps.
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

console = Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)


@click.command(name="drill")
@plan_option
@click.option("--scenario", help="Only this scenario.")
@click.option("--engine", help="Only this engine.")
@click.option("--target", help="Only this target.")
@click.option("--month", default=current_month, help="Partition, YYYY-MM-01; default: now.")
def command(
    plan_path: Path | None, scenario: str | None, engine: str | None, target: str | None, month: str
) -> None:
    """Run the plan's drills. Exit 0 PASS, 1 FAIL or INVALID, 2 ERROR, 3 UNVERIFIED or STALE."""
    path = plan_path or find_plan()
    plan = load_plan(path)
    wanted = {"scenario": scenario, "engine": engine, "target": target}
    specs = [spec for spec in plan.drills() if _matches(spec, wanted)]
    if not specs:
        names = ", ".join(spec.name for spec in plan.drills())
        raise PlanError(f"no drill of {path} matches {wanted}; drills: {names or 'none'}")
    _log_to_console()
    definitions = build_definitions(plan)
    home = prepare_home(plan.data_home, path.absolute().parent)
    records = []
    with open_instance(home, pool_of(plan)) as instance:
        fail_killed_runs(plan.data_home, instance)
        for position, spec in enumerate(specs):
            record = _run(spec, month, definitions, instance)
            records.append(record)
            _show(record)
            failed = record.verdict in (Verdict.FAIL, Verdict.INVALID, Verdict.ERROR)
            if failed:
                rest = [other.name for other in specs[position + 1 :]]
                stops = spec.controls.failure_handling == "stop_and_notify"
                tell_failure(spec, month, record.run_id, record.reason, rest if stops else [])
                if stops and rest:
                    console.print(f"stopped after {spec.name}; not run: {', '.join(rest)}")
                    break
        wanted_reports = plan.test_framework.reporting.documentation.test_results.format
        reported = bool(wanted_reports) and _report(month, definitions, instance)
    _summarize(records)
    if reported:
        from recovery_pipelines.reporting.publish import report_folder  # slow

        console.print(f"reports: {report_folder(plan.data_home, month)}", soft_wrap=True)
    console.print(f"evidence head: {head_line(plan.data_home)}", soft_wrap=True)
    sys.exit(worst(record.verdict for record in records).exit_code)


def _matches(spec: DrillSpec, wanted: dict[str, str | None]) -> bool:
    given = {"scenario": spec.scenario.name, "engine": spec.engine, "target": spec.target_name}
    return all(value is None or given[key] == value for key, value in wanted.items())


def _log_to_console() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("recovery_pipelines")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False


def _run(
    spec: DrillSpec, month: str, definitions: dg.Definitions, instance: dg.DagsterInstance
) -> DrillRecord:
    """One drill, and its retries if it ends in ERROR. One in shards runs those that still lack a
    result, one after the other, and merges them."""
    for part in open_shards(spec, month) if spec.shards else []:
        record = _attempts(part, month, shards_job_name(spec), definitions, instance)
        _show(record)
    return _attempts(spec, month, spec.name, definitions, instance)


def _attempts(
    spec: DrillSpec,
    month: str,
    job_name: str,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
) -> DrillRecord:
    job = definitions.resolve_job_def(job_name)
    retries = 0 if spec.shards else spec.controls.retry_attempts
    for attempt in range(retries + 1):
        done = job.execute_in_process(
            instance=instance,
            partition_key=partition_of(spec, month) if spec.shard else month,
            run_config=_QUIET,
            tags=COMMAND_TAG,
            raise_on_error=False,
        )
        record = read_record(results_of(spec, month, done.run_id))
        if record.verdict is not Verdict.ERROR:
            break
        console.print(
            f"attempt {attempt + 1} of {spec.name} ended in ERROR: {escape(record.reason)}"
        )
    return record


def _report(month: str, definitions: dg.Definitions, instance: dg.DagsterInstance) -> bool:
    """Make the month's reports and send them; returns whether they are there."""
    done = definitions.resolve_job_def(REPORTS_JOB).execute_in_process(
        instance=instance,
        partition_key=month,
        run_config=_QUIET,
        tags=COMMAND_TAG,
        raise_on_error=False,
    )
    if not done.success:
        console.print(f"the reports were not made: see run {done.run_id} in `recovery ui`")
    return done.success


def _show(record: DrillRecord) -> None:
    table = Table("check", "verdict", "expected", "found", title=f"{record.drill} {record.month}")
    for check in record.checks:
        texts = (escape(check.expected), escape(check.found))
        table.add_row(check.name, _coloured(check.verdict), *texts)
    console.print(table)
    for line in (*record.messages, *record.not_tested):
        console.print(f"  {escape(line)}")


def _summarize(records: Sequence[DrillRecord]) -> None:
    verdicts = Table("drill", "verdict", "meaning", title="Verdicts")
    for record in records:
        verdicts.add_row(record.drill, _coloured(record.verdict), record.verdict.explanation)
    metrics = pd.DataFrame([record.metrics for record in records])
    shown = Table(title="Metrics", show_lines=False)
    shown.add_column("metric")
    for record in records:
        shown.add_column(record.drill, justify="right")
    for name in metrics.columns.drop(["drill", "month", "run_id", "verdict"]):
        shown.add_row(name, *(_number(value) for value in metrics[name]))
    console.print(shown, verdicts)
    for record in records:
        console.print(f"{record.drill}: results in {record.folder}", soft_wrap=True)


def _coloured(verdict: Verdict) -> str:
    colour = _COLOURS.get(verdict, "yellow")
    return f"[{colour}]{verdict}[/{colour}]"


def _number(value: object) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:,.3f}" if isinstance(value, float) else str(value)
