"""Ninety simulated days of monitoring: are rollups exact, how large are they, how fast is a p95.

A service with its response times, its requests counted by a counter that is reset every three
days, and metrics of the host each minute.
"""

import tempfile
import time
from datetime import date, timedelta
from pathlib import Path

import click
import numpy as np
from race import console

from recovery_pipelines.monitoring.history import bounds, raw_path
from recovery_pipelines.monitoring.rollup import (
    aggregates,
    compact,
    prune,
    quantile_of,
    roll_up,
)
from recovery_pipelines.monitoring.sample import Counters, Sample
from recovery_pipelines.monitoring.sketch import sketch_of
from recovery_pipelines.monitoring.store import Tick, Writer, connect
from recovery_pipelines.plan.monitoring import Retention

FIRST = date(2026, 3, 1)
_REQUESTS_PER_LOOK = 20
_RESET_DAYS = 3


@click.command()
@click.option("--days", default=90)
@click.option("--interval", default=15, help="Seconds between two looks at the service.")
@click.option("--metrics", default=11, help="Of the host.")
def main(days: int, interval: int, metrics: int) -> None:
    """Print what was found; an aggregate that does not follow from raw data ends it."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="bench-monitoring-") as name:
        home = Path(name)
        latencies, busy = [], []
        counted, clock = 0.0, [0.0]
        counters = Counters(lambda: clock[0])
        total, rated = 0.0, 0.0
        raw_bytes = 0
        for number in range(days):
            day = FIRST + timedelta(days=number)
            begin, end = bounds(day)
            with connect(home) as connection:
                connection.execute("PRAGMA synchronous = OFF")
                writer = Writer(connection)
                if number % _RESET_DAYS == 0:
                    counted = 0.0
                for at in np.arange(begin, end, interval):
                    times = rng.lognormal(-3, 0.5, _REQUESTS_PER_LOOK)
                    latencies.append(times)
                    clock[0] = at
                    counted += _REQUESTS_PER_LOOK
                    increase = counters.increase("requests", counted)
                    if increase:
                        total, rated = total + _REQUESTS_PER_LOOK, rated + increase[0]
                    sample = Sample(
                        "response_times", "app", float(times.mean()), sketch_of(times.tolist())
                    )
                    rate = increase and increase[0] / increase[1]
                    requests = Sample("throughput.requests_per_second", "app", rate)
                    tick = Tick("application_metrics", at, at, 0.0)
                    writer.append(tick, [sample, requests], [])
                for at in np.arange(begin, end, 60.0):
                    values = rng.normal(50, 10, metrics)
                    busy.append(values[0])
                    writer.append(
                        Tick("system_metrics", at, at, 0.0),
                        [Sample("disk.usage", f"/{at}", v) for at, v in enumerate(values)],
                        [],
                    )
            roll_up(home, day, end + 3600)  # refuses what does not follow from the raw samples
            raw_bytes += raw_path(home, day).stat().st_size
            prune(home, Retention(), end + 3600)
            compact(home, end + 3600)
        console.print(f"{days} days: every aggregate follows from its raw samples")
        console.print(
            f"counter reset every {_RESET_DAYS} days: {rated:.0f} of {total:.0f} requests"
        )
        last = FIRST + timedelta(days=days - 1)
        for metric, values in (
            ("response_times", np.concatenate(latencies)),
            ("disk.usage", np.array(busy)),
        ):
            began = time.perf_counter()
            rows = aggregates(home, metric, FIRST, last)
            found = quantile_of(rows[rows["entity"].isin(["app", "/0"])], 0.95)
            seconds = time.perf_counter() - began
            exact = float(np.quantile(values, 0.95, method="lower"))
            console.print(
                f"p95 of {metric}: {found:.5f}, exact {exact:.5f} "
                f"({100 * ((found or 0) / exact - 1):+.2f} %), "
                f"{len(values)} values, {seconds:.3f} s"
            )
        files = sorted((home / "monitoring" / "aggregated").iterdir())
        size = sum(path.stat().st_size for path in files)
        console.print(
            f"{len(files)} files of aggregates, {size / 1e6:.1f} MB; "
            f"raw data {raw_bytes / days / 1e6:.2f} MB a day"
        )


if __name__ == "__main__":
    main()
