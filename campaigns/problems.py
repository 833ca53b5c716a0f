"""Histories with known problems, and how well recommendations name them.

Each simulated history has three drills over 18 to 24 months. Problems, near-misses and nothing are
injected at random; the label of a history is what was injected and what follows from it by
definition (such as three months without proof), never what the rules say.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import date
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from campaigns.simulated import (
    TIMEOUT_SECONDS,
    TYPICAL_SECONDS,
    Month,
    label,
    leave_month,
    make_plan,
)
from recovery_pipelines.analysis.acknowledgements import keep_acknowledgement
from recovery_pipelines.analysis.history import METRICS
from recovery_pipelines.analysis.recommendations import recommendations
from recovery_pipelines.checks import CRITERIA
from recovery_pipelines.drills.preparation import room_for
from recovery_pipelines.verdict import Verdict

HELD_OUT_SEEDS = range(2001, 2071)
"""The rules' limits were set on seeds below 1000."""
TARGETS = ("first", "second", "third")

Months = list[Month]
Random = np.random.Generator


class Drill:
    """One drill of a history: its months, its target's settings, and what is wrong with it."""

    def __init__(self, target: str, count: int) -> None:
        self.target = target
        self.months: Months = [Month() for _ in range(count)]
        self.settings: dict[str, Any] = {}
        self.labels: set[str] = set()
        self.injected: list[str] = []
        self.acknowledged: list[int] = []
        """Positions of months whose anomalies are acknowledged."""

    @property
    def name(self) -> str:
        return f"corruption_recovery_{self.target}_tar"

    @property
    def newest(self) -> Month:
        return self.months[-1]

    def expect(self, rule: str, of: str = "") -> None:
        self.labels.add(f"{rule}:{self.name}{of}")

    def ran(self) -> Months:
        return [month for month in self.months if not month.missed]


# --- problems of the newest month ---------------------------------------------------------


def failing_check(drill: Drill, rng: Random) -> None:
    check = str(rng.choice(["backup_verification", *CRITERIA]))
    for month in drill.months[-int(rng.integers(1, 3)) :]:
        month.checks = {check: (Verdict.FAIL, "129 of 130 entries")}
    drill.expect("failing_check", f".{check}")


def snapshot_expired(drill: Drill, rng: Random) -> None:
    lost = "1 of 4 recorded snapshots are not in the repository: full-0001"
    drill.newest.checks = {"backup_verification": (Verdict.FAIL, lost)}
    drill.expect("snapshot_expired")


def check_untrusted(drill: Drill, rng: Random) -> None:
    check = str(rng.choice(["self_test", "all_faults_detected"]))
    drill.newest.checks = {check: (Verdict.INVALID, "24 of 25 planted faults were caught")}
    drill.expect("check_untrusted", f".{check}")


def drill_error(drill: Drill, rng: Random) -> None:
    drill.newest.errors, drill.newest.messages = ["EngineError"], ["tar: exit code 2"]
    drill.expect("drill_error")


def not_enough_room(drill: Drill, rng: Random) -> None:
    drill.newest.errors = ["PreparationError"]
    drill.newest.messages = ["resource_availability: memory: 512 bytes needed, 1 available"]
    drill.expect("not_enough_room")


def timeout_hit(drill: Drill, rng: Random) -> None:
    drill.newest.errors = ["DrillTimeout"]
    drill.newest.messages = ["the drill ran into its timeout of 3600 s"]
    drill.expect("timeout")


def timeout_near(drill: Drill, rng: Random) -> None:
    drill.newest.duration_seconds = TIMEOUT_SECONDS * rng.uniform(0.82, 0.99)
    drill.expect("timeout")


def not_verified(drill: Drill, rng: Random) -> None:
    drill.newest.checks = {"permissions_correct": (Verdict.UNVERIFIED, "not compared")}
    drill.expect("not_verified")


def sign_off_missing(drill: Drill, rng: Random) -> None:
    drill.newest.manual_checks = ["user_access"]
    drill.expect("sign_off_missing")


def not_sealed(drill: Drill, rng: Random) -> None:
    drill.newest.messages = ["not sealed: the chain is broken at entry 7"]
    drill.expect("not_sealed")


def drill_killed(drill: Drill, rng: Random) -> None:
    drill.newest.killed = True
    drill.expect("drill_killed")


def rto_missed(drill: Drill, rng: Random) -> None:
    drill.settings["objectives"] = {"rto_seconds": TYPICAL_SECONDS * rng.uniform(0.3, 0.7)}
    drill.expect("objective_missed", ".rto")


def rpo_missed(drill: Drill, rng: Random) -> None:
    drill.settings["objectives"] = {"rpo_seconds": 60}
    drill.newest.rpo_seconds = rng.uniform(61, 600)
    drill.expect("objective_missed", ".rpo")


