"""Several ways to do the same work, measured in one run.

All competitors of a table run in turn, round by round; a ratio is the median over rounds of other
time / our time, so that what else happens on the machine hits both. Above 1 means that we are
faster. A tool that is not installed says so.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

RECOVERY = [sys.executable, "-c", "from recovery_pipelines.cli import main; main()"]
console = Console(width=110)


@dataclass(frozen=True)
class Competitor:
    """Something to measure: a shell command or a call."""

    name: str
    run: Callable[[], object] | str
    needs: tuple[str, ...] = ()
    seconds_allowed: float = 600

    def missing(self) -> list[str]:
        return [tool for tool in self.needs if shutil.which(tool) is None]

    def time(self) -> float:
        started = time.perf_counter()
        if callable(self.run):
            self.run()
        else:
            subprocess.run(
                ["bash", "-c", f"set -o pipefail; {self.run}"],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=self.seconds_allowed,
            )
        return time.perf_counter() - started


def measure(
    title: str, ours: str, competitors: list[Competitor], before: Callable[[], None], rounds: int
) -> None:
    """Measure in turn and print one table; `ours` names the competitor to compare with."""
    able = [one for one in competitors if not one.missing()]
    times: dict[str, list[float]] = {one.name: [] for one in able}
    for _ in range(rounds):
        for one in able:
            before()
            times[one.name].append(one.time())
    table = Table(title=f"{title} ({rounds} rounds, load {os.getloadavg()[0]:.1f})")
    for heading in ("", "median s", f"its time / {ours}", "per round"):
        table.add_column(heading, justify="left" if not heading else "right")
    for one in competitors:
        if one.name not in times:
            table.add_row(one.name, "missing", f"not installed: {', '.join(one.missing())}", "")
            continue
        ratios = [theirs / our for theirs, our in zip(times[one.name], times[ours], strict=True)]
        table.add_row(
            one.name,
            f"{statistics.median(times[one.name]):.3f}",
            f"{statistics.median(ratios):.2f}",
            " ".join(f"{ratio:.2f}" for ratio in ratios),
        )
    console.print(table)


def shell(*words: object) -> str:
    return " ".join(f"'{word}'" for word in words)
