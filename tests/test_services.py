"""Service drills: a power cut that is one, losses that are counted, unsafe stacks that are found.

The drills themselves run in the machine's namespaces; without those there is nothing to test.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recovery_pipelines.drills import partial_failure as partial_failure_steps
from recovery_pipelines.drills import service_checks
from recovery_pipelines.drills.record import DrillRecord
from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.drills.service_checks import (
    FEWEST_ANSWERS,
    Promise,
    degraded_clients,
    judge,
)
from recovery_pipelines.errors import MissingCapability, ServiceError
from recovery_pipelines.monitoring.baseline import Usual
from recovery_pipelines.namespaces import in_namespaces, require_namespaces
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.services import host, memory
from recovery_pipelines.services.host import Machine, can_loop
from recovery_pipelines.services.ledger import compare, payload
from recovery_pipelines.services.page_cache import why_no_page_cache
from recovery_pipelines.services.power import LoopVolume
from recovery_pipelines.services.stack import resolve
from recovery_pipelines.tools import run_tool
from recovery_pipelines.verdict import CheckResult, Verdict
from tests import pair_effects, stack_effects
from tests.plans import MONTH
from tests.stack_effects import SERVICES, seen, spec_of

needs_root = pytest.mark.skipif(not can_loop(), reason="a power cut needs root and loop devices")


@pytest.fixture(autouse=True, scope="module")
def _namespaces() -> None:
    try:
        require_namespaces()
    except MissingCapability as error:
        pytest.skip(str(error))


def drill(folder: Path, **changes: Any) -> DrillRecord:
    return carry_out_steps(spec_of(folder, **changes), MONTH, "run")


def skip_without(volume: str) -> None:
    """Skip the test where there can be no such volume."""
    if volume == "page cache" and why_no_page_cache():
        pytest.skip(why_no_page_cache())
    if volume == "image" and not can_loop():
        pytest.skip("no loop devices here")


def verdicts(record: DrillRecord) -> dict[str, Verdict]:
    return {check.name: check.verdict for check in record.checks}


def test_a_safe_stack_survives_a_power_cut_that_is_one(tmp_path: Path) -> None:
    record = drill(tmp_path)
    assert not record.errors, record.messages
    found = verdicts(record)
    unproven = {"power_was_cut", "checksums_match"}
    if can_loop() or not why_no_page_cache():
        assert record.verdict is Verdict.PASS, record.reason
    else:
        assert record.verdict is Verdict.UNVERIFIED, record.reason
        assert {name for name in found if found[name] is Verdict.UNVERIFIED} == unproven
    assert record.metrics["lost_entries"] == 0
    assert record.metrics["recovery_seconds"] > 0
    assert record.metrics["acknowledged_writes"] > 100
    assert not list((tmp_path / "data" / "sandboxes").iterdir())
    backing = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    assert not [text for text in backing if str(tmp_path) in text]


UNSAFE: dict[str, dict[str, Any]] = {
    "no_fsync": {"kind": "postgres", "port": 5501, "settings": {"fsync": "off"}},
    "late_commit": {"kind": "postgres", "port": 5502, "settings": {"synchronous_commit": "off"}},
    "no_log": {"kind": "redis", "port": 6501, "settings": {"appendonly": "no"}},
    "each_second": {"kind": "redis", "port": 6502, "settings": {"appendfsync": "everysec"}},
    "kernel_decides": {"kind": "redis", "port": 6503, "settings": {"appendfsync": "no"}},
    "elsewhere": {"kind": "redis", "port": 6504, "settings": {"dir": "/dev/shm"}},
}
"""Services that lose acknowledged writes when the power is cut."""
SAFE: dict[str, dict[str, Any]] = {"safe": {"kind": "redis"}}


@pytest.mark.parametrize("volume", ["image", "page cache"])
def test_unsafe_services_are_found_out_by_a_power_cut(
    volume: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in one drill: it says of each what it lost, and of a safe one beside them nothing."""
    skip_without(volume)
    monkeypatch.setattr(host, "_best_volume", lambda: volume)
    record = drill(tmp_path, **{SERVICES: UNSAFE | SAFE})
    found = {check.name: check for check in record.checks}
    assert found["power_was_cut"].verdict is Verdict.PASS
    assert found["checksums_match"].verdict is record.verdict is Verdict.FAIL, record.reason
    said = {name: text for check in record.checks for name, text in _by_service(check.found)}
    lost = {name for name in UNSAFE | SAFE if " 0 of " not in f" {said.get(name, 'unreadable')}"}
    assert lost == set(UNSAFE), found["checksums_match"].found


