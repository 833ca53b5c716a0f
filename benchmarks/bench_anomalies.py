"""The monitoring's anomaly events on labelled public data: what is found, and what is false.

DATA is a folder laid out as the Numenta Anomaly Benchmark: `data/<group>/<series>.csv` with columns
timestamp and value, and `labels/combined_windows.json`.
"""

import json
import math
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd
from race import console
from rich.table import Table

from recovery_pipelines.monitoring.anomalies import THRESHOLD, episodes, scores

_PROBATION_SHARE, _PROBATION_ROWS = 0.15, 750
_FALSE_WEIGHT = 0.11
"""Of a false event, in the benchmark's standard profile; a missed window costs 1."""
_MONTH_POINTS = 8640


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--threshold", "thresholds", multiple=True, type=float, default=(15.4, THRESHOLD, 21.4)
)
def main(data: Path, thresholds: tuple[float, ...]) -> None:
    """Windows found, false events and the benchmark's standard score at each threshold."""
    labels = json.loads((data / "labels" / "combined_windows.json").read_text())
    frames = {name: pd.read_csv(data / "data" / name, parse_dates=["timestamp"]) for name in labels}
    rows = sum(map(len, frames.values()))
    table = Table(title=f"{len(frames)} series, {rows} points")
    for heading in ("threshold", "windows found", "false events", "per 8640 points", "score", "s"):
        table.add_column(heading, justify="right")
    for threshold in thresholds:
        began = time.perf_counter()
        found, missed, false, score = 0, 0, 0, 0.0
        for name, frame in frames.items():
            windows = [tuple(map(pd.Timestamp, window)) for window in labels[name]]
            one = judge(frame, windows, threshold)
            found, missed, false = found + one[0], missed + one[1], false + one[2]
            score += one[3]
        total = found + missed
        table.add_row(
            f"{threshold:g}",
            f"{found} of {total}",
            str(false),
            f"{false / rows * _MONTH_POINTS:.2f}",
            f"{100 * (score + total) / (2 * total):.1f}",
            f"{time.perf_counter() - began:.1f}",
        )
    console.print(table)


def judge(
    frame: pd.DataFrame, windows: list[tuple[pd.Timestamp, ...]], threshold: float
) -> tuple[int, int, int, float]:
    """Windows found and missed, false events, and the raw score of one series."""
    probation = min(math.floor(_PROBATION_SHARE * len(frame)), int(_PROBATION_SHARE * 5000))
    at = frame["timestamp"]
    spans = [
        (int(at.searchsorted(begin)), int(at.searchsorted(end, side="right")) - 1)
        for begin, end in windows
    ]
    positions = [
        p for p in episodes(scores(frame["value"].to_numpy(float)), threshold) if p >= probation
    ]
    score, hit, false = 0.0, set(), 0
    for position in positions:
        inside = [span for span in spans if span[0] <= position <= span[1]]
        if not inside:
            false += 1
            score += _FALSE_WEIGHT * _false_cost(position, spans)
        elif inside[0] not in hit:
            begin, end = inside[0]
            hit.add(inside[0])
            score += _sigmoid(-(end - position + 1) / (end - begin + 1)) / _sigmoid(-1.0)
    missed = len(spans) - len(hit)
    return len(hit), missed, false, score - missed


def _false_cost(position: int, spans: list[tuple[int, int]]) -> float:
    """Less just after a window than far from any."""
    before = [span for span in spans if span[1] < position]
    if not before:
        return -1.0
    begin, end = before[-1]
    return _sigmoid((position - end) / max(1, end - begin))


def _sigmoid(position: float) -> float:
    return -1.0 if position > 3 else 2 / (1 + np.exp(5 * position)) - 1


if __name__ == "__main__":
    main()
