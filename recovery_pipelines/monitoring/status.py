"""The present state of everything that is monitored."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from recovery_pipelines.monitoring.history import (
    newest_outcomes,
    newest_samples,
    newest_ticks,
    samples,
)
from recovery_pipelines.plan.monitoring import METRIC_UNITS, SECTIONS, Monitoring

BLIND_AFTER_INTERVALS = 3


@dataclass(frozen=True)
class PresentState:
    """Tables for people, and what they come to."""

    tables: dict[str, pd.DataFrame]
    failed: list[str]
    unknown: list[str]
    blind: list[str]

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 3 if self.blind or self.unknown else 0

    @property
    def summary(self) -> str:
        parts = [
            f"{what}: {', '.join(names)}"
            for what, names in (
                ("failed", self.failed),
                ("not checked", self.unknown),
                ("blind", self.blind),
            )
            if names
        ]
        return "; ".join(parts) or "healthy"


def blind_sections(newest: Mapping[str, float], monitoring: Monitoring, now: float) -> list[str]:
    """Sections whose newest measurement (see `newest_ticks`) is too old to say anything about the
    present.

    A measurement from the future says nothing either.
    """
    blind = []
    for section in SECTIONS:
        limit = BLIND_AFTER_INTERVALS * monitoring.interval_seconds(section)
        age = now - newest.get(section, float("-inf"))
        if age > limit or age < -limit:
            blind.append(section)
    return blind


def present_state(home: Path, monitoring: Monitoring, now: float) -> PresentState:
    """What was measured last, and how old it is (`now` in seconds since 1970)."""
    measured, outcomes = newest_samples(home), newest_outcomes(home)
    outcomes["age"] = _ages(outcomes["at"], now)
    measured["age"] = _ages(measured["at"], now)
    measured["unit"] = measured["metric"].map(METRIC_UNITS)
    measured["value"] = (
        measured["value"].map(lambda value: f"{value:.6g}").replace("nan", "missing")
    )
    by_state = {
        state: list(outcomes.loc[outcomes["state"] == state, "name"])
        for state in ("failed", "unknown")
    }
    return PresentState(
        tables={
            "Health": outcomes[["name", "state", "age", "detail"]],
            "Metrics": measured[["metric", "entity", "value", "unit", "age"]],
        },
        failed=by_state["failed"],
        unknown=by_state["unknown"],
        blind=blind_sections(newest_ticks(home), monitoring, now),
    )


def _ages(at: "pd.Series[pd.Timestamp]", now: float) -> "pd.Series[str]":
    return (pd.Timestamp(now, unit="s", tz="UTC") - at).dt.total_seconds().map("{:.0f} s".format)


def section_table(
    home: Path, section: str, since: float, until: float
) -> tuple[pd.DataFrame, dict[str, float]]:
    """A section's series in [since, until), and the newest value of each, named with its unit.

    Columns: metric, entity, unit, samples, missing, newest, mean, min, max (NaN: missing).
    """
    found = samples(home, since, until)
    found = found[found["section"] == section].sort_values("at")
    by_series = found.groupby(["metric", "entity"], sort=True)["value"]
    shown = by_series.agg(["count", "size", "mean", "min", "max"]).reset_index()
    # Only what the last look found: a series that it left out has no newest value.
    last = shown[["metric", "entity"]].merge(
        found.loc[found["tick"] == found["tick"].max(), ["metric", "entity", "value"]], how="left"
    )
    table = pd.DataFrame(
        {
            "metric": shown["metric"],
            "entity": shown["entity"],
            "unit": shown["metric"].map(METRIC_UNITS),
            "samples": shown["count"],
            "missing": shown["size"] - shown["count"],
            "newest": last["value"].to_numpy(),
            "mean": shown["mean"],
            "min": shown["min"],
            "max": shown["max"],
        }
    )
    units = table["unit"].str.replace("_", " ")
    names = (last["metric"] + " " + last["entity"]).str.strip() + " (" + units + ")"
    pairs = zip(names, last["value"].tolist(), strict=True)
    return table, {name: value for name, value in pairs if value == value}
