"""`python -m campaigns.rollback`: exceptions in the middle of the service drills' steps.

After each of a drill's requests to what it holds in namespaces, and after each of its steps, an
exception that nobody foresaw: the drill's own rollback must leave nothing, without a reaper.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import psutil

from campaigns.history import MONTH, drill_of, new_run_id, services_plan_text
from campaigns.injections import Row
from campaigns.kills import SERVICE_DRILLS
from campaigns.traces import Traces, await_end, traces_of
from recovery_pipelines.drills.data_recovery import measure
from recovery_pipelines.drills.lifecycle import open_drill
from recovery_pipelines.drills.record import folder_of, read_record
from recovery_pipelines.drills.scenarios import scenario_of
from recovery_pipelines.namespaces import Namespaced
from recovery_pipelines.plan import DrillSpec, parse_plan


class Injected(Exception):
    """No error of ours: nothing in a drill expects it."""


@dataclass
class _Trap:
    """Lets `left` events pass, then raises; notes what the drill held, and where it was."""

    left: int
    traces: Traces | None = None
    place: str = ""

    def spring(self, place: str) -> None:
        self.left -= 1
        if self.left == -1:
            self.place = place
            held = traces_of(os.getpid())
            others = held.processes - {psutil.Process()}
            self.traces = replace(held, session=-1, processes=others)
            raise Injected(place)


def break_at(spec: DrillSpec, number: int) -> Row | None:
    """Carry out a drill up to its `number`-th request or step, and raise; None if it ends before.

    `held` counts what it had then, `leftovers` is what is still there.
    """
    trap, run_id = _Trap(number), new_run_id("broken")
    exchange = Namespaced._exchange

    def asked(self: Namespaced, words: Mapping[str, Any], timeout_seconds: float) -> dict[str, Any]:
        answer = exchange(self, words, timeout_seconds)
        trap.spring(f"request {words.get('do', 'start')}")
        return answer

    try:
        with patch.object(Namespaced, "_exchange", asked), open_drill(spec, MONTH, run_id) as run:
            for name, step in scenario_of(spec).steps.items():
                step(run)
                trap.spring(f"after {name}")
            measure(run)
    except Injected:
        pass
    if trap.traces is None:
        return None
    home = spec.plan.data_home
    things = [path.name for path in (*home.glob("sandboxes/*"), *home.glob("leases/*.json"))]
    record = read_record(folder_of(home, spec.name, MONTH, run_id))
    return {
        "drill": spec.name,
        "number": number,
        "place": trap.place,
        "verdict": str(record.verdict),
        "held": trap.traces.count,
        "leftovers": things + await_end(trap.traces, home, ())[1],
    }


def service_drill(home: Path, name: str) -> DrillSpec:
    """A drill on services of the shipped plan, in `home`."""
    return drill_of(parse_plan(services_plan_text(home), name="recovery.yaml", folder=home), name)


@click.command()
@click.argument("home", type=click.Path(path_type=Path, file_okay=False))
@click.option("--drill", "drills", multiple=True, default=SERVICE_DRILLS)
@click.option("--every", default=1, help="Only every n-th place.")
def main(home: Path, drills: tuple[str, ...], every: int) -> None:
    """Break each drill at each place; exit 1 if anything was left."""
    logging.getLogger("recovery_pipelines").setLevel(logging.CRITICAL)
    failed = False
    for name in drills:
        spec = service_drill(home.absolute(), name)
        number = 0
        began = time.monotonic()
        while row := break_at(spec, number):
            seconds = time.monotonic() - began
            click.echo(f"{name} {number} {row['place']}: {row['verdict']}, {seconds:.0f} s")
            if row["leftovers"] or row["verdict"] != "ERROR" or not row["held"]:
                failed = True
                click.echo(f"FAIL: {row}", err=True)
            number += every
            began = time.monotonic()
    sys.exit(failed)


if __name__ == "__main__":
    main()
