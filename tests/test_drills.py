"""Whole drills with real tools: sound backups pass, and nothing that is not verified ever does."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest

from recovery_pipelines import checks
from recovery_pipelines.drills import run as drill_run
from recovery_pipelines.drills.data_recovery import (
    create_incremental_backups,
    create_test_dataset,
    recover,
    simulate_damage,
    validate,
)
from recovery_pipelines.drills.lifecycle import open_drill
from recovery_pipelines.drills.record import DrillRecord
from recovery_pipelines.drills.recoveries import carry_out
from recovery_pipelines.engines.base import Snapshot
from recovery_pipelines.engines.tar import TarEngine
from recovery_pipelines.plan.scenarios import SCENARIO_STEPS
from recovery_pipelines.verdict import CheckResult, Verdict
from tests.plans import MONTH, make_spec

SCENARIOS = ("corruption_recovery", "incremental_recovery")
CRITERIA = (
    "all_files_recovered",
    "checksums_match",
    "directory_structure_intact",
    "permissions_correct",
    "files_accessible",
    "applications_functional",
)


def drill(folder: Path, scenario: str = "incremental_recovery", **changes: object) -> DrillRecord:
    return carry_out(make_spec(folder, scenario, **changes), MONTH, "run")


def failed(record: DrillRecord) -> set[str]:
    return {check.name for check in record.checks if check.verdict is Verdict.FAIL}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize(
    ("engine", "recovery"),
    [
        ("tar", "selective"),
        ("tar", "full"),
        ("restic", "selective"),
        ("borg", "selective"),
    ],
)
def test_a_sound_backup_passes(tmp_path: Path, scenario: str, engine: str, recovery: str) -> None:
    if not shutil.which(engine):
        pytest.skip(f"{engine} is not installed")
    record = drill(
        tmp_path,
        scenario,
        targets__test_dataset__engines=[engine],
        targets__test_dataset__recovery=recovery,
    )
    assert record.verdict is Verdict.PASS, record.reason
    assert {check.name for check in record.checks} == {
        *CRITERIA,
        "backup_verification",
        "all_faults_detected",
        "self_test",
    }
    metrics = record.metrics
    phases = [metrics[f"{name}_seconds"] for name in ("detect", "fetch", "verify", "publish")]
    assert metrics["recovery_seconds"] == pytest.approx(sum(phases))
    assert metrics["recovery_seconds"] < metrics["resolution_seconds"]
    assert metrics["files"] > 0
    assert metrics["cpu_seconds"] > 0
    assert record.content["isolation"]["mode"] == "0700"
    assert record.content["isolation"]["namespaces"] == {}
    trees = record.content["sampling"]
    assert trees and all(tree["compared"] >= tree["entries"] > 0 for tree in trees)
    assert not any(tree["is_sample"] for tree in trees)
    if scenario == "incremental_recovery":
        assert metrics["lost_entries"] > 0, "changes after the last backup are lost, and counted"
        assert metrics["rpo_seconds"] > 0
    else:
        assert metrics["lost_entries"] == 0
    assert list((tmp_path / "data" / "sandboxes").iterdir()) == []
    assert list((tmp_path / "data" / "leases").glob("*.json")) == []


# --- engines that lie: the tool reports success, and the data is not right ------------------


def _files(tree: Path) -> list[Path]:
    return sorted(
        p for p in tree.rglob("*") if p.is_file() and not p.is_symlink() and p.stat().st_size
    )


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_damage_that_rsync_restores_without_complaint_is_a_fail(tmp_path: Path) -> None:
    """A real tool that lies: the damage is done after the backups were verified."""
    spec = make_spec(tmp_path, "incremental_recovery", targets__test_dataset__engines=["rsync"])
    with open_drill(spec, MONTH, "run") as run:
        create_test_dataset(run)
        snapshots = create_incremental_backups(run)
        assert run.verdict is not Verdict.FAIL
        newest = run.repository.path / str(snapshots["snapshot_id"].iloc[-1])
        victim = max(_files(newest), key=lambda path: path.stat().st_size)
        status = victim.stat()
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
        os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
        faults = simulate_damage(run)
        recover(run, snapshots)
        assert not run.published
        validate(run, faults)
        assert run.verdict is Verdict.FAIL
        found = {check.name for check in run.checks if check.verdict is Verdict.FAIL}
        assert "checksums_match" in found


def restores_nothing(engine: TarEngine, snapshot: Snapshot, staging: Path) -> None:
    pass


def forgets_a_file(engine: TarEngine, snapshot: Snapshot, staging: Path) -> None:
    TarEngine.restore(engine, snapshot, staging)
    _files(staging)[0].unlink()


def flips_a_bit(engine: TarEngine, snapshot: Snapshot, staging: Path) -> None:
    TarEngine.restore(engine, snapshot, staging)
    victim = _files(staging)[-1]
    status = victim.stat()
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))


def opens_permissions(engine: TarEngine, snapshot: Snapshot, staging: Path) -> None:
    TarEngine.restore(engine, snapshot, staging)
    _files(staging)[0].chmod(0o777)


def adds_a_file(engine: TarEngine, snapshot: Snapshot, staging: Path) -> None:
    TarEngine.restore(engine, snapshot, staging)
    (staging / "extra").write_text("left over from another backup")


def restores_an_older_generation(engine: TarEngine, snapshot: Snapshot, staging: Path) -> None:
    first = replace(snapshot, snapshot_id=engine.snapshot_ids()[0], kind="full", parent_id=None)
    TarEngine.restore(engine, first, staging)


LIES: dict[Callable[[TarEngine, Snapshot, Path], None], str] = {
    restores_nothing: "all_files_recovered",
    forgets_a_file: "all_files_recovered",
    flips_a_bit: "checksums_match",
    opens_permissions: "permissions_correct",
    adds_a_file: "all_files_recovered",
    restores_an_older_generation: "all_files_recovered",
}


@pytest.mark.parametrize(
    ("lie", "scenario"),
    list(zip(LIES, cycle(SCENARIOS), strict=False)),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_silent_wrong_restore_fails(
    lie: Callable[[TarEngine, Snapshot, Path], None],
    scenario: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class LyingEngine(TarEngine):
        def restore(self, snapshot: Snapshot, staging: Path, paths: object = None) -> None:
            lie(self, snapshot, staging)

    monkeypatch.setattr(drill_run, "engine_class", lambda _name: LyingEngine)
    record = drill(tmp_path, scenario, targets__test_dataset__recovery="full")
    assert record.verdict is Verdict.FAIL
    assert LIES[lie] in failed(record)
    assert not record.metrics["success"]
    assert record.metrics["recovery_seconds"] is None, "what is not verified is not published"


def test_nothing_recovered_is_no_pass_whatever_the_criteria_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The damaged file stays damaged, in a structure that is all right."""

    class LyingEngine(TarEngine):
        def restore(self, snapshot: Snapshot, staging: Path, paths: object = None) -> None:
            adds_a_file(self, snapshot, staging)

    monkeypatch.setattr(drill_run, "engine_class", lambda _name: LyingEngine)
    structure: list[str] = ["directory_structure_intact"]
    criteria = {"data_integrity": [], "structure": structure, "accessibility": []}
    record = drill(
        tmp_path,
        "corruption_recovery",
        targets__test_dataset__recovery="full",
        targets__test_dataset__faults__kinds=["bit_flip"],
        test_framework__test_scenarios__data_recovery__scenarios__0__validation_criteria=criteria,
    )
    assert failed(record) == set()
    assert failed(record) == set()
    assert record.verdict is Verdict.FAIL
    assert "not recovered: 2 differences" in record.reason


