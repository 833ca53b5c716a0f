"""The tables of the analysis: what the drills prove, baseline, trends, forecast, anomalies.

Each function takes the months of `history.monthly` and gives a table with one row per drill, per
drill and metric, or per event. None is a verdict on a restore: those are the drills' own.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from recovery_pipelines.analysis.acknowledgements import (
    Acknowledgement,
    keep_acknowledgement,
    read_acknowledgements,
)
from recovery_pipelines.analysis.control import MINIMUM_DRILLS, Bools, Floats, Judgement, judge
from recovery_pipelines.analysis.history import METRICS, load_history, monthly
from recovery_pipelines.errors import RecoveryError

INSUFFICIENT = "insufficient history"
CONFIDENCE = 0.95
CLAIMS = (0.90, 0.95, 0.99)
HORIZON_MONTHS = 24
"""How far ahead growth is followed; beyond that a line through monthly drills says nothing."""

_MAX_PASSES = 100_000
_TYPICAL = ("typical", "typical_low", "typical_high", "next_limit")


# --- what the drills prove ----------------------------------------------------------------


def recoverability(months: pd.DataFrame) -> pd.DataFrame:
    """By drill: proven months, the exact bounds on success, passes still needed for each claim.

    `success_at_least` is the one-sided 95 % Clopper-Pearson bound, `success_low` and `success_high`
    the two-sided interval; `passes_to_90_percent` and so on count straight passes from now on.
    """
    rows = []
    for drill, group in months.groupby("drill"):
        total, proven = len(group), int(group["proven"].sum())
        both = scipy.stats.binomtest(proven, total).proportion_ci(CONFIDENCE, "exact")
        row = {
            "drill": drill,
            "drills": total,
            "proven": proven,
            "success_at_least": success_bound(proven, total),
            "success_low": float(both.low),
            "success_high": float(both.high),
        }
        for claim in CLAIMS:
            row[f"passes_to_{claim:.0%}".replace("%", "_percent")] = passes_needed(
                proven, total, claim
            )
        rows.append(row)
    return pd.DataFrame(rows)


def success_bound(successes: int, total: int) -> float:
    """The success rate that so many successes prove, one-sided at 95 % (Clopper-Pearson)."""
    test = scipy.stats.binomtest(successes, total, alternative="greater")
    return float(test.proportion_ci(CONFIDENCE, "exact").low)


def passes_needed(successes: int, total: int, claim: float) -> int:
    """How many straight passes more prove a success rate of `claim`."""

    def proves(more: int) -> bool:
        return total + more > 0 and success_bound(successes + more, total + more) >= claim

    return bisect_left(range(_MAX_PASSES), True, key=proves)


# --- baseline -----------------------------------------------------------------------------


def compare_with_baseline(
    months: pd.DataFrame, said: Sequence[Acknowledgement] = ()
) -> pd.DataFrame:
    """By drill and metric: the newest month against the baseline of the months before it.

    `outcome` is `as usual`, `unusual`, `no value` or `insufficient history`. `typical` with its
    95 % interval and `next_limit`, which the next drill exceeds with a chance of 5 % if nothing
    changes, are of the baseline with the newest month in it.
    """
    rows = []
    for series in series_of(months, said):
        found = series.judgement
        baseline = series.logs[found.in_baseline[:, series.position]]
        value = series.values[-1]
        drills = int(found.baseline_drills[-1, series.position])
        if np.isnan(value):
            outcome = "no value"
        elif drills < MINIMUM_DRILLS:
            outcome = INSUFFICIENT
        else:
            outcome = "unusual" if found.unusual[-1, series.position] else "as usual"
        rows.append(
            {
                "drill": series.drill,
                "metric": series.metric,
                "month": series.months[-1],
                "value": value,
                "outcome": outcome,
                "baseline_drills": drills,
                "p_value": found.p_value[-1, series.position],
                "q_value": found.q_value[-1, series.position],
                **_typical(baseline),
            }
        )
    columns = (
        *("drill", "metric", "month", "value", "outcome", "baseline_drills"),
        *("p_value", "q_value", *_TYPICAL),
    )
    return pd.DataFrame(rows, columns=columns)


def _typical(logs: Floats) -> dict[str, float]:
    """Geometric mean with its t interval, and the t prediction limit of one more value."""
    count = len(logs)
    if count < MINIMUM_DRILLS:
        return dict.fromkeys(_TYPICAL, float("nan"))
    mean, deviation = logs.mean(), logs.std(ddof=1)
    half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * deviation / np.sqrt(count)
    ahead = scipy.stats.t.ppf(CONFIDENCE, count - 1) * deviation * np.sqrt(1 + 1 / count)
    found = np.exp([mean, mean - half, mean + half, mean + ahead])
    return dict(zip(_TYPICAL, map(float, found), strict=True))


def expected_ranges(months: pd.DataFrame, said: Sequence[Acknowledgement] = ()) -> pd.DataFrame:
    """By drill and month: the recovery time beside what the months before it predict.

    `low_seconds` to `high_seconds` is the 95 % prediction interval around `typical_seconds`; all
    three are NaN with fewer than five drills in the baseline. `flagged` months are part of an
    anomaly.
    """
    columns = (
        "drill",
        "month",
        "seconds",
        "typical_seconds",
        "low_seconds",
        "high_seconds",
        "flagged",
    )
    rows = []
    for series in series_of(months, said, ("recovery_seconds",)):
        found, at = series.judgement, series.position
        typical = np.where(np.isnan(found.low[:, at]), np.nan, found.typical[:, at])
        by_month = (
            series.months,
            series.values,
            typical,
            found.low[:, at],
            found.high[:, at],
            found.active[:, at],
        )
        rows += [(series.drill, *row) for row in zip(*by_month, strict=True)]
    return pd.DataFrame(rows, columns=columns)


# --- trends and forecast ------------------------------------------------------------------


def trends(months: pd.DataFrame, said: Sequence[Acknowledgement] = ()) -> pd.DataFrame:
    """By drill and metric: growth in % per month since the baseline began, by Theil-Sen with its
    95 % interval.

    `outcome` is `growing` (Mann-Kendall), `no trend proven` or `insufficient history`.
    """
    rows = []
    for series in series_of(months, said):
        at, logs = series.since_restart()
        row = {"drill": series.drill, "metric": series.metric, "drills": len(logs)}
        if len(logs) < MINIMUM_DRILLS:
            rows.append(row | {"outcome": INSUFFICIENT})
            continue
        slope, _, low, high = scipy.stats.theilslopes(logs, at, CONFIDENCE)
        growing = series.judgement.growing[-1, series.position]
        rows.append(
            row
            | {
                "outcome": "growing" if growing else "no trend proven",
                "growth_percent": 100 * np.expm1(slope),
                "growth_percent_low": 100 * np.expm1(low),
                "growth_percent_high": 100 * np.expm1(high),
                "p_value": series.judgement.trend_p_value[-1, series.position],
            }
        )
    columns = (
        "drill",
        "metric",
        "outcome",
        "drills",
        "growth_percent",
        "growth_percent_low",
        "growth_percent_high",
        "p_value",
    )
    return pd.DataFrame(rows, columns=columns)


def forecast(
    months: pd.DataFrame,
    said: Sequence[Acknowledgement] = (),
    rto_seconds: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """By drill: the recovery time to expect next month, and when growth breaks the objective.

    A line through the logarithms (least squares), with its 95 % prediction interval: the growth is
    as uncertain as the history leaves it. `rto_seconds` holds the objectives by drill.
    `at_risk_from` is the first month whose interval reaches the objective; `broken_from` the first
    whose expected time does, given only if growth is proven (the whole Theil-Sen interval is above
    zero). Neither looks further ahead than HORIZON_MONTHS.
    """
    return forecast_of(series_of(months, said), rto_seconds or {})


def forecast_of(every: Iterable["Series"], objectives: Mapping[str, float]) -> pd.DataFrame:
    """`forecast` of series that are at hand."""
    rows = []
    for series in every:
        if series.metric != "recovery_seconds":
            continue
        at, logs = series.since_restart()
        objective = objectives.get(series.drill, float("nan"))
        row = {"drill": series.drill, "drills": len(logs), "rto_seconds": objective}
        if len(logs) < MINIMUM_DRILLS:
            rows.append(row | {"outcome": INSUFFICIENT})
            continue
        ahead = series.months_ahead(HORIZON_MONTHS)
        expected, low, high = _line(at, logs, np.array([_number(month) for month in ahead]))
        growth_low = scipy.stats.theilslopes(logs, at, CONFIDENCE)[2]
        broken = _first(ahead, expected > objective) if growth_low > 0 else None
        at_risk = _first(ahead, high > objective)
        if np.isnan(objective):
            outcome = "no objective"
        elif broken:
            outcome = "growth breaks the objective"
        else:
            outcome = "objective at risk" if at_risk else "objective holds"
        rows.append(
            row
            | {
                "outcome": outcome,
                "month": ahead[0],
                "expected_seconds": expected[0],
                "low_seconds": low[0],
                "high_seconds": high[0],
                "at_risk_from": at_risk,
                "broken_from": broken,
            }
        )
    columns = (
        "drill",
        "outcome",
        "month",
        "expected_seconds",
        "low_seconds",
        "high_seconds",
        "rto_seconds",
        "at_risk_from",
        "broken_from",
        "drills",
    )
    return pd.DataFrame(rows, columns=columns)


def _line(at: Floats, logs: Floats, ahead: Floats) -> tuple[Floats, Floats, Floats]:
    """Least squares through the logs: expected value and 95 % prediction interval `ahead`."""
    count = len(at)
    fit = scipy.stats.linregress(at, logs)
    residuals = logs - fit.intercept - fit.slope * at
    deviation = np.sqrt((residuals**2).sum() / (count - 2))
    leverage = 1 + 1 / count + (ahead - at.mean()) ** 2 / ((at - at.mean()) ** 2).sum()
    half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 2) * deviation * np.sqrt(leverage)
    middle = fit.intercept + fit.slope * ahead
    return np.exp(middle), np.exp(middle - half), np.exp(middle + half)


def _first(months: Sequence[str], true: Bools) -> str | None:
    return months[int(np.argmax(true))] if true.any() else None


# --- anomalies ----------------------------------------------------------------------------


def anomalies(months: pd.DataFrame, said: Sequence[Acknowledgement] = ()) -> pd.DataFrame:
    """One row per event: months in a row in which a metric of a drill was not as usual.

    `found_by` names what was seen: `unusual value`, `level shift`, `trend`. `looks_like` says
    whether a `step` or steady `growth` describes the metric better up to then. `state` is `open`
    (it lasts), `over` (the metric came back) or `acknowledged`, with who said so and why.
    """
    return anomalies_of(series_of(months, said))


def anomalies_of(every: Iterable["Series"]) -> pd.DataFrame:
    """`anomalies` of series that are at hand."""
    rows = []
    for series in every:
        found = series.judgement
        seen = {
            "unusual value": found.unusual[:, series.position],
            "level shift": found.shifted[:, series.position],
            "trend": found.growing[:, series.position],
        }
        active = found.active[:, series.position]
        for begin, end, lasts in _runs(active, np.isfinite(series.values), series.restarts):
            during = slice(begin, end + 1)
            first_month, last_month = series.months[begin], series.months[end]
            times = series.values[during] / found.typical[during, series.position]
            event = {
                "drill": series.drill,
                "metric": series.metric,
                "found_by": ", ".join(name for name, at in seen.items() if at[during].any()),
                "first_month": first_month,
                "last_month": last_month,
                "times_typical": float(np.nanmax(times)),
                "looks_like": series.shape_until(end),
                "state": "open" if lasts else "over",
            }
            for answer in series.answers(first_month, last_month):
                event |= {
                    "state": "acknowledged",
                    "acknowledged_by": answer.by,
                    "reason": answer.reason,
                }
            rows.append(event)
    columns = (
        "drill",
        "metric",
        "found_by",
        "first_month",
        "last_month",
        "times_typical",
        "looks_like",
        "state",
        "acknowledged_by",
        "reason",
    )
    return pd.DataFrame(rows, columns=columns)


def acknowledge(
    home: Path, drill: str, metric: str, month: str, by: str, reason: str
) -> Acknowledgement:
    """Say that an anomaly is known. If it lasts, its level is the new normal from `month` on.

    Raises RecoveryError if the drill's metric has no anomaly in that month.
    """
    events = anomalies(monthly(load_history(home)), read_acknowledgements(home))
    of_metric = events[(events["drill"] == drill) & (events["metric"] == metric)]
    covers = (of_metric["first_month"] <= month) & (month <= of_metric["last_month"])
    if not covers.any():
        known = ", ".join(
            f"{event.drill} {event.metric} {event.first_month} to {event.last_month}"
            for event in events.itertuples()
        )
        raise RecoveryError(
            f"{drill} {metric} has no anomaly in {month}: nothing to acknowledge; "
            f"anomalies: {known or 'none'}"
        )
    restarts = of_metric[covers]["state"].iloc[-1] == "open"
    return keep_acknowledgement(home, drill, metric, month, by, reason, restarts=restarts)


def _runs(
    active: Bools, known: Bools, restarts: Collection[int]
) -> Iterator[tuple[int, int, bool]]:
    """First and last position of each event, and whether it lasts.

    It is over with a value that is as usual (a month without a value does not end it); what comes
    back after a single such month is the same event. A restart ends it for good.
    """
    begin, end, usual = None, 0, 0
    for position, on in enumerate(active):
        if on:
            begin, end, usual = position if begin is None else begin, position, 0
        usual += int(known[position] and not on)
        if begin is not None and (usual == 2 or position in restarts):
            yield begin, end, False
            begin = None
    if begin is not None:
        yield begin, end, usual == 0


# --- series -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """One metric of one drill over its months, and the judgement of the whole drill."""

    drill: str
    metric: str
    position: int
    """Of the metric in the judgement's arrays."""
    months: list[str]
    values: Floats
    judgement: Judgement
    restarts: list[int]
    """Positions of the months with which the baseline starts anew."""
    said: list[Acknowledgement]

    @property
    def logs(self) -> Floats:
        positive: Floats = np.where(self.values > 0, self.values, np.nan)
        logs: Floats = np.log(positive)
        return logs

    def since_restart(self, end: int | None = None) -> tuple[Floats, Floats]:
        """Month numbers and logarithms of the values since the baseline began, up to `end`."""
        logs = self.logs
        known = np.isfinite(logs)
        begins = [at for at in self.restarts if end is None or at < end]
        known[: max(begins, default=0)] = False
        if end is not None:
            known[end + 1 :] = False
        numbers = np.array([_number(month) for month in self.months], dtype=float)
        return numbers[known], logs[known]

    def until(self, month: str) -> "Series | None":
        """What was known at the end of `month`; None if there was no value yet.

        Each month is judged by those before it alone, so nothing is judged anew.
        """
        count = bisect_right(self.months, month)
        if not (self.values[:count] > 0).any():
            return None
        return replace(
            self,
            months=self.months[:count],
            values=self.values[:count],
            judgement=self.judgement.first(count),
            restarts=[at for at in self.restarts if at < count],
            said=[each for each in self.said if each.month <= month],
        )

    def shape_until(self, end: int) -> str:
        """`step` or `growth`: which fits the months from the baseline's begin to `end` better."""
        at, logs = self.since_restart(end)
        return "growth" if _line_misfit(at, logs) <= _step_misfit(logs) else "step"

    def months_ahead(self, count: int) -> list[str]:
        last = pd.Period(self.months[-1][:7], freq="M")
        return [(last + step).strftime("%Y-%m-01") for step in range(1, count + 1)]

    def answers(self, first_month: str, last_month: str) -> list[Acknowledgement]:
        return [answer for answer in self.said if first_month <= answer.month <= last_month]