def spike(drill: Drill, rng: Random) -> None:
    drill.newest.times = rng.uniform(2.5, 5)
    drill.expect("unusual_value")


# --- problems of the months ---------------------------------------------------------------


def month_missed(drill: Drill, rng: Random) -> None:
    drill.months[-int(rng.integers(2, 4))].missed = True
    drill.expect("month_missed")


def failure_recurs(drill: Drill, rng: Random) -> None:
    check = str(rng.choice([*CRITERIA]))
    for back in (int(rng.integers(8, 12)), int(rng.integers(4, 7))):
        drill.months[-back].checks = {check: (Verdict.FAIL, "129 of 130 entries")}
    drill.expect("failure_recurs", f".{check}")


def retries_needed(drill: Drill, rng: Random) -> None:
    for month in drill.months[-int(rng.integers(2, 4)) :]:
        month.failed_attempts = int(rng.integers(1, 3))
    drill.expect("retries_needed")


def damaged_record(drill: Drill, rng: Random) -> None:
    drill.months[-int(rng.integers(2, 12))].damaged_record = True
    drill.expect("damaged_record")


def long_without_proof(drill: Drill, rng: Random) -> None:
    for month in drill.months[-int(rng.integers(3, 6)) :]:
        month.errors, month.messages = ["EngineError"], ["tar: exit code 2"]
    drill.expect("drill_error")


def often_without_proof(drill: Drill, rng: Random) -> None:
    for back in (3, 5, 7, 9, 12):
        drill.months[-back].errors = ["EngineError"]


def growing(drill: Drill, rng: Random) -> None:
    monthly = rng.uniform(1.05, 1.10)
    for at, month in enumerate(drill.months):
        month.times = monthly**at
    drill.expect("growth")


def shifted(drill: Drill, rng: Random) -> None:
    times = rng.uniform(1.8, 3)
    for month in drill.months[-int(rng.integers(5, 10)) :]:
        month.times = times
        month.engine_version = "tar 1.35"
    drill.expect("level_shift")


def noisy(drill: Drill, rng: Random) -> None:
    for month in drill.months:
        month.sigma = 1.2
    drill.expect("noisy_times")


def disk_short(drill: Drill, rng: Random) -> None:
    count, until = len(drill.months), rng.uniform(0.8, 4)
    slope = 2 * room_for(drill.newest.data_bytes) / (count - 1 + until)
    for back, month in enumerate(reversed(drill.months)):
        month.disk_free_bytes = int(room_for(month.data_bytes) + slope * (back + until))
    drill.expect("disk_runs_short")


def data_outgrow_disk(drill: Drill, rng: Random) -> None:
    for at, month in enumerate(drill.months):
        month.data_bytes = int(2e9 * 1.15 ** (at - len(drill.months) + 1))
        month.disk_free_bytes = int(1.7 * room_for(2_000_000_000))
    drill.expect("disk_runs_short")


def not_tested(drill: Drill, rng: Random) -> None:
    line = str(rng.choice(["criterion files_accessible is left out of the plan", "no xattr here"]))
    drill.newest.not_tested = [line]
    drill.expect("not_tested")


# --- near-misses: nothing to say ----------------------------------------------------------


def failed_once_long_ago(drill: Drill, rng: Random) -> None:
    drill.months[5].checks = {"checksums_match": (Verdict.FAIL, "129 of 130 entries")}


def missed_long_ago(drill: Drill, rng: Random) -> None:
    drill.months[-int(rng.integers(5, 9))].missed = True


def retried_once(drill: Drill, rng: Random) -> None:
    drill.newest.failed_attempts = 1


def damaged_long_ago(drill: Drill, rng: Random) -> None:
    drill.months[-14].damaged_record = True


def objective_just_met(drill: Drill, rng: Random) -> None:
    drill.settings["objectives"] = {"rto_seconds": 2.5 * TYPICAL_SECONDS, "rpo_seconds": 60}
    drill.newest.rpo_seconds = 59


def timeout_far(drill: Drill, rng: Random) -> None:
    drill.newest.duration_seconds = 0.75 * TIMEOUT_SECONDS


def disk_enough(drill: Drill, rng: Random) -> None:
    for month in drill.months:
        month.disk_free_bytes = int(2.2 * room_for(month.data_bytes) * rng.uniform(0.97, 1.03))


def spike_long_ago(drill: Drill, rng: Random) -> None:
    drill.months[-6].times = 4


def acknowledged_shift(drill: Drill, rng: Random) -> None:
    for month in drill.months[-8:]:
        month.times = 3
    drill.acknowledged = [len(drill.months) - 8 + later for later in (0, 1, 2)]


def slightly_slower(drill: Drill, rng: Random) -> None:
    for at, month in enumerate(drill.months):
        month.times = 1.001**at


