"""The text formats of Prometheus and OpenMetrics, as they are read.

https://github.com/prometheus/docs/blob/main/content/docs/instrumenting/exposition_formats.md
"""

import re
from collections.abc import Iterator, Mapping
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
