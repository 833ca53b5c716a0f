"""Recovery objectives of the plan against what a drill measured: no statistics, one drill."""

from collections.abc import Iterable, Mapping
from math import isnan

from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.plan.targets import Objectives
from recovery_pipelines.verdict import CheckResult, Verdict

_METRICS = {"rto": "recovery_seconds", "rpo": "rpo_seconds"}


def objective_names(objectives: Objectives) -> list[str]:
    """The checks of these objectives: `rto_met`, `rpo_met`, as far as the plan sets them."""
    return [f"{name}_met" for name in _METRICS if _limit(objectives, name) is not None]


def judge_objectives(objectives: Objectives, row: Mapping[str, object]) -> list[CheckResult]:
    """One result per objective that is set, from a drill's metrics row.

    A value above the objective is FAIL. One within it is PASS only if the drill itself passed: the
    time of a restore that is not verified proves nothing.
    """
    results = []
    for name, metric in _METRICS.items():
        limit = _limit(objectives, name)
        if limit is None:
            continue
        value = row.get(metric)
        seconds = float(value) if isinstance(value, int | float) else float("nan")
        expected = f"{metric} is at most {limit:g} s"
        found = "not measured" if isnan(seconds) else f"{seconds:.3f} s"
        if seconds > limit:
            verdict = Verdict.FAIL
        elif seconds <= limit and row.get("verdict") == str(Verdict.PASS):
            verdict = Verdict.PASS
        else:
            verdict = Verdict.UNVERIFIED
            found += f"; the drill is {row.get('verdict')}"
        results.append(CheckResult(f"{name}_met", verdict, expected, found))
    return results


def recovery_time_objectives(specs: Iterable[DrillSpec]) -> dict[str, float]:
    """The recovery time objective of each drill that has one."""
    limits = {spec.name: spec.target.objectives.rto_seconds for spec in specs}
    return {name: limit for name, limit in limits.items() if limit is not None}


def _limit(objectives: Objectives, name: str) -> float | None:
    limit: float | None = getattr(objectives, f"{name}_seconds")
    return limit
