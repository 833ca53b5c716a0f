"""Twenty-four simulated months with known problems: is the right thing said in the right month?

Six drills each have one problem, a seventh has none. The rules see each month as they would have
then: with the records up to it and no others.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from time import monotonic

import numpy as np
import pandas as pd

from campaigns.simulated import TYPICAL_SECONDS, Month, label, leave_month, make_plan
from recovery_pipelines.analysis.history import load_history
from recovery_pipelines.analysis.recommendations import recommended_drills, replay
from recovery_pipelines.plan import Plan
from recovery_pipelines.verdict import Verdict

MONTHS = 24
HISTORY = 6
"""Months before the first problem."""
SETTINGS = {
    "grows": {"objectives": {"rto_seconds": 3 * TYPICAL_SECONDS}},
    "spikes": {},
    "shifts": {},
    "fails": {},
    "expires": {},
    "misses": {},
    "calm": {},
}
LOST = "1 of 4 recorded snapshots are not in the repository: full-0001"


@dataclass(frozen=True)
class Expected:
    """What must be said of one drill: in which months first, and until when (None: to the end)."""

    problem: str
    target: str
    rule: str
    of: str
    first: int
    at_last: int
    """The last month in which it may be said first."""
    until: int | None
    tolerated: tuple[str, ...] = ()
    """Rules that may speak of the same problem: before its nature is plain, or of what follows."""


EXPECTED = (
    Expected("slow growth, 5 % a month from month 7", "grows", "growth", "", 7, 19, None,
             ("unusual_value", "level_shift")),
    Expected("one spike, x3 in month 13", "spikes", "unusual_value", "", 12, 12, 13),
    Expected("level shift, x2 from month 11", "shifts", "level_shift", "", 10, 15, None,
             ("unusual_value", "growth")),
    Expected("checksums fail in months 9 and 10", "fails", "failing_check", ".checksums_match",
             8, 8, 10, ("restores_unreliable",)),
    Expected("snapshot expired in month 16", "expires", "snapshot_expired", "", 15, 15, 16),
    Expected("no drill in month 18", "misses", "month_missed", "", 17, 17, 20),
)  # fmt: skip


def story() -> dict[str, list[Month]]:
    """The months of each drill, by target."""
    months = {target: [Month() for _ in range(MONTHS)] for target in SETTINGS}
    for at in range(HISTORY, MONTHS):
        months["grows"][at].times = 1.05 ** (at - HISTORY + 1)
    months["spikes"][12].times = 3
    for at in range(10, MONTHS):
        months["shifts"][at].times = 2
    for at in (8, 9):
        months["fails"][at].checks = {"checksums_match": (Verdict.FAIL, "129 of 130 entries")}
    months["expires"][15].checks = {"backup_verification": (Verdict.FAIL, LOST)}
    months["misses"][17].missed = True
    return months


def leave_story(home: Path, seed: int) -> Plan:
    """Write the records of the whole story; returns its plan."""
    plan = make_plan(home, SETTINGS)
    rng = np.random.default_rng([seed, 24])
    for spec in plan.drills():
        for at, month in enumerate(story()[spec.target_name]):
            leave_month(spec, at, month, rng)
    return plan


def stories(seeds: Iterable[int]) -> Iterator[dict[str, object]]:
    """One row for each problem of each seed, and one for each thing said that is none."""
    for seed in seeds:
        began = monotonic()
        with tempfile.TemporaryDirectory(prefix="recovery-story-") as folder:
            plan = leave_story(Path(folder), seed)
            said: dict[str, list[int]] = {}
            home, drills = Path(folder), recommended_drills(plan)
            end = date.fromisoformat(label(MONTHS))
            for seen in replay(home, load_history(home), drills, end, MONTHS):
                said.setdefault(seen.id, []).append(_position(seen.month))
        seconds = monotonic() - began
        for expected in EXPECTED:
            drill = f"corruption_recovery_{expected.target}_tar"
            months = said.pop(f"{expected.rule}:{drill}{expected.of}", [])
            last = MONTHS if expected.until is None else expected.until
            yield {
                "seed": seed,
                "said": expected.problem,
                "expected": True,
                "found": bool(months) and expected.first <= min(months) <= expected.at_last,
                "too_soon": bool(months) and min(months) < expected.first,
                "ended_right": bool(months) and max(months) == last - 1,
                "months_late": min(months) - expected.first if months else None,
                "seconds": seconds,
            }
            for rule in expected.tolerated:
                if min(said.get(f"{rule}:{drill}", [0])) >= expected.first:
                    del said[f"{rule}:{drill}"]
        for id in said:
            yield {"seed": seed, "said": id, "expected": False, "seconds": seconds}


def story_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """By problem: how often the right thing was said in time, and until the right month; and the
    things said that are none, for each drill and year."""
    rows = rows.astype({"expected": bool})
    expected = rows[rows["expected"]]
    table = [
        {
            "problem": problem,
            "stories": len(group),
            "said in time": int(group["found"].astype(bool).sum()),
            "too soon": int(group["too_soon"].astype(bool).sum()),
            "never or too late": int((~(group["found"] | group["too_soon"]).astype(bool)).sum()),
            "months late, median": float(group["months_late"].astype(float).median()),
            "until the right month": int(group["ended_right"].astype(bool).sum()),
        }
        for problem, group in expected.groupby("said", sort=False)
    ]
    return pd.DataFrame(table)


def false_alarms_a_year(rows: pd.DataFrame) -> float:
    """Things said that are no problem of the story, for each drill and year."""
    years = rows["seed"].nunique() * len(SETTINGS) * MONTHS / 12
    return float((~rows["expected"].astype(bool)).sum() / years)


def _position(month: str) -> int:
    return (int(month[:4]) - 2026) * 12 + int(month[5:7]) - 1