def _by_service(found: str) -> Iterator[tuple[str, str]]:
    """What `checksums_match` says of each store: `name: 3 of 9 acknowledged writes lost`."""
    for part in found.split("; "):
        name, _, text = part.partition(": ")
        if "acknowledged writes lost" in text:
            yield name, text


def partial_failure(folder: Path, fault: str, **changes: Any) -> DrillRecord:
    faults = {"targets__test_services__faults": [fault]}
    spec = spec_of(folder, "partial_failure", **faults | changes)
    return carry_out_steps(spec, MONTH, "run")


def test_a_crash_of_what_is_critical_is_repaired_without_help(tmp_path: Path) -> None:
    record = partial_failure(tmp_path, "kill")
    assert record.verdict is Verdict.PASS, record.reason
    assert record.metrics["lost_entries"] == 0
    assert 0 < record.metrics["detect_seconds"] <= record.metrics["recovery_seconds"]
    assert record.metrics["client_errors"] > 0
    (rooms,) = record.content["isolation"]["namespaces"].values()
    assert {"mnt", "net", "pid"} <= set(rooms)
    assert not list((tmp_path / "data" / "sandboxes").iterdir())


@pytest.mark.parametrize("volume", ["image", "page cache", "directory"])
def test_a_full_disk_is_a_drill_of_a_volume_of_its_own_only(
    volume: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one the disk would be the host's: that must be left alone, and said."""
    skip_without(volume)
    monkeypatch.setattr(host, "_best_volume", lambda: volume)
    record = partial_failure(tmp_path, "disk_full")
    found = next(check for check in record.checks if check.name == "automated_recovery")
    if volume == "directory":
        assert found.verdict is record.verdict is Verdict.UNVERIFIED, record.reason
    else:
        assert record.verdict is Verdict.PASS, record.reason
        assert "a restart does not help here" in found.found


_LOCKS = "[ ! -e {data}/lock ] && touch {data}/lock && exec redis-server --port {port}"
WEAK: dict[str, tuple[str, dict[str, Any], str]] = {
    "a hang that a mere connection does not show": (
        "hang",
        {"kind": "redis", "health": {"tcp": True}},
        "automated_recovery",
    ),
    "a cache that forgets when it is killed": (
        "kill",
        {"kind": "redis", "settings": {"appendonly": "no"}},
        "checksums_match",
    ),
    "a server that its own stale lock keeps from starting again": (
        "kill",
        {"command": ["sh", "-c", _LOCKS], "port": 6379, "health": {"tcp": True}},
        "automated_recovery",
    ),
}


@pytest.mark.parametrize("name", WEAK)
def test_a_weak_stack_is_found_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_failure_steps, "REPAIR_TIMEOUT_SECONDS", 8.0)
    fault, service, criterion = WEAK[name]
    record = partial_failure(tmp_path, fault, **{SERVICES: {"weak": service}})
    assert record.verdict is Verdict.FAIL, record.reason
    assert verdicts(record)[criterion] is Verdict.FAIL


