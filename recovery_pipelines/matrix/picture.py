"""The heat map: kinds of fault down, detectors of each engine across, detected of total inside."""

import base64
import io

import pandas as pd

from recovery_pipelines.matrix.cells import DETECTORS

_CELL_INCHES = (0.62, 0.2)
_MARGIN_INCHES = (2.0, 1.4)


def heat_map(cells: pd.DataFrame, layer: str) -> str | None:
    """PNG in Base64 of the faults of one layer; None if there are none.

    Green is all detected, red none; an empty cell was not asked.
    """
    import matplotlib  # slow: only whoever draws pays for it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen = cells[cells["layer"] == layer]
    if chosen.empty:
        return None
    kinds = list(dict.fromkeys(chosen["kind"]))
    columns = [
        (engine, detector)
        for engine in dict.fromkeys(chosen["engine"])
        for detector in DETECTORS
        if ((chosen["engine"] == engine) & (chosen["detector"] == detector)).any()
    ]
    width = _MARGIN_INCHES[0] + _CELL_INCHES[0] * len(columns)
    height = _MARGIN_INCHES[1] + _CELL_INCHES[1] * len(kinds)
    figure = Figure(figsize=(width, height), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rates = [[float("nan")] * len(columns) for _ in kinds]
    for cell in chosen.to_dict("records"):
        row, column = kinds.index(cell["kind"]), columns.index((cell["engine"], cell["detector"]))
        rates[row][column] = cell["detected"] / cell["total"]
        text = f"{cell['detected']}/{cell['total']}"
        axes.text(column, row, text, ha="center", va="center", fontsize=6)
    axes.imshow(rates, cmap="RdYlGn", vmin=-0.3, vmax=1.3, aspect="auto")
    labels = [f"{engine} {detector}" for engine, detector in columns]
    axes.set_xticks(range(len(columns)), labels, rotation=60, ha="right", fontsize=6)
    axes.set_yticks(range(len(kinds)), kinds, fontsize=6)
    axes.set_title(f"faults in the {layer}: detected of asked", fontsize=8)
    png = io.BytesIO()
    with matplotlib.rc_context({"text.antialiased": False}):  # a fifth of the size
        figure.savefig(png, format="png")
    return base64.b64encode(png.getvalue()).decode()
