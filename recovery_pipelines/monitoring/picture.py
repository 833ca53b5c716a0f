"""Small pictures of the last day's metrics, for Dagster's metadata."""

import base64
import io
from pathlib import Path

import pandas as pd

from recovery_pipelines.monitoring.anomalies import Anomalies
from recovery_pipelines.monitoring.history import samples
from recovery_pipelines.plan.monitoring import METRIC_UNITS

_SHOWN = {
    "system_metrics": ("cpu.usage", "memory.usage", "disk.io"),
    "service_metrics": ("availability.response_time", "resources.cpu_usage"),
    "application_metrics": ("response_times.p95", "throughput.requests_per_second"),
    "service_checks": ("health.ok",),
    "dependency_checks": ("health.ok",),
}
_POINTS = 288


def picture(home: Path, section: str, since: float, until: float) -> dict[str, str]:
    """Base64 PNGs (below 20 KB, Dagster stores them several times) of a section's main metrics."""
    found = samples(home, since, until)
    found = found[found["section"] == section]
    pictures = {}
    for metric in _SHOWN[section]:
        rows = found[(found["metric"] == metric) & found["value"].notna()]
        if len(rows):
            pictures[f"plot_{metric}"] = _draw(metric, rows)
    return pictures


def picture_of_events(found: Anomalies) -> str | None:
    """The worst series of the last days, with its events marked; None if there is none."""
    if not len(found.worst):
        return None
    metric, entity = found.worst.iloc[0][["metric", "entity"]]
    of_series = (found.events["metric"] == metric) & (found.events["entity"] == entity)
    return _draw(str(metric), found.worst, found.events[of_series])


def _draw(metric: str, rows: pd.DataFrame, events: pd.DataFrame | None = None) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.2), dpi=72, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for entity, line in rows.groupby("entity"):
        step = max(1, len(line) // _POINTS)
        axes.plot(line["at"].iloc[::step], line["value"].iloc[::step], label=str(entity), lw=1)
    if events is not None:
        axes.plot(events["at"], events["value"], "rv", markersize=5, label="unusual")
        axes.legend(fontsize=6)
    if rows["entity"].nunique() > 1:
        axes.legend(fontsize=6)
    axes.set_title(f"{metric} ({METRIC_UNITS[metric]})", fontsize=8)
    axes.tick_params(labelsize=6)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return base64.b64encode(png.getvalue()).decode()