@pytest.mark.parametrize("drilled", [stack_effects, pair_effects])
def test_a_machine_that_lacks_a_program_leaves_every_check_unverified(
    drilled: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = drilled.spec_of(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    record = carry_out_steps(spec, MONTH, "run")
    assert record.verdict is Verdict.UNVERIFIED, record.reason
    assert {check.verdict for check in record.checks} == {Verdict.UNVERIFIED}
    assert set(spec.scenario.validation_criteria.names) < {check.name for check in record.checks}
    assert "is not on this machine" in record.checks[0].found


@needs_root
def test_a_check_that_cannot_fail_makes_the_drill_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        service_checks,
        "judge",
        lambda name, seen, promise: CheckResult(name, Verdict.PASS, "all", "all"),
    )
    assert verdicts(drill(tmp_path, **{SERVICES: SAFE}))["self_test"] is Verdict.INVALID


def test_power_is_cut_only_on_our_own_loop_device(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="refused"):
        LoopVolume(tmp_path, tmp_path / "image", os.minor(tmp_path.stat().st_dev)).cut()


@pytest.mark.skipif(bool(why_no_page_cache()), reason=why_no_page_cache())
@pytest.mark.parametrize("seed", range(3))
def test_a_page_cache_keeps_what_was_synced_and_nothing_else(tmp_path: Path, seed: int) -> None:
    command = [sys.executable, "-m", "tests.page_cache_model", tmp_path, str(seed)]
    done = run_tool([*in_namespaces(), *command])
    assert done.returncode == 0, done.complaint
    told = json.loads(done.stdout)
    assert told["found"] == told["expected"]


def test_losses_are_counted() -> None:
    acknowledged = {number: float(number) for number in range(10)}
    rows = {number: payload(number) for number in range(10)}
    whole = compare(acknowledged, rows, cut_at=9.5)
    assert (whole.lost, whole.wrong, whole.holes, whole.lost_seconds) == (0, 0, 0, 0.0)
    tail = compare(acknowledged, {n: rows[n] for n in range(7)}, cut_at=9.5)
    assert (tail.lost, tail.holes, tail.lost_seconds) == (3, 0, 2.5)
    hole = compare(acknowledged, {n: rows[n] for n in range(10) if n != 4}, cut_at=9.5)
    assert (hole.lost, hole.holes) == (1, 1)
    wrong = compare(acknowledged, rows | {5: "x"}, cut_at=9.5)
    assert (wrong.lost, wrong.wrong) == (0, 1)
    late = compare(acknowledged, {n: rows[n] for n in range(9)}, cut_at=8.5)
    assert (late.acknowledged, late.lost) == (9, 0), "what came after the cut was not promised"


def test_a_monitored_service_is_compared_with_what_monitoring_knows() -> None:
    after = {"client-application": [0.03] * FEWEST_ANSWERS, "client-cache": [0.03] * FEWEST_ANSWERS}
    observed = seen(after=after)
    for usual, verdict in ((None, Verdict.PASS), (0.02, Verdict.PASS), (0.01, Verdict.FAIL)):
        known = {"client-application": Usual(1000, usual)} if usual else {}
        promise = Promise(may_lose_seconds={}, response_seconds=0.1, usual=known)
        result = judge("response_times_normal", observed, promise)
        assert result.verdict is verdict
        assert ("of 1000 requests" in result.found) is bool(usual)
        assert "client-cache: 30.0 ms (not monitored)" in result.found


def test_what_a_backup_held_may_not_be_lost_however_young_it_is() -> None:
    """A store that comes back empty has lost no more seconds than the drill took."""
    rows = compare({number: float(number) for number in range(10)}, {}, cut_at=9.5)
    observed = seen(rows={"cache": rows})
    for backed_up_at, verdict in ((0.0, Verdict.PASS), (5.0, Verdict.FAIL)):
        promise = Promise({"cache": 30}, 1, backed_up_at={"cache": backed_up_at})
        assert judge("checksums_match", observed, promise).verdict is verdict


def test_degradation_has_the_stated_error_rate_and_power() -> None:
    rng = random.Random(7)

    def sample(factor: float) -> dict[str, list[float]]:
        return {
            name: [factor * rng.lognormvariate(0, 0.6) for _ in range(70)] for name in ("a", "b")
        }

    false_alarms = sum(bool(degraded_clients(sample(1), sample(2))) for _ in range(400))
    assert false_alarms <= 12, "1 % of 400, with the room of chance"
    found = sum(degraded_clients(sample(1), sample(4)) == ["a", "b"] for _ in range(50))
    assert found >= 48


# --- memory cgroups ---


@pytest.mark.parametrize(
    ("own", "files", "where"),
    [
        ("4:memory:/a\n0::/\n", {"memory/a": "memory.limit_in_bytes"}, "memory/a"),
        ("4:memory:/a/b\n0::/\n", {"memory": "memory.limit_in_bytes"}, "memory"),
        ("0::/user/app/mine\n", {"user/app": "cgroup.subtree_control"}, "user/app"),
        ("0::/user/app/mine\n", {"other": "cgroup.subtree_control"}, None),
        ("4:memory:/a\n", {}, None),
    ],
)
def test_a_memory_group_is_made_where_its_parent_allows_it(
    own: str, files: dict[str, str], where: str | None, tmp_path: Path
) -> None:
    for folder, name in files.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "cgroup.procs").touch()
        (tmp_path / folder / name).write_text("cpu memory\n")
    if where:
        assert memory.place(tmp_path, own) == tmp_path / where
    else:
        with pytest.raises(MissingCapability, match="no memory cgroup"):
            memory.place(tmp_path, own)


