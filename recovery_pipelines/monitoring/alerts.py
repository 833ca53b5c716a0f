"""What about the monitored things deserves a message: changes of health, each told once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from recovery_pipelines.monitoring.history import newest_outcomes, newest_ticks, samples
from recovery_pipelines.monitoring.status import blind_sections
from recovery_pipelines.plan.monitoring import METRIC_UNITS, Monitoring

LOOKS = 20
_FLAPPING_CHANGES = 6
_CALM_CHANGES = 2


@dataclass(frozen=True)
class Condition:
    """One thing that can be healthy or not, and how its last looks ended, newest last."""

    name: str
    states: Sequence[str]
    detail: str


@dataclass(frozen=True)
class Change:
    """A condition whose state is not the one that was told last."""

    name: str
    before: str | None
    now: str
    detail: str


def conditions(home: Path, monitoring: Monitoring, section: str, now: float) -> list[Condition]:
    """The health of a section: whether it is measured at all, its checks, its metrics' limits."""
    blind = section in blind_sections(newest_ticks(home), monitoring, now)
    measured = Condition(
        f"{section} measured",
        ["failed" if blind else "ok"],
        "nothing new was measured" if blind else "measured",
    )
    if blind:
        return [measured]  # what is known is old
    outcomes = newest_outcomes(home, LOOKS)
    of_section = outcomes[outcomes["section"] == section]
    checks = [
        Condition(str(name), list(rows["state"]), str(rows["detail"].iloc[-1]))
        for name, rows in of_section.groupby("name")
    ]
    return [measured, *checks, *_limits(home, monitoring, section, now)]


def _limits(home: Path, monitoring: Monitoring, section: str, now: float) -> list[Condition]:
    if not monitoring.limits:
        return []
    since = now - LOOKS * monitoring.interval_seconds(section)
    found = samples(home, since, now + 1)
    limited = found[(found["section"] == section) & found["metric"].isin(monitoring.limits)]
    conditions = []
    for (metric, entity), rows in limited.groupby(["metric", "entity"]):
        limit = monitoring.limits[str(metric)]
        states = [
            "unknown" if value != value else "failed" if value > limit else "ok"
            for value in rows.sort_values("at")["value"]
        ]
        newest = rows.sort_values("at")["value"].iloc[-1]
        detail = f"{newest:.4g} {METRIC_UNITS[str(metric)]}, at most {limit:g}"
        conditions.append(Condition(f"{metric} {entity}".strip(), states, detail))
    return conditions


def state_of(states: Sequence[str], told: str | None) -> str:
    """The newest state, or `flapping` if it changed too often to be news each time.

    Flapping begins with six changes in the last twenty looks and ends with two.
    """
    changes = sum(before != after for before, after in pairwise(states[-LOOKS:]))
    if changes >= _FLAPPING_CHANGES or (told == "flapping" and changes > _CALM_CHANGES):
        return "flapping"
    return states[-1]


def changes(found: Sequence[Condition], told: Mapping[str, str]) -> list[Change]:
    """What is to be told, given the states that were told before.

    That something is healthy, or cannot be checked, from the beginning is no news.
    """
    news = []
    for condition in found:
        before = told.get(condition.name)
        now = state_of(condition.states, before)
        if now != before and (before is not None or now in ("failed", "flapping")):
            news.append(Change(condition.name, before, now, condition.detail))
    return news