OF_NEWEST = (
    failing_check,
    snapshot_expired,
    check_untrusted,
    drill_error,
    not_enough_room,
    timeout_hit,
    timeout_near,
    not_verified,
    sign_off_missing,
    not_sealed,
    drill_killed,
    rto_missed,
    rpo_missed,
    spike,
)
OF_TIMES = (growing, shifted, noisy)
OF_MONTHS = (
    month_missed,
    failure_recurs,
    damaged_record,
    often_without_proof,
    disk_short,
    data_outgrow_disk,
    not_tested,
)
ALONE = (long_without_proof, retries_needed)
NEAR_MISSES = (
    failed_once_long_ago,
    missed_long_ago,
    retried_once,
    damaged_long_ago,
    objective_just_met,
    timeout_far,
    disk_enough,
    spike_long_ago,
    acknowledged_shift,
    slightly_slower,
)
CLEAN = 0.2
"""Share of drills to which nothing happens at all."""


def make_drill(target: str, number: int, rng: Random) -> Drill:
    """A drill with one problem, several that can come together, a near-miss, or nothing.

    Problems are taken in turn by `number`, so that none is left out.
    """
    drill = Drill(target, int(rng.integers(18, 25)))
    every = (*OF_NEWEST, *OF_MONTHS, *ALONE, *OF_TIMES, *OF_TIMES)
    if rng.random() < CLEAN:
        return drill
    chosen: list[Callable[[Drill, Random], None]] = [every[number % len(every)]]
    if rng.random() < 0.35:
        chosen = [NEAR_MISSES[rng.integers(len(NEAR_MISSES))]]
    elif chosen[0] in OF_MONTHS and rng.random() < 0.6:
        more = (*OF_NEWEST, *OF_TIMES)
        chosen.append(more[rng.integers(len(more))])
    for inject in chosen:
        inject(drill, rng)
        drill.injected.append(inject.__name__)
    _what_follows(drill)
    return drill


def _what_follows(drill: Drill) -> None:
    """Labels that the months' outcomes have by definition, whatever was injected."""
    without = next(
        (back for back, month in enumerate(reversed(drill.months)) if month.proven),
        len(drill.months),
    )
    if without >= 3:
        drill.expect("proof_is_old")
    ran = drill.ran()
    bad = sum(not month.proven for month in ran)
    if stats.beta.ppf(0.05, len(ran) - bad, bad + 1) < 0.7:
        drill.expect("restores_unreliable")


def leave_history(home: Path, seed: int) -> tuple[Any, list[Drill], int]:
    """Write one history; returns its plan, its drills, and how many months it has."""
    rng = np.random.default_rng(seed)
    drills = [make_drill(target, 3 * seed + at, rng) for at, target in enumerate(TARGETS)]
    plan = make_plan(home, {drill.target: drill.settings for drill in drills})
    months = max(len(drill.months) for drill in drills)
    for drill, spec in zip(drills, plan.drills(), strict=True):
        assert spec.name == drill.name
        late = months - len(drill.months)  # all end in the same month
        for at, month in enumerate(drill.months):
            leave_month(spec, late + at, month, rng)
        for at in drill.acknowledged:
            for metric in METRICS:
                keep_acknowledgement(
                    home,
                    drill.name,
                    metric,
                    label(late + at),
                    "Ada",
                    "a slower disk, as ordered",
                    restarts=True,
                )
    return plan, drills, months


def problem_histories(seeds: Iterable[int]) -> Iterator[dict[str, object]]:
    """One row for each recommendation that was due, made, or both."""
    for seed in seeds:
        began = monotonic()
        with tempfile.TemporaryDirectory(prefix="recovery-problems-") as folder:
            home = Path(folder)
            plan, drills, months = leave_history(home, seed)
            today = date.fromisoformat(label(months))
            made = recommendations(home, plan, today, look_back_months=1)
        open_ids = {str(id) for id in made[made["state"] == "open"]["id"]}
        due = set[str]().union(*(drill.labels for drill in drills))
        for id in sorted(open_ids | due) or [""]:
            yield {
                "seed": seed,
                "rule": id.split(":")[0],
                "id": id,
                "due": id in due,
                "made": id in open_ids,
                "injected": "; ".join(
                    f"{drill.name}: {', '.join(drill.injected) or 'nothing'}" for drill in drills
                ),
                "seconds": monotonic() - began,
            }


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """By rule and in all: how many were due, found, missed and false; precision and recall."""
    rows = rows[rows["rule"] != ""]
    groups = [*rows.groupby("rule"), ("all", rows)]
    return pd.DataFrame([{"rule": rule, **_score(group)} for rule, group in groups])


def _score(rows: pd.DataFrame) -> dict[str, float]:
    found = int((rows["due"] & rows["made"]).sum())
    due, made = int(rows["due"].sum()), int(rows["made"].sum())
    return {
        "due": due,
        "found": found,
        "missed": due - found,
        "false": made - found,
        "precision": found / made if made else 1.0,
        "recall": found / due if due else 1.0,
    }