def test_the_kernel_kills_a_service_that_is_out_of_memory(machine: Machine, home: Path) -> None:
    """And the group in which that happened is removed with the sandbox."""
    if memory.why_no_memory_group():
        pytest.skip(memory.why_no_memory_group())
    with Sandbox.create(home, "memory") as sandbox:
        group = memory.make_group(sandbox, "database")
        at = machine.ask("starve", name="database", group=str(group))["at"]
        await_event(machine, "database", "healthy", at)
        assert memory.oom_kills(group) > 0
    assert not group.exists()


def test_a_process_that_ended_meanwhile_is_left_out(home: Path) -> None:
    if memory.why_no_memory_group():
        pytest.skip(memory.why_no_memory_group())
    with subprocess.Popen(["true"]) as ended:
        pass
    with Sandbox.create(home, "memory") as sandbox, subprocess.Popen(["sleep", "60"]) as living:
        group = memory.make_group(sandbox, "some")
        assert memory.move(group, [ended.pid, living.pid]) == 1
        living.kill()


# --- the supervisor -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("supervisor")


@pytest.fixture(scope="module")
def machine(home: Path) -> Iterator[Machine]:
    services = resolve(spec_of(home).stack.services)
    with (
        Sandbox.create(home, "supervisor") as sandbox,
        Machine(sandbox, "main", services, home / "logs", new_volume=True) as machine,
    ):
        machine.ask("start")
        yield machine


@pytest.mark.parametrize("name", ["database", "cache", "application"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_service_that_dies_or_hangs_is_started_again(
    machine: Machine, name: str, number: int
) -> None:
    at = machine.ask("signal", name=name, number=number)["at"]
    assert await_event(machine, name, "healthy", at) > await_event(machine, name, "failed", at)
    assert machine.ask("status")["services"][name]["healthy"]


def test_a_full_disk_is_noticed_and_the_reserve_freed(machine: Machine) -> None:
    if not can_loop():
        pytest.skip("without a volume of its own, the disk is the machine's")
    restarts = {name: unit["restarts"] for name, unit in status(machine).items()}
    at = machine.ask("fill")["at"]
    await_event(machine, "volume", "remedied", at)
    assert machine.ask("empty")["free_bytes"] > 0
    await_event(machine, "volume", "healthy", at)
    assert restarts["application"] == status(machine)["application"]["restarts"]


def test_a_service_without_descriptors_is_started_again(machine: Machine) -> None:
    at = machine.ask("limit", name="application", resource="nofile", value=3)["at"]
    assert await_event(machine, "application", "healthy", at) > at


def status(machine: Machine) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = machine.ask("status")["services"]
    return found


def await_event(machine: Machine, name: str, what: str, since: float) -> float:
    """When it happened, on the monotonic clock."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = (machine.logs / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        times = [e["at"] for e in events if (e["service"], e["event"]) == (name, what)]
        if times and times[-1] > since:
            return float(times[-1])
        time.sleep(0.05)
    raise AssertionError(f"{name}: no event {what!r} within 60 s")
