"""`python -m campaigns.services`: each service drill many times in a row. Goes on where it stopped.

What counts: that the verdict never differs, that nothing is left behind, and how far the times of
recovery, loss, detection and repair spread.
"""

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import click
import pandas as pd

from campaigns.history import MONTH, new_run_id
from campaigns.injections import Row
from recovery_pipelines.drills.scenarios import SCENARIOS, carry_out_steps
from recovery_pipelines.matrix.run import keep_rows
from recovery_pipelines.plan import DrillSpec, find_plan, load_plan
from recovery_pipelines.verdict import Verdict, worst

MEASURES = {
    "seconds": "whole drill",
    "recovery_seconds": "RTO",
    "rpo_seconds": "RPO",
    "detect_seconds": "detection",
    "publish_seconds": "repair",
    "client_gap_seconds": "client gap",
    "lost_entries": "writes lost",
    "load": "load",
}
"""Columns of the rows, and what the summary calls them."""


@click.command()
@click.option("--runs", default=20, help="Of each drill, those of earlier calls included.")
@click.option("--scenario", "scenarios", multiple=True, default=tuple(SCENARIOS))
@click.option("--drill", "drills", multiple=True, help="Only these, by name. Can be repeated.")
@click.option("--plan", "plan_path", type=click.Path(path_type=Path), help="Default: find it.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the rows; default: campaign/services in the data home.",
)
def main(
    runs: int,
    scenarios: tuple[str, ...],
    drills: tuple[str, ...],
    plan_path: Path | None,
    output: Path | None,
) -> None:
    """Run service drills, one after the other; the exit code is that of the worst verdict."""
    logging.getLogger("recovery_pipelines").setLevel(logging.ERROR)
    plan = load_plan(plan_path or find_plan())
    output = (output or plan.data_home / "campaign" / "services").absolute()
    plan = plan.model_copy(update={"data_home": output / "home"})
    wanted = [
        spec
        for spec in plan.drills()
        if spec.scenario.name in scenarios and (not drills or spec.name in drills)
    ]
    if not wanted:
        raise click.UsageError("the plan has no such drill on services")
    for number in range(runs):  # drills take turns: a busy hour does not fall on one of them
        for spec in wanted:
            path = output / f"{spec.name}.parquet"
            kept = pd.read_parquet(path).to_dict("records") if path.exists() else []
            if len(kept) > number:
                continue
            row = run_once(spec)
            click.echo(f"{number + 1:3} {spec.name} {row['verdict']} {row['seconds']:.1f} s")
            keep_rows(path, pd.DataFrame([*kept, row]))
    rows = pd.concat([pd.read_parquet(output / f"{spec.name}.parquet") for spec in wanted])
    (output / "summary.md").write_text(summary(rows), encoding="utf-8")
    click.echo(f"{summary(rows)}\nrows and summary in {output}")
    odd = rows[(rows["verdict"] != Verdict.PASS) | (rows["left"] != "")]
    for one in odd.to_dict("records"):
        told = f"{one['drill']} {one['run_id']}: {one['verdict']}: {one['reason']}"
        click.echo(f"{told}; left behind: {one['left'] or 'nothing'}", err=True)
    left = [Verdict.FAIL] if (rows["left"] != "").any() else []
    sys.exit(worst([*map(Verdict, rows["verdict"]), *left]).exit_code)


def run_once(spec: DrillSpec) -> Row:
    """One drill: its verdict, what it measured, and what it left behind."""
    began, load = time.monotonic(), os.getloadavg()[0]
    record = carry_out_steps(spec, MONTH, new_run_id("campaign"))
    seconds = time.monotonic() - began
    home = spec.plan.data_home
    left = [path.name for path in (home / "sandboxes").iterdir()]
    left += [path.name for path in home.glob("leases/*.json")]
    measured = {name: record.metrics.get(name) for name in MEASURES}
    return {
        "drill": spec.name,
        "run_id": record.run_id,
        "user_id": os.geteuid(),
        "verdict": str(record.verdict),
        "reason": record.reason,
        "left": ", ".join(left),
        **{name: None if value is None else float(value) for name, value in measured.items()},
        "seconds": seconds,
        "load": load,
    }


def summary(rows: pd.DataFrame) -> str:
    """A table as Markdown: one row per drill, each measure as `median (least to most)`."""
    lines = [_line(str(drill), of_drill) for drill, of_drill in rows.groupby("drill", sort=False)]
    return f"{pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)}\n"


def _line(drill: str, rows: pd.DataFrame) -> Mapping[str, object]:
    verdicts = Counter(rows["verdict"])
    return {
        "drill": drill,
        "verdicts": ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()),
        **{name: _spread(rows[column]) for column, name in MEASURES.items()},
    }


def _spread(values: "pd.Series[float]") -> str:
    known = values.dropna()
    if known.empty:
        return "-"
    median, least, most = (
        f"{value:.0f}" if value >= 100 else f"{value:.3g}"
        for value in (known.median(), known.min(), known.max())
    )
    return f"{median} ({least} to {most})"


if __name__ == "__main__":
    main()
