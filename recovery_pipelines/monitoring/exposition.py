"""The text formats of Prometheus and OpenMetrics, read and written.

https://github.com/prometheus/docs/blob/main/content/docs/instrumenting/exposition_formats.md
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

_LINE = re.compile(
    r"^([a-zA-Z_:][a-zA-Z0-9_:]*)"
    r'(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?'
    r"[ \t]+(\S+)"
)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


class Point(NamedTuple):
    """One line of an exposition."""

    name: str
    labels: Mapping[str, str]
    value: float


def read_exposition(text: str) -> Iterator[Point]:
    """Every sample line; comments, and lines that are none of the format, are left out."""
    for line in text.split("\n"):
        match = _LINE.match(line.strip())
        if not match:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        labels = {
            name: re.sub(r'\\[\\"n]', lambda found: _ESCAPES[found[0]], text)
            for name, text in _LABEL.findall(match[2] or "")
        }
        yield Point(match[1], labels, value)


def write_exposition(points: Iterable[Point], units: Mapping[str, str]) -> str:
    """OpenMetrics text of gauges; points of one name must stand together.

    `units` gives each name's unit, which OpenMetrics wants at the end of the name.
    """
    lines, before = [], None
    for point in points:
        if point.name != before:
            lines.append(f"# TYPE {point.name} gauge")
            if point.name in units:
                lines.append(f"# UNIT {point.name} {units[point.name]}")
            before = point.name
        labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in point.labels.items())
        lines.append(f"{point.name}{{{labels}}} {_number(point.value)}")
    return "\n".join([*lines, "# EOF", ""])


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
