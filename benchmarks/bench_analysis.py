"""What the tables, recommendations and a report cost as the history grows. Simulated drills."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import psutil
from race import console
from rich.table import Table

from campaigns.simulated import Month, leave_month, make_plan
from recovery_pipelines.analysis import drills, history
from recovery_pipelines.analysis.recommendations import recommendations

TARGETS = 10
T = TypeVar("T")


@click.command()
@click.option("--months", multiple=True, type=int, default=(12, 60, 120))
def main(months: tuple[int, ...]) -> None:
    """Ten drills a month; each table of the analysis on the whole history."""
    table = Table(title=f"seconds, {TARGETS} drills a month")
    for heading in ("months", "history", "trends", "anomalies", "recommendations", "peak MiB"):
        table.add_column(heading, justify="right")
    for count in months:
        with tempfile.TemporaryDirectory(prefix="bench-analysis-") as home:
            plan = make_plan(Path(home), {f"target_{at}": {} for at in range(TARGETS)})
            rng = np.random.default_rng(1)
            for position in range(count):
                for spec in plan.drills():
                    leave_month(spec, position, Month(), rng)
            rows, reading = timed(lambda home=home: history.load_history(Path(home)))
            by_month = history.monthly(rows)
            _, trends = timed(lambda by_month=by_month: drills.trends(by_month))
            _, anomalies = timed(lambda by_month=by_month: drills.anomalies(by_month))
            _, rules = timed(lambda home=home, plan=plan: recommendations(Path(home), plan))
            peak = psutil.Process().memory_info().rss / (1 << 20)
            table.add_row(
                str(count),
                *(f"{each:.2f}" for each in (reading, trends, anomalies, rules)),
                f"{peak:.0f}",
            )
    console.print(table)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


if __name__ == "__main__":
    main()
