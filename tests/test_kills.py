"""A drill that is killed with SIGKILL leaves nothing behind after the next start, and no claim."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pandas as pd
import pytest
import yaml

from campaigns import kills
from campaigns.history import services_plan_text
from campaigns.io_errors import io_errors
from campaigns.kills import Instant, Shooting, Timeline
from campaigns.summary import failures
from campaigns.traces import Traces, living, remaining, traces_of
from recovery_pipelines.sandbox import Sandbox, reap
from recovery_pipelines.verdict import Verdict
from tests.plans import PATRONI

DRILL, OTHER = kills.DATA_DRILLS
*_, PARTIAL, NETWORK = kills.SERVICE_DRILLS


@pytest.fixture(scope="module")
def shooting(tmp_path_factory: pytest.TempPathFactory) -> Shooting:
    return Shooting.of_data(tmp_path_factory.mktemp("kills") / "home", seed=5)


@pytest.fixture(scope="module")
def timeline(shooting: Shooting) -> Timeline:
    return shooting.timeline(DRILL)


def test_killed_at_step_boundaries_and_at_any_time(shooting: Shooting, timeline: Timeline) -> None:
    stages = [
        instant
        for instant, line in zip(timeline.boundaries(), timeline.lines, strict=True)
        if "started" in line or "finished" in line
    ]
    instants = [*stages[:-1:3], *timeline.random_instants(2, Random(5))]
    rows = []
    for number, instant in enumerate(instants):
        rows.append(shooting.kill(DRILL, instant, ("reaper", OTHER)[number % 2]))
        rows[-1]["run_again"] = None
    rows[-1]["run_again"] = str(shooting.run(DRILL, rows[0]["run_id"]))
    assert failures({"kills": pd.DataFrame(rows)}) == []
    assert len({row["reached"] for row in rows}) >= 4, "killed at different places"
    assert rows[-1]["run_again"] == Verdict.PASS


@pytest.mark.parametrize(("drill", "instant"), [(PARTIAL, Instant(2, 1)), (NETWORK, Instant(5, 1))])
def test_servers_and_networks_go_with_the_drill_that_is_killed(
    drill: str, instant: Instant, tmp_path: Path
) -> None:
    shooting = Shooting(tmp_path, services_plan_text(tmp_path))
    row = shooting.kill(drill, instant)
    assert not row["finished"] and row["held"] > 5, "what must go was there"
    assert row["still_there"] == row["leftovers"] == []
    assert row["left_behind"] and row["claimed"] is None


def test_system_calls_that_fail(tmp_path: Path) -> None:
    rows = list(io_errors(tmp_path, range(1, 3), (DRILL,)))
    assert failures({"io_errors": pd.DataFrame(rows)}) == []
    assert {row["verdict"] for row in rows} != {Verdict.PASS}, "some did harm"


@pytest.mark.skipif(not PATRONI.exists(), reason="needs Patroni: make .venv/patroni/installed")
def test_patroni_goes_with_the_drill_that_is_killed(tmp_path: Path) -> None:
    plan = yaml.safe_load(services_plan_text(tmp_path))
    plan["targets"]["test_replication"]["patroni"] = str(PATRONI)
    shooting = Shooting(tmp_path, yaml.safe_dump(plan))
    row = shooting.kill(NETWORK, Instant(2))
    assert not row["finished"] and row["held"] > 20, "what must go was there"
    assert row["still_there"] == row["leftovers"] == []
    assert row["left_behind"] and row["claimed"] is None


# --- these tests can fail -------------------------------------------------------------------


def test_without_the_reaper_something_is_left(
    shooting: Shooting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kills, "reap", lambda home: [])
    row = shooting.kill(DRILL, Instant(3))
    assert any("corruption_recovery_tar" in name for name in row["leftovers"])
    assert reap(shooting.home) != []


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A process that carries the lease of a sandbox, and its id."""
    with Sandbox.create(tmp_path, "x") as sandbox:
        process = subprocess.Popen(
            ["sh", "-c", "echo started; read _"],
            env=os.environ | sandbox.environment,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout and process.stdout.readline(), "its environment is there from now on"
        yield sandbox.token, process.pid
        process.kill()
        process.communicate()


def test_a_process_that_carries_the_lease_is_found(orphan: tuple[str, int]) -> None:
    token, pid = orphan
    nothing = Traces(-1, frozenset(), frozenset(), frozenset(), frozenset())
    family = traces_of(pid)

    def found(traces: Traces, *tokens: str) -> list[int]:
        return [process.pid for process in living(traces, tokens)]

    assert found(nothing, token) == [pid]
    assert found(replace(nothing, session=pid)) == [pid]
    assert found(replace(family, session=-1)) == [pid]
    assert found(nothing, "another") == []


def test_a_namespace_is_held_by_whoever_was_there_before(tmp_path: Path) -> None:
    """Its number alone may have been given to a new one since."""
    ours = frozenset({str(Path("/proc/self/ns/net").readlink())})
    held = replace(traces_of(os.getpid()), processes=frozenset(), session=-1, namespaces=ours)
    assert remaining(held, tmp_path, ()) == [f"namespace {name}" for name in ours]
    assert remaining(replace(held, until=0), tmp_path, ()) == []
