"""Distributions that can be added up: logarithmic buckets with 1 % relative error.

After DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with
relative-error guarantees", VLDB 2019). A sketch maps a bucket to a count; adding two sketches
loses nothing, so the p95 of a month is as right as that of a minute.
"""

import math
from collections.abc import Iterable

Sketch = dict[int, float]

RELATIVE_ERROR = 0.01
_LOG_GAMMA = math.log((1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR))
_SHIFT = 8192
"""Makes the buckets of positive values positive numbers; those of negative values negative."""
_INFINITE = 32767


def bucket(value: float) -> int:
    """The bucket of a value; 0 holds zero and what is too small to matter (below 1e-70)."""
    if value == 0:
        return 0
    if math.isinf(value):
        return _INFINITE if value > 0 else -_INFINITE
    index = math.ceil(math.log(abs(value)) / _LOG_GAMMA) + _SHIFT
    if index <= 0:
        return 0
    return index if value > 0 else -index


def value_of(bucket: int) -> float:
    """The value that stands for a bucket, within RELATIVE_ERROR of every value in it."""
    if bucket == 0:
        return 0.0
    if abs(bucket) == _INFINITE:
        return math.copysign(math.inf, bucket)
    upper = math.exp((abs(bucket) - _SHIFT) * _LOG_GAMMA)
    return math.copysign(upper * (1 - RELATIVE_ERROR), bucket)


def sketch_of(values: Iterable[float]) -> Sketch:
    """The sketch of plain values."""
    sketch: Sketch = {}
    for value in values:
        key = bucket(value)
        sketch[key] = sketch.get(key, 0) + 1
    return sketch


def merge(sketches: Iterable[Sketch]) -> Sketch:
    """All counts together."""
    merged: Sketch = {}
    for sketch in sketches:
        for key, count in sketch.items():
            merged[key] = merged.get(key, 0) + count
    return merged


def quantile(sketch: Sketch, q: float) -> float | None:
    """The q-quantile (nearest rank below), None of an empty sketch."""
    total = sum(sketch.values())
    if total <= 0:
        return None
    rank, seen = q * (total - 1), 0.0
    for key in sorted(sketch):
        seen += sketch[key]
        if seen > rank:
            return value_of(key)
    return value_of(max(sketch))
