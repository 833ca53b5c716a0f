"""The effect of each key of the plan that is about service stacks; see test_plan."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from recovery_pipelines.build import build_definitions
from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.drills.service_checks import FEWEST_ANSWERS, Observed, judge
from recovery_pipelines.drills.system_failure import promise_of
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.services.ledger import Comparison
from recovery_pipelines.services.probes import probe
from recovery_pipelines.services.service import Service
from recovery_pipelines.services.stack import rank, resolve
from recovery_pipelines.verdict import Verdict
from tests.plans import MONTH, make_plan, make_spec
from tests.scenario_effects import Effect, effect_criteria, effect_notification, effect_schedule

GROUP = "test_framework__test_scenarios__system_failure"
SERVICES = "targets__test_services__services"
RECOVERIES = "targets__test_services__recoveries"
BOTH = ("same_volume", "volume_destroyed")
OWN = {"command": ["my-server", "{port}", "{data}"], "port": 9999, "health": {"tcp": True}}


def spec_of(folder: Path, scenario: str = "complete_system_failure", **changes: Any) -> DrillSpec:
    """The first drill of a scenario on services."""
    return make_spec(folder, scenario, **{"targets__test_services__response_seconds": 5} | changes)


def service(folder: Path, **declared: Any) -> Service:
    """One service as it would be started."""
    (found,) = resolve(spec_of(folder, **{SERVICES: {"mine": declared}}).stack.services)
    return found


def effect_kind(tmp_path: Path, *_: object) -> None:
    kinds = ("postgres", "redis", "application")
    assert [service(tmp_path, kind=kind).kind for kind in kinds] == list(kinds)


def effect_settings(tmp_path: Path, *_: object) -> None:
    found = service(tmp_path, kind="postgres", settings={"work_mem": "1MB"})
    assert "--work_mem=1MB" in found.command


def effect_command(tmp_path: Path, *_: object) -> None:
    assert service(tmp_path, **OWN).command == ("my-server", "9999", "/mnt/volume/mine")


def effect_user(tmp_path: Path, *_: object) -> None:
    assert service(tmp_path, kind="redis", user="daemon").user == "daemon"


def effect_port(tmp_path: Path, *_: object) -> None:
    assert service(tmp_path, kind="redis", port=7000).port == 7000


def effect_health(kind: str, value: Any, works: bool) -> Effect:
    """A server that answers 200 on `/` only: the probe of each kind says so or not."""

    def effect(tmp_path: Path, *_: object) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 1

            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/" else 404)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                return

        health = service(tmp_path, **OWN | {"health": {kind: value}}).health
        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            asked = probe(health, "127.0.0.1", server.server_address[1])
            if works:
                asyncio.run(asyncio.wait_for(asked, 10))
            else:
                with pytest.raises(Exception):  # noqa: B017 - whatever the client raises
                    asyncio.run(asyncio.wait_for(asked, 10))
            server.shutdown()

    return effect


def effect_depends_on(tmp_path: Path, *_: object) -> None:
    services = {
        "late": {"kind": "application", "depends_on": ["early"]},
        "early": {"kind": "redis"},
    }
    found = resolve(spec_of(tmp_path, **{SERVICES: services}).stack.services)
    assert [one.name for one in found] == ["early", "late"]
    assert rank(found)["dependants"].to_list() == [1, 0]


def seen(**changes: Any) -> Observed:
    nothing: dict[str, Any] = {
        "not_running": {},
        "unreadable": {},
        "rows": {},
        "corruption": {},
    }
    return Observed(**nothing | changes)


def effect_may_lose(tmp_path: Path, *_: object) -> None:
    rows = Comparison(acknowledged=9, lost=2, wrong=0, holes=0, lost_seconds=0.5, first_lost_at=1.0)
    verdicts = [
        judge(
            "checksums_match",
            seen(rows={"cache": rows}),
            promise_of(spec_of(tmp_path, **{f"{SERVICES}__cache__may_lose_seconds": seconds})),
        ).verdict
        for seconds in (0, 0.4, 0.6)
    ]
    assert verdicts == [Verdict.FAIL, Verdict.FAIL, Verdict.PASS]


def effect_recoveries(tmp_path: Path, *_: object) -> None:
    plan = make_plan(tmp_path, **{RECOVERIES: list(BOTH)})
    names = [spec.name for spec in plan.drills() if spec.group == "system_failure"]
    assert [f"complete_system_failure_{way}" for way in BOTH] == [
        name for name in names if name.startswith("complete_system_failure")
    ]
    jobs = build_definitions(plan)
    assert all(jobs.resolve_job_def(f"complete_system_failure_{way}") for way in BOTH)


def effect_volume_may_lose(tmp_path: Path, *_: object) -> None:
    changes = {f"{SERVICES}__cache__volume_may_lose_seconds": 7, RECOVERIES: list(BOTH)}
    specs = {spec.engine: spec for spec in make_plan(tmp_path, **changes).drills()}
    allowed = {way: promise_of(specs[way]).may_lose_seconds["cache"] for way in BOTH}
    assert allowed == {"same_volume": 0, "volume_destroyed": 7}


def effect_response_seconds(tmp_path: Path, *_: object) -> None:
    answers = seen(after={"client": [0.2] * FEWEST_ANSWERS})
    verdicts = [
        judge(
            "response_times_normal",
            answers,
            promise_of(spec_of(tmp_path, targets__test_services__response_seconds=limit)),
        ).verdict
        for limit in (0.1, 0.3)
    ]
    assert verdicts == [Verdict.FAIL, Verdict.PASS]


def effect_faults(tmp_path: Path, *_: object) -> None:
    plan = make_plan(tmp_path, targets__test_services__faults=["hang", "disk_full"])
    names = [spec.name for spec in plan.drills() if spec.scenario.name == "partial_failure"]
    assert names == ["partial_failure_hang", "partial_failure_disk_full"]


def effect_name(tmp_path: Path, *_: object) -> None:
    plan = make_plan(tmp_path, **{f"{GROUP}__scenarios": [{"name": "complete_system_failure"}]})
    names = [spec.name for spec in plan.drills() if spec.group == "system_failure"]
    assert names == [f"complete_system_failure_{way}" for way in BOTH]


def effect_description(tmp_path: Path, *_: object) -> None:
    plan = make_plan(tmp_path, **{f"{GROUP}__scenarios__0__description": "Pull the plug"})
    job = build_definitions(plan).resolve_job_def("complete_system_failure_same_volume")
    assert job.description == "Pull the plug"


def effect_steps_and_reporting(tmp_path: Path, *_: object) -> None:
    changes = {f"{GROUP}__scenarios__0__steps": ["shutdown_all_services"]}
    record = carry_out_steps(spec_of(tmp_path, **changes), MONTH, "first")
    assert record.verdict is Verdict.UNVERIFIED, record.reason
    assert "step power_off_simulation is left out of the plan" in record.not_tested
    quiet = spec_of(tmp_path, **changes, **{f"{GROUP}__automation__reporting": []})
    folders = [record.folder, carry_out_steps(quiet, MONTH, "second").folder]
    both, none = ({path.name for path in folder.iterdir()} for folder in folders)
    assert both - none == {"journal.jsonl", "metrics.parquet"}


_GROUP = "system_failure"
_SCENARIO = f"test_framework.test_scenarios.{_GROUP}"
_CRITERIA = f"{_SCENARIO}.scenarios.validation_criteria"

STACK_EFFECTS: dict[str, Effect] = {
    "targets.services.kind": effect_kind,
    "targets.services.settings": effect_settings,
    "targets.services.command": effect_command,
    "targets.services.user": effect_user,
    "targets.services.port": effect_port,
    "targets.services.health.http": effect_health("http", "/elsewhere", False),
    "targets.services.health.tcp": effect_health("tcp", True, True),
    "targets.services.health.sql": effect_health("sql", "select 1", False),
    "targets.services.depends_on": effect_depends_on,
    "targets.services.may_lose_seconds": effect_may_lose,
    "targets.services.volume_may_lose_seconds": effect_volume_may_lose,
    "targets.recoveries": effect_recoveries,
    "targets.faults": effect_faults,
    "targets.response_seconds": effect_response_seconds,
    f"{_SCENARIO}.scenarios.name": effect_name,
    f"{_SCENARIO}.scenarios.description": effect_description,
    f"{_SCENARIO}.scenarios.steps": effect_steps_and_reporting,
    f"{_SCENARIO}.automation.schedule": effect_schedule(_GROUP),
    f"{_SCENARIO}.automation.notification": effect_notification(spec_of, _GROUP),
    f"{_SCENARIO}.automation.reporting": effect_steps_and_reporting,
    f"{_CRITERIA}.system_state": effect_criteria(
        spec_of, _GROUP, "system_state", "data_accessible", "all_services_running"
    ),
    f"{_CRITERIA}.data_integrity": effect_criteria(
        spec_of, _GROUP, "data_integrity", "checksums_match", "no_corruption"
    ),
    f"{_CRITERIA}.performance": effect_criteria(
        spec_of, _GROUP, "performance", "no_degradation", "response_times_normal"
    ),
}
