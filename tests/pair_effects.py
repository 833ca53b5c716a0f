"""The effect of each key of the plan that is about replicated databases; see test_plan."""

from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from recovery_pipelines import namespaces
from recovery_pipelines.build import build_definitions
from recovery_pipelines.drills.network_checks import Observed, failed_over_in_time, judge
from recovery_pipelines.drills.network_recovery import promise_of
from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.errors import PlanError
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.verdict import Verdict
from tests.plans import MONTH, make_plan, make_spec
from tests.scenario_effects import Effect, effect_criteria, effect_notification, effect_schedule

GROUP = "test_framework__test_scenarios__network_recovery"
PAIR = "targets__test_replication"
LATE = [{"path": "x", "latency_seconds": 0.2}]
LOST = [{"writer": "x", "number": n, "node": "primary", "at": float(n)} for n in (1, 2)]


def spec_of(folder: Path, **changes: Any) -> DrillSpec:
    return make_spec(folder, "network_isolation", **{f"{PAIR}__fencing": True} | changes)


def verdicts(folder: Path, name: str, seen: Observed, *plans: dict[str, Any]) -> list[str]:
    """How a criterion judges the same under several plans."""
    found = []
    for keys in plans:
        changes = {f"{PAIR}__{key}": value for key, value in keys.items()}
        promise = promise_of(spec_of(folder, **changes))
        if name == "failed_over_in_time":
            found.append(failed_over_in_time(seen, promise).verdict)
        else:
            found.append(judge(name, seen, promise).verdict)
    return [str(verdict) for verdict in found]


def effect_loss(tmp_path: Path, *_: object) -> None:
    seen = Observed(acknowledged=LOST, held={"primary": {}, "standby": {}})
    kept = {"replication": "asynchronous"}
    plans = [{}, kept, kept | {"may_lose_seconds": 0.5}, kept | {"may_lose_seconds": 2}]
    found = verdicts(tmp_path, "no_acknowledged_write_lost", seen, *plans)
    assert found == ["FAIL", "FAIL", "FAIL", "PASS"]


def effect_latency(tmp_path: Path, *_: object) -> None:
    plans = [{"latency_seconds": 0.1}, {"latency_seconds": 0.3}]
    found = verdicts(tmp_path, "latency_within_limits", Observed(after=LATE), *plans)
    assert found == ["FAIL", "PASS"]


def effect_failover(tmp_path: Path, *_: object) -> None:
    seen = Observed(cut_at=0, declared_at=3, promoted_at=4)
    plans = [{"failover_seconds": 3}, {"failover_seconds": 5}]
    assert verdicts(tmp_path, "failed_over_in_time", seen, *plans) == ["FAIL", "PASS"]


def effect_failures(tmp_path: Path, *_: object) -> None:
    plan = make_plan(tmp_path, **{f"{PAIR}__failures": ["drop", "loss"]})
    names = [spec.name for spec in plan.drills() if spec.group == "network_recovery"]
    assert names == ["network_isolation_drop", "network_isolation_loss"]


def effect_fencing(tmp_path: Path, *_: object) -> None:
    """What is asked of the laboratory; tests/test_network_drill.py does it for real."""
    asked: list[bool] = []

    class Recorder:
        def __init__(self, *_: object, **__: object) -> None: ...

        def ask(self, do: str, **words: Any) -> dict[str, Any]:
            if do == "fail_over":
                asked.append(words["fence"])
            return {"paths": [], "ended": 0.0} if do in ("measure", "cut") else {}

        def end(self) -> None: ...

    with patch("recovery_pipelines.drills.network_recovery.Laboratory", Recorder):
        for number, fencing in enumerate((True, False)):
            spec = spec_of(tmp_path, **{f"{PAIR}__fencing": fencing})
            with suppress(KeyError):  # the recorder has nothing to answer
                carry_out_steps(spec, MONTH, f"run{number}")
    assert asked == [True, False]


def effect_patroni(tmp_path: Path, *_: object) -> None:
    """Another program sees to the failover; tests/test_network_drill.py lets it."""
    spec = spec_of(tmp_path, **{f"{PAIR}__patroni": "missing/patroni"})
    assert promise_of(spec).failover_seconds > promise_of(spec_of(tmp_path)).failover_seconds
    record = carry_out_steps(spec, MONTH, "run")
    assert record.verdict is Verdict.UNVERIFIED
    assert str(tmp_path / "missing/patroni") in record.reason
    with pytest.raises(PlanError, match="fencing is up to Patroni"):
        spec_of(tmp_path, **{f"{PAIR}__patroni": "patroni", f"{PAIR}__fencing": False})


def effect_name(tmp_path: Path, *_: object) -> None:
    plan = make_plan(tmp_path, **{f"{GROUP}__scenarios": []})
    assert not [spec for spec in plan.drills() if spec.scenario.name == "network_isolation"]
    assert spec_of(tmp_path).name == "network_isolation_one_sided_drop"


def effect_description(tmp_path: Path, *_: object) -> None:
    spec = spec_of(tmp_path, **{f"{GROUP}__scenarios__0__description": "Cut the cable"})
    assert build_definitions(spec.plan).resolve_job_def(spec.name).description == "Cut the cable"


def effect_steps_and_reporting(tmp_path: Path, *_: object) -> None:
    changes = {f"{GROUP}__scenarios__0__steps": ["simulate_network_failure"]}
    quiet = changes | {f"{GROUP}__automation__reporting": []}
    with patch.object(namespaces, "_NAMESPACES", ("--no-such-namespace",)):
        record = carry_out_steps(spec_of(tmp_path, **changes), MONTH, "first")
        second = carry_out_steps(spec_of(tmp_path, **quiet), MONTH, "second")
    assert record.verdict is Verdict.UNVERIFIED, record.reason
    assert "step activate_failover is left out of the plan" in record.not_tested
    both, none = ({path.name for path in r.folder.iterdir()} for r in (record, second))
    assert both - none == {"journal.jsonl", "metrics.parquet"}


_GROUP = "network_recovery"
_SCENARIO = f"test_framework.test_scenarios.{_GROUP}"
_CRITERIA = f"{_SCENARIO}.scenarios.validation_criteria"

PAIR_EFFECTS: dict[str, Effect] = {
    "targets.replication": effect_loss,
    "targets.may_lose_seconds": effect_loss,
    "targets.patroni": effect_patroni,
    "targets.fencing": effect_fencing,
    "targets.failures": effect_failures,
    "targets.failover_seconds": effect_failover,
    "targets.latency_seconds": effect_latency,
    f"{_SCENARIO}.scenarios.name": effect_name,
    f"{_SCENARIO}.scenarios.description": effect_description,
    f"{_SCENARIO}.scenarios.steps": effect_steps_and_reporting,
    f"{_SCENARIO}.automation.schedule": effect_schedule(_GROUP),
    f"{_SCENARIO}.automation.notification": effect_notification(spec_of, _GROUP),
    f"{_SCENARIO}.automation.reporting": effect_steps_and_reporting,
    f"{_CRITERIA}.connectivity": effect_criteria(
        spec_of, _GROUP, "connectivity", "no_packet_loss", "all_services_accessible"
    ),
    f"{_CRITERIA}.performance": effect_criteria(
        spec_of, _GROUP, "performance", "bandwidth_normal", "latency_within_limits"
    ),
    f"{_CRITERIA}.consistency": effect_criteria(
        spec_of, _GROUP, "consistency", "no_split_brain", "no_acknowledged_write_lost"
    ),
}
