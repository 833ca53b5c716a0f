"""Unusual values in dense series: rolling ranks on the 5-minute aggregates, one event per episode.

A value is unusual by its rank among the last 14 days, and the more so the farther it lies outside
of what was seen in them; the same is asked of the half-hour mean and of the step from one value to
the next. Method and threshold were chosen on the Numenta Anomaly Benchmark, see docs/benchmarks.md.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from recovery_pipelines.monitoring.history import day_of, read_day
from recovery_pipelines.monitoring.rollup import STEP_SECONDS, aggregate, mean_values, with_means
from recovery_pipelines.plan.monitoring import METRIC_UNITS, Monitoring

WINDOW_POINTS = 4000
WARM_UP_POINTS = 600
"""A series with fewer has only its limits."""
THRESHOLD = 18.4
FALSE_EVENTS_PER_MONTH = 1.0
"""What the threshold lets through in each series, measured on the benchmark's data."""
SHOWN_DAYS = 7
_EPISODE_POINTS = 100
_MEAN_POINTS = 6
_FEWEST_RANKED = 50
_CHANCE = 0.01
_ONLY_GROW = ("availability.uptime",)
_SHORTEST_SECONDS = 1e-6

Values = np.ndarray[tuple[int], np.dtype[np.float64]]

_COLUMNS = ("metric", "entity", "at", "value", "score", "limit", "over_limit")


def scores(values: Values) -> Values:
    """How unusual each value is, given only those before it."""
    series = pd.Series(values)
    mean = series.rolling(_MEAN_POINTS, min_periods=1).mean()
    step = series.diff().fillna(0).abs()
    return _rank_score(series) + _rank_score(mean) + _rank_score(step)


def _rank_score(series: "pd.Series[float]") -> Values:
    rolling = series.rolling(WINDOW_POINTS, min_periods=_FEWEST_RANKED)
    count = np.fmax(rolling.count().to_numpy(), 1.0)
    rank = np.nan_to_num(rolling.rank(pct=True).to_numpy(), nan=0.5)
    tail = np.fmin(np.fmax(2 * np.minimum(rank, 1 - rank + 1 / count), 1 / count), 1.0)
    highest, lowest = rolling.max().shift(1), rolling.min().shift(1)
    outside = pd.Series(np.fmax(series - highest, lowest - series)).clip(lower=0).to_numpy()
    beyond = outside / np.fmax((highest - lowest).to_numpy(), 1e-9)
    return np.asarray(np.log1p(10 * np.nan_to_num(beyond)) - np.log(tail))


def episodes(score: Values, threshold: float = THRESHOLD) -> list[int]:
    """Where an episode begins: at the threshold or above, and above all of the last 100 points."""
    found = pd.Series(score)
    before = found.rolling(_EPISODE_POINTS, min_periods=1).max().shift(1)
    return [int(at) for at in np.flatnonzero((found >= threshold) & ~(found <= before))]


@dataclass(frozen=True)
class Anomalies:
    """What was unusual in the last SHOWN_DAYS."""

    events: pd.DataFrame
    """One row per episode, newest first: metric, entity, at (UTC, its begin), value, score, limit
    (NaN: none), over_limit."""
    judged: int
    """How many series had enough points."""
    warming_up: int
    worst: pd.DataFrame
    """The series of the event with the highest score: metric, entity, at (UTC), value."""

    @property
    def expected_by_chance(self) -> float:
        return self.judged * FALSE_EVENTS_PER_MONTH * SHOWN_DAYS / 30

    @property
    def over_budget(self) -> bool:
        """Whether so many events are more than chance explains (once in a hundred weeks)."""
        by_chance = scipy.stats.poisson.sf(len(self.events) - 1, self.expected_by_chance)
        return len(self.events) > 0 and bool(by_chance < _CHANCE)


def find_anomalies(home: Path, monitoring: Monitoring, now: float) -> Anomalies:
    """Judge every series of the store as of `now` (seconds since 1970)."""
    today = day_of(now)
    since = today - timedelta(days=SHOWN_DAYS + WINDOW_POINTS * STEP_SECONDS // 86400 + 1)
    means = pd.concat(
        [mean_values(home, since, today), with_means(aggregate(read_day(home, today)).to_pandas())]
    )
    means = means[np.isfinite(means["mean"]) & ~means["metric"].isin(_ONLY_GROW)]
    means = means.drop_duplicates(["metric", "entity", "at"]).sort_values("at")
    every = dict(iter(means.groupby(["metric", "entity"])))
    judged = {key: rows for key, rows in every.items() if len(rows) >= WARM_UP_POINTS}
    rows = [row for key, series in judged.items() for row in _events_of(key, series, monitoring)]
    found = pd.DataFrame(rows, columns=list(_COLUMNS))
    found = found[found["at"] >= now - SHOWN_DAYS * 86400].sort_values("at", ascending=False)
    worst = means.iloc[:0]
    if len(found):
        metric, entity = found.nlargest(1, "score").iloc[0][["metric", "entity"]]
        worst = judged[metric, entity]
        worst = worst[worst["at"] >= now - SHOWN_DAYS * 86400]
    return Anomalies(
        events=found.assign(at=pd.to_datetime(found["at"], unit="s", utc=True)),
        judged=len(judged),
        warming_up=len(every) - len(judged),
        worst=worst.assign(at=pd.to_datetime(worst["at"], unit="s", utc=True), value=worst["mean"]),
    )


def _events_of(
    key: Hashable, series: pd.DataFrame, monitoring: Monitoring
) -> Iterator[tuple[object, ...]]:
    metric, entity = key if isinstance(key, tuple) else (key, "")
    at, values = series["at"].to_numpy(), series["mean"].to_numpy(dtype="float64")
    if METRIC_UNITS.get(metric) == "seconds":
        judged = np.log(np.fmax(values, _SHORTEST_SECONDS))
    else:
        judged = values
    score, limit = scores(judged), monitoring.limits.get(metric, float("nan"))
    for position in episodes(score):
        if position >= WARM_UP_POINTS:
            value = float(values[position])
            yield metric, entity, at[position], value, score[position], limit, value > limit
