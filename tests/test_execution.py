"""The plan's execution controls on a real Dagster instance: one after the other, timeout, retries,
stop and notify, and what a crash of the whole host leaves behind."""

import json
from operator import le
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.dagster_dev import DagsterDev, dagster_dev, wait_for
from tests.plans import MONTH

SCENARIOS = "test_framework__test_scenarios__data_recovery__scenarios"
CONTROLS = "test_framework__test_execution__execution_controls"
NO_RECOVERY = ["create_test_dataset", "simulate_corruption", "validate_data"]

pytestmark = pytest.mark.timeout(600)


def records(dev: DagsterDev) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in dev.home.glob("drills/*/*/*/record.json")]
    return sorted(found, key=lambda record: record["started_at"])


def sandboxes(dev: DagsterDev) -> list[Path]:
    folder = dev.home / "sandboxes"
    return list(folder.iterdir()) if folder.is_dir() else []


def messages(dev: DagsterDev, word: str) -> list[dict[str, Any]]:
    path = dev.home / "notifications.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [message for message in map(json.loads, lines) if word in message["subject"]]


def told_of(dev: DagsterDev, run_id: str) -> list[dict[str, Any]]:
    return [message for message in messages(dev, "failed") if message["run_id"] == run_id]


def retries_of(dev: DagsterDev, run_id: str) -> list[dg.DagsterRun]:
    return list(dev.instance.get_runs(dg.RunsFilter(tags={"dagster/root_run_id": run_id})))


def test_a_finding_stops_the_months_other_drills_and_is_not_retried(tmp_path: Path) -> None:
    with dagster_dev(tmp_path, **{f"{SCENARIOS}__0__steps": NO_RECOVERY}) as dev:
        failing = dev.launch("corruption_recovery_tar")
        others = [dev.launch("incremental_recovery_tar"), dev.launch("incremental_recovery_tar")]
        elsewhere = dev.launch("incremental_recovery_tar", month="2026-10-01")
        assert dev.finished(failing).is_failure
        (message,) = wait_for(lambda: messages(dev, "failed"), 90, "the failure message")
        assert message["teams"] == ["admin_team"]
        assert "incremental_recovery_tar" in message["stopped"]
        ended = [dev.finished(run_id).status for run_id in others]
        assert dg.DagsterRunStatus.CANCELED in ended
        assert dev.finished(elsewhere).is_success, "another month goes on"
        assert retries_of(dev, failing) == []
        assert [r["verdict"] for r in records(dev) if r["run_id"] == failing] == ["FAIL"]
        ends = [record["ended_at"] for record in records(dev)]
        starts = [record["started_at"] for record in records(dev)]
        assert all(map(le, ends[:-1], starts[1:])), "one after the other"
        assert len(messages(dev, "start")) == len(messages(dev, "completion")) == len(ends)
        assert sandboxes(dev) == []


def test_an_error_and_a_timeout_are_retried_and_then_told(tmp_path: Path) -> None:
    changes = {
        "targets__lost": {"path": str(tmp_path / "is-not-there"), "engines": ["tar"]},
        "targets__test_dataset__dataset__size": "600MB",
        f"{CONTROLS}__timeout": 2,
        f"{CONTROLS}__retry_attempts": 1,
    }
    with dagster_dev(tmp_path, **changes) as dev:
        lost = dev.launch("corruption_recovery_lost_tar")
        late = dev.launch("incremental_recovery_tar", month="2026-10-01")
        for run_id, error in ((lost, "PreparationError"), (late, "DrillTimeout")):
            assert dev.finished(run_id).is_failure
            (retry,) = wait_for(lambda of=run_id: retries_of(dev, of), 90, "the retry")
            assert dev.finished(retry.run_id).is_failure
            attempts = [r for r in records(dev) if r["run_id"] in (run_id, retry.run_id)]
            assert [record["verdict"] for record in attempts] == ["ERROR"] * 2
            assert {each for record in attempts for each in record["errors"]} == {error}
            told = wait_for(lambda of=retry.run_id: told_of(dev, of), 90, "the failure message")
            assert len(told) == 1
            assert told_of(dev, run_id) == [], "only the last attempt is a failure"
        assert len(retries_of(dev, lost)) == len(retries_of(dev, late)) == 1
        assert sandboxes(dev) == []


def test_a_drill_whose_host_died_ends_as_failed_and_frees_its_slot(tmp_path: Path) -> None:
    changes = {
        "targets__test_dataset__dataset__size": "200MB",
        f"{CONTROLS}__retry_attempts": 0,
    }
    with dagster_dev(tmp_path, **changes) as dev:
        run_id = dev.launch("corruption_recovery_tar")
        wait_for(lambda: sandboxes(dev), 120, "the drill to begin")
        dev.crash()
        assert not dev.instance.get_run_by_id(run_id).is_finished  # type: ignore[union-attr]
        assert sandboxes(dev), "SIGKILL leaves the sandbox behind"
        dev.start()
        assert dev.finished(run_id).is_failure
        wait_for(lambda: messages(dev, "failed"), 90, "the month's other drills to be stopped")
        again = dev.launch("incremental_recovery_tar", MONTH)
        assert dev.finished(again, 300).is_success
        assert sandboxes(dev) == [], "the next start removed what the killed drill left"