def test_a_backup_that_cannot_be_read_back_fails_before_any_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class RottingEngine(TarEngine):
        def full_check(self, snapshots: Sequence[Snapshot]) -> None:
            victim = max(self.repository.iterdir(), key=lambda path: path.stat().st_size)
            content = bytearray(victim.read_bytes())
            content[len(content) // 2] ^= 1
            victim.write_bytes(content)
            super().full_check(snapshots)

    monkeypatch.setattr(drill_run, "engine_class", lambda _name: RottingEngine)
    record = drill(tmp_path)
    assert record.verdict is Verdict.FAIL
    assert failed(record) == {"backup_verification"}
    assert not (record.folder / "faults.parquet").exists()


# --- nothing verified, nothing passed -----------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("holds", ["nothing", "only directories"])
def test_an_empty_target_never_passes(tmp_path: Path, scenario: str, holds: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    if holds == "only directories":
        (tree / "a" / "b").mkdir(parents=True)
    record = drill(tmp_path, scenario, targets={"empty": {"path": str(tree), "engines": ["tar"]}})
    assert record.verdict is not Verdict.PASS


@pytest.mark.parametrize("left_out", ["simulate_data_loss", "perform_incremental_restore"])
def test_a_drill_without_damage_or_recovery_never_passes(tmp_path: Path, left_out: str) -> None:
    steps = [step for step in SCENARIO_STEPS["incremental_recovery"] if step != left_out]
    key = "test_framework__test_scenarios__data_recovery__scenarios__1__steps"
    record = drill(tmp_path, **{key: steps})
    assert record.verdict in (Verdict.UNVERIFIED, Verdict.FAIL), record.reason
    assert not record.errors


def test_a_fault_that_changes_nothing_proves_nothing(tmp_path: Path) -> None:
    faults = {"kinds": ["zeros_to_hole"], "count": 1}
    record = drill(tmp_path, "corruption_recovery", targets__test_dataset__faults=faults)
    assert record.verdict is Verdict.UNVERIFIED


@pytest.mark.parametrize("name", CRITERIA)
def test_a_check_that_cannot_fail_makes_the_drill_invalid(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = checks.CRITERIA[name]
    monkeypatch.setattr(
        blind, "run", lambda self, state: CheckResult(self.name, Verdict.PASS, "all", "all")
    )
    record = drill(tmp_path)
    assert record.verdict is Verdict.INVALID, record.reason


def test_the_same_drill_in_the_same_month_does_the_same(tmp_path: Path) -> None:
    first, second = (
        carry_out(make_spec(tmp_path, "corruption_recovery"), MONTH, run_id)
        for run_id in ("one", "two")
    )
    assert (first.folder / "faults.parquet").read_bytes() == (
        second.folder / "faults.parquet"
    ).read_bytes()


# --- what must come back, besides files ---------------------------------------------------


def test_a_root_that_lost_its_attributes_comes_back(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("data")
    os.setxattr(tree, "user.team", b"data platform")
    spec = make_spec(
        tmp_path, "corruption_recovery", targets={"t": {"path": str(tree), "engines": ["tar"]}}
    )
    with open_drill(spec, MONTH, "run") as run:
        create_test_dataset(run)
        snapshots = create_incremental_backups(run)
        run.live.removexattr(b"", "user.team")
        recover(run, snapshots)
        assert run.published
        assert run.live.getxattr(b"", "user.team") == b"data platform"