def series_of(
    months: pd.DataFrame,
    said: Sequence[Acknowledgement],
    metrics: Collection[str] = METRICS,
) -> Iterator[Series]:
    """Every metric that a drill ever had a positive value of; the drill is judged as a whole."""
    for name, group in months.groupby("drill"):
        drill = str(name)
        group = group.sort_values("month")
        labels = [str(month) for month in group["month"]]
        values = group[list(METRICS)].to_numpy(dtype=float)
        of_drill = [each for each in said if each.drill == drill and each.month in labels]
        restarts = [
            (labels.index(each.month), METRICS.index(each.metric))
            for each in of_drill
            if each.restarts_baseline and each.metric in METRICS
        ]
        judgement = _judged(values.tobytes(), len(labels), tuple(restarts))
        for position, metric in enumerate(METRICS):
            if metric in metrics and (values[:, position] > 0).any():
                yield Series(
                    drill=drill,
                    metric=metric,
                    position=position,
                    months=labels,
                    values=values[:, position],
                    judgement=judgement,
                    restarts=[at for at, of_metric in restarts if of_metric == position],
                    said=[each for each in of_drill if each.metric == metric],
                )


@lru_cache(maxsize=32)
def _judged(values: bytes, months: int, restarts: tuple[tuple[int, int], ...]) -> Judgement:
    """`judge`, once for all tables that are made of the same months."""
    return judge(np.frombuffer(values).reshape(months, len(METRICS)), restarts)


def _line_misfit(at: Floats, logs: Floats) -> float:
    """Bayesian information criterion of a line through the logs."""
    slope, middle = np.polyfit(at - at.mean(), logs, 1)
    residuals = logs - middle - slope * (at - at.mean())
    return _misfit(float((residuals**2).sum()), len(logs), parameters=2)


def _step_misfit(logs: Floats) -> float:
    """The same of two levels, at the best place for the step."""
    squares = min(
        len(part) * part.var() + len(rest) * rest.var()
        for part, rest in (np.split(logs, [at]) for at in range(1, len(logs)))
    )
    return _misfit(float(squares), len(logs), parameters=3)


def _misfit(squares: float, count: int, parameters: int) -> float:
    return float(count * np.log(squares / count + 1e-12) + parameters * np.log(count))


def _number(month: str) -> float:
    """Months since year 0, so that a missed month keeps its place."""
    year, number, _ = month.split("-")
    return float(int(year) * 12 + int(number))
