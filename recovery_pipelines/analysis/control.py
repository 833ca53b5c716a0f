"""The statistics of one drill's metrics: which months are unusual, shifted or growing.

Everything works on the logarithm of positive numbers and looks for larger values only (slower,
more expensive). Methods, their error rates and what they do not claim are in docs/analysis.md.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import scipy
from numpy.typing import NDArray

MINIMUM_DRILLS = 5
"""Drills that a baseline needs; with fewer there is no statistical verdict."""
FALSE_DISCOVERY_RATE = 0.03
SHIFT_LIMIT = 3.4
"""Standard deviations of the moving average at which the level has shifted."""
TREND_ALPHA = 0.0008

_PRIOR_DRILLS = 4
_PRIOR_DEVIATION = 0.2
_POOLED_DRILLS = 6
_WEIGHT = 0.2
_AVERAGE_DEVIATION = (_WEIGHT / (2 - _WEIGHT)) ** 0.5
_SCORE_LIMIT = 3.0
_TREND_OVER = 0.05
_BAND = 0.95

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Judgement:
    """What is known after each month; all arrays are months × metrics."""

    baseline_drills: NDArray[np.int64]
    """Drills that the month was compared with."""
    typical: Floats
    """Geometric mean of that baseline."""
    low: Floats
    """With `high`, the 95 % prediction interval for the month's value; NaN without a verdict."""
    high: Floats
    p_value: Floats
    """Chance of a value this large if nothing changed; NaN without a verdict."""
    q_value: Floats
    """The same, adjusted for the number of metrics."""
    unusual: Bools
    """The value is above what the baseline predicts."""
    shifted: Bools
    """A level shift was found in this month or before, and the level has not come back."""
    trend_p_value: Floats
    """Chance of a rise this steady if there is no trend; NaN without a verdict."""
    growing: Bools
    """A trend was found in this month or before, and has not vanished."""
    in_baseline: Bools
    """Values that the next drill will be compared with."""

    @property
    def active(self) -> Bools:
        return self.unusual | self.shifted | self.growing

    def first(self, months: int) -> "Judgement":
        """That of the first months. `in_baseline` alone knows what came later."""
        return Judgement(*(getattr(self, each.name)[:months] for each in fields(self)))


def judge(values: Floats, restarts: Collection[tuple[int, int]] = ()) -> Judgement:
    """Replay a drill's history, months × metrics, NaN where there is no value.

    Each month is judged by the months before it alone. `restarts` are (month, metric) positions:
    once that month is judged, the metric's baseline starts anew with it. Values that are not
    positive are as good as none.
    """
    months, metrics = values.shape
    logs = np.log(np.where(values > 0, values, np.nan))
    found = _empty(months, metrics)
    known = np.isfinite(logs)
    begin = np.zeros(metrics, dtype=int)
    average = np.zeros(metrics)
    low = np.full(metrics, -1)
    shifted, growing = np.zeros(metrics, dtype=bool), np.zeros(metrics, dtype=bool)
    for month in range(months):
        now = known[month]
        count, mean, deviation = _baseline(logs, found.in_baseline)
        tested = now & (count >= MINIMUM_DRILLS)
        p_value, unusual = found.p_value[month], found.unusual[month]
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = deviation * np.sqrt(1 + 1 / count)
            distance = (logs[month] - mean) / spread
        p_value[tested] = scipy.special.stdtr(_PRIOR_DRILLS + count - 1, -distance)[tested]
        if tested.any():
            found.q_value[month, tested] = scipy.stats.false_discovery_control(p_value[tested])
        unusual[tested] = found.q_value[month, tested] <= FALSE_DISCOVERY_RATE

        score = np.clip(-scipy.special.ndtri(p_value), -_SCORE_LIMIT, _SCORE_LIMIT)
        average = np.where(tested, _WEIGHT * score + (1 - _WEIGHT) * average, average)
        level = average / _AVERAGE_DEVIATION
        new = tested & (level > SHIFT_LIMIT) & ~shifted
        shifted = (shifted | new) & (level > SHIFT_LIMIT / 2)
        low[average <= 0] = month
        found.in_baseline[month] = now & ~unusual & ~shifted
        for metric in np.flatnonzero(new):
            onset = low[metric] + 1
            if found.in_baseline[:onset, metric].sum() >= MINIMUM_DRILLS:
                found.in_baseline[onset:, metric] = False

        for metric in np.flatnonzero(now):
            p = trend_p_value(logs[begin[metric] : month + 1, metric])
            found.trend_p_value[month, metric] = p
            growing[metric] = p <= (_TREND_OVER if growing[metric] else TREND_ALPHA)

        found.baseline_drills[month], found.typical[month] = count, np.exp(mean)
        half = scipy.stats.t.ppf((1 + _BAND) / 2, _PRIOR_DRILLS + count - 1) * spread
        enough = count >= MINIMUM_DRILLS
        found.low[month] = np.where(enough, np.exp(mean - half), np.nan)
        found.high[month] = np.where(enough, np.exp(mean + half), np.nan)
        found.shifted[month], found.growing[month] = shifted, growing
        for restarted in (metric for at, metric in restarts if at == month):
            begin[restarted], low[restarted], average[restarted] = month, month, 0.0
            shifted[restarted] = growing[restarted] = False
            found.in_baseline[:, restarted] = False
            found.in_baseline[month, restarted] = now[restarted]
    return found


def trend_p_value(logs: Floats) -> float:
    """Mann-Kendall's test for a rise; the positions are the months. NaN with too few values."""
    at = np.flatnonzero(np.isfinite(logs))
    if len(at) < MINIMUM_DRILLS:
        return float("nan")
    return _rising_p_value(at.tobytes(), logs[at].tobytes())


@lru_cache(maxsize=1 << 16)
def _rising_p_value(at: bytes, logs: bytes) -> float:
    """Kept, because histories that are judged month by month ask the same again."""
    positions, values = np.frombuffer(at, dtype=np.intp), np.frombuffer(logs)
    return float(scipy.stats.kendalltau(positions, values, alternative="greater").pvalue)


def _baseline(logs: Floats, member: Bools) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Count, mean and moderated standard deviation of the members, by metric.

    A deviation from few drills is drawn towards that of all the drill's metrics, or towards 0.2 if
    that is more (or not yet known).
    """
    count = member.sum(axis=0)
    kept = np.where(member, logs, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = kept.sum(axis=0) / count
        squares = np.where(member, (logs - mean) ** 2, 0.0).sum(axis=0)
        enough = count >= _POOLED_DRILLS
        pooled = (squares[enough] / (count[enough] - 1)).mean() if enough.any() else 0.0
        prior = max(_PRIOR_DEVIATION**2, pooled)
        freedom = _PRIOR_DRILLS + count - 1
        deviation = np.sqrt((_PRIOR_DRILLS * prior + squares) / freedom)
    return count, mean, deviation


def _empty(months: int, metrics: int) -> Judgement:
    shape = (months, metrics)
    return Judgement(
        baseline_drills=np.zeros(shape, dtype=np.int64),
        typical=np.full(shape, np.nan),
        low=np.full(shape, np.nan),
        high=np.full(shape, np.nan),
        p_value=np.full(shape, np.nan),
        q_value=np.full(shape, np.nan),
        unusual=np.zeros(shape, dtype=bool),
        shifted=np.zeros(shape, dtype=bool),
        trend_p_value=np.full(shape, np.nan),
        growing=np.zeros(shape, dtype=bool),
        in_baseline=np.zeros(shape, dtype=bool),
    )
