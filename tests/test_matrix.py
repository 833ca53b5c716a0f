"""The detection matrix: a slice of the campaign, its arithmetic, and that it can fail."""

import shutil
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg
import pandas as pd
import pytest
from scipy.stats import beta

from recovery_pipelines.build import build_definitions
from recovery_pipelines.checks import CRITERIA, RecoveredState
from recovery_pipelines.databases.opening import faults_of
from recovery_pipelines.errors import EngineError, RecoveryError
from recovery_pipelines.faults.base import Layer
from recovery_pipelines.faults.catalogue import repository_faults
from recovery_pipelines.matrix.bench import Bench, open_bench
from recovery_pipelines.matrix.cells import (
    DETECTORS,
    cells,
    false_alarms,
    faults,
    interval,
    judge,
    missed,
    silent_restores,
    totals,
)
from recovery_pipelines.matrix.databases import open_database_bench
from recovery_pipelines.matrix.run import keep_rows, newest_rows, trials
from recovery_pipelines.matrix.trials import as_table, clean_trials, copy_trials, repository_trials
from recovery_pipelines.plan.databases import KIND_OF
from recovery_pipelines.reporting.collect import build_report
from recovery_pipelines.reporting.render import render
from recovery_pipelines.reporting.summary import summarize
from recovery_pipelines.sandbox import Tree
from recovery_pipelines.verdict import Verdict
from tests.matrix_effects import only_these_faults
from tests.plans import MONTH, make_plan

SEED = 7
REPOSITORY_KINDS = {
    "tar": None,
    "rsync": ("bit_flip", "newest_deleted", "truncate"),
    "restic": ("bit_flip", "newest_deleted"),
    "borg": ("newest_bit_flip", "newest_deleted"),
}
COPY_KINDS = {
    "tar": ("bit_flip", "zeros_to_hole", "delete_directory", "acl_change", "mtime_change"),
}
SILENT = {
    "tar": {"overwritten_by_sibling"},
    "rsync": {"bit_flip", "newest_deleted", "truncate"},
    "restic": set[str](),
    "borg": set[str](),
}
"""Restores that report success and bring wrong data."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    """The rows of each engine that is installed."""
    home = tmp_path_factory.mktemp("home")
    tables = {}
    for engine, kinds in REPOSITORY_KINDS.items():
        if not shutil.which(engine):
            continue
        with open_bench(home, engine, SEED, 1_000_000) as bench:
            rows = [
                *islice(clean_trials(bench), 1),
                *repository_trials(bench, kinds),
                *copy_trials(bench, COPY_KINDS.get(engine, ())),
            ]
        tables[engine] = as_table(rows)
    return tables


@pytest.fixture(params=REPOSITORY_KINDS)
def rows(request: pytest.FixtureRequest, measured: dict[str, pd.DataFrame]) -> pd.DataFrame:
    if request.param not in measured:
        pytest.skip(f"{request.param} is not installed")
    return measured[request.param].copy()


def test_all_damage_is_caught_and_sound_data_pass(rows: pd.DataFrame) -> None:
    for result in judge(rows):
        assert result.verdict is Verdict.PASS, result.found
    counted = cells(rows)
    assert (counted[counted["detector"] == "verdict"].eval("detected == total")).all()
    assert (counted["seconds"] >= 0).all()
    assert not totals(rows)["missed"].any()


def test_silent_wrong_restores_are_named(rows: pd.DataFrame) -> None:
    silent = silent_restores(rows)
    engine = rows["engine"].iloc[0]
    assert set(silent["kind"]) == SILENT[engine]
    assert (silent["caught"] == silent["silent"]).all()


@pytest.mark.parametrize("engine", ["restic", "borg"])
def test_the_newest_backup_damaged_is_noticed_by_our_ledger(
    engine: str, measured: dict[str, pd.DataFrame]
) -> None:
    """FAULTS: both tools' own checks say nothing of a lost newest snapshot; a restore of the
    latest one brings older data. We restore by the recorded id."""
    if engine not in measured:
        pytest.skip(f"{engine} is not installed")
    rows = measured[engine]
    for row in rows[rows["kind"].str.startswith("newest")].to_dict("records"):
        assert row["full_check"] != "ok", row["kind"]
        assert row["restore"] != "ok" and row["generation"] == 2, row["kind"]
        assert row["quick_check"] == "ok", row["kind"]
        assert "FAIL" in [row[name] for name in CRITERIA], row["kind"]


def test_every_fault_of_a_repository_is_tried(measured: dict[str, pd.DataFrame]) -> None:
    rows = measured["tar"]
    assert set(rows[rows["layer"] == Layer.REPOSITORY]["kind"]) == set(repository_faults())
    no_index = rows[~rows["place_found"]]
    assert set(no_index["kind"]) == {"index_deleted"}, "tar has none"
    assert len(faults(rows)) + len(no_index) + 1 == len(rows)


def test_cells_count_with_exact_intervals(measured: dict[str, pd.DataFrame]) -> None:
    counted = cells(measured["tar"]).set_index(["layer", "kind", "detector"])
    harmless = counted.loc[(Layer.REPOSITORY, "chmod_000")]
    assert set(harmless.index) <= {"quick_check", "full_check"} or harmless["detected"].any()
    in_copy = counted.loc[(Layer.RESTORED_COPY, "mtime_change")]
    assert set(in_copy.index) == set(DETECTORS) - {"quick_check", "full_check", "restore"}
    assert in_copy.loc["manifest", "detected"] == 1
    assert in_copy.loc["applications", "detected"] == 0
    assert (Layer.RESTORED_COPY, "zeros_to_hole", "manifest") not in counted.index


@pytest.mark.parametrize(("count", "total"), [(0, 1), (3, 10), (500, 500)])
def test_the_interval_is_that_of_clopper_and_pearson(count: int, total: int) -> None:
    low, high = interval(count, total)
    assert low == pytest.approx(beta.ppf(0.025, count, total - count + 1) if count else 0)
    assert high == pytest.approx(beta.ppf(0.975, count + 1, total - count) if count < total else 1)


@pytest.mark.parametrize("engine", ["sqlite", "redis_aof"])
def test_the_same_for_databases(engine: str, tmp_path: Path) -> None:
    """All kinds: copies of a dump or a file come back without complaint, whatever is in them."""
    if engine != "sqlite" and shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    rows = trials(tmp_path, engine, SEED, 1_000_000)
    for result in judge(rows):
        assert result.verdict is Verdict.PASS, result.found
    assert set(rows["kind"]) == {*repository_faults(), *faults_of(KIND_OF[engine]), "clean"}
    assert faults(rows)["differs"].sum() > 15
    assert {"bit_flip", "truncate", "swap_two_blocks"} & set(silent_restores(rows)["kind"])


def test_the_same_for_postgresql() -> None:
    """A slice: pg_basebackup's copy and WAL come back as they are."""
    if not Path("/usr/lib/postgresql").exists():
        pytest.skip("PostgreSQL is not installed")
    memory = Path("/dev/shm")
    with (
        TemporaryDirectory(dir=memory if memory.is_dir() else None) as home,
        open_database_bench(Path(home), "pg_basebackup", SEED, 1_000_000) as bench,
    ):
        rows = as_table(
            [
                *islice(clean_trials(bench), 1),
                *repository_trials(bench, ("swap_two_blocks", "newest_deleted")),
                *copy_trials(bench, ("index_lacks_a_row", "sequence_set_back")),
            ]
        )
    for result in judge(rows):
        assert result.verdict is Verdict.PASS, result.found
    assert faults(rows)["differs"].sum() == 4
    assert set(silent_restores(rows)["kind"]) == {"swap_two_blocks"}


# --- it can fail ----------------------------------------------------------------------------


def _of(rows: pd.DataFrame, kind: str, layer: str = Layer.RESTORED_COPY) -> int:
    return int(rows.index[(rows["kind"] == kind) & (rows["layer"] == layer)][0])


@pytest.mark.parametrize(
    ("kind", "layer", "column", "value", "check"),
    [
        ("mtime_change", Layer.RESTORED_COPY, "detected", False, "every_damage_caught"),
        ("mtime_change", Layer.RESTORED_COPY, "permissions_correct", "PASS", "every_damage_caught"),
        ("zeros_to_hole", Layer.RESTORED_COPY, "checksums_match", "FAIL", "no_false_alarms"),
        ("zeros_to_hole", Layer.RESTORED_COPY, "files_accessible", "ERROR", "no_false_alarms"),
        ("clean", "clean", "quick_check", "EngineError: lock", "no_false_alarms"),
        ("clean", "clean", "differs", True, "no_false_alarms"),
    ],
)
def test_a_contradiction_is_a_failure(
    measured: dict[str, pd.DataFrame], kind: str, layer: str, column: str, value: object, check: str
) -> None:
    rows = measured["tar"].copy()
    rows.loc[_of(rows, kind, layer), column] = value
    (result,) = [each for each in judge(rows) if each.name == check]
    assert result.verdict is Verdict.FAIL
    assert f"tar/{SEED}/{layer}/{kind}" in result.found


def test_without_trials_nothing_is_proven(measured: dict[str, pd.DataFrame]) -> None:
    rows = measured["tar"]
    only_clean = rows[rows["layer"] == "clean"]
    caught, quiet = judge(only_clean)
    assert (caught.verdict, quiet.verdict) == (Verdict.UNVERIFIED, Verdict.PASS)
    assert judge(faults(rows))[1].verdict is Verdict.UNVERIFIED


def test_checks_that_look_elsewhere_are_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Bench.examine

    def look_at_a_sound_copy(self: Bench, tree: Tree, generation: int) -> RecoveredState:
        return honest(self, self.sandbox.tree("sound-copy"), generation)

    monkeypatch.setattr(Bench, "examine", look_at_a_sound_copy)
    with open_bench(tmp_path, "tar", SEED, 1_000_000) as bench:
        rows = as_table(copy_trials(bench, ["bit_flip"]))
    assert len(missed(rows)) == 1
    assert false_alarms(rows).empty


# --- in Dagster -----------------------------------------------------------------------------


def test_the_job_keeps_rows_and_shows_the_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_these_faults(monkeypatch, "bit_flip", "overwritten_by_sibling")
    plan = make_plan(tmp_path)
    job = build_definitions(plan).resolve_job_def("detection_matrix")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, partition_key=MONTH)
    (event,) = result.get_asset_materialization_events()
    metadata = event.materialization.metadata
    checks = {each.check_name: each for each in result.get_asset_check_evaluations()}
    assert {name: each.passed for name, each in checks.items()} == {
        "every_damage_caught": True,
        "no_false_alarms": True,
    }
    assert "data:image/png" in metadata["faults in the repository"].value
    assert "overwritten_by_sibling" in metadata["silent_wrong_restores"].value
    month, rows = newest_rows(plan.data_home, "2027-01-01")
    assert month == MONTH and len(faults(rows)) == 2
    assert str(metadata["path"].value) == str(
        plan.data_home / "detection_matrix" / f"{MONTH}.parquet"
    )
    with pytest.raises(RecoveryError, match="launch the job detection_matrix"):
        newest_rows(plan.data_home, "2026-10-01")


def test_a_tool_that_is_absent_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(EngineError), open_bench(tmp_path, "restic", SEED, 1_000_000):
        pass


def test_the_report_says_what_was_noticed_or_that_nothing_was_tested(
    tmp_path: Path, measured: dict[str, pd.DataFrame]
) -> None:
    plan = make_plan(tmp_path)
    untested = build_report(plan.data_home, plan, MONTH)
    assert "launch the job detection_matrix" in str(render(untested, "detailed_report", "md"))
    rows = measured["tar"].assign(version="tar 1.34")
    keep_rows(plan.data_home / "detection_matrix" / f"{MONTH}.parquet", rows)
    report = build_report(plan.data_home, plan, MONTH)
    for form in ("html", "md"):
        text = render(report, "detailed_report", form).decode()
        assert "0 missed in" in text and "overwritten_by_sibling 1 of 1 (1 caught by us)" in text
    assert "| tar | repository | verdict | 15 of 15 | 78.2 % to 100.0 % |" in text


def test_missed_damage_makes_the_report_invalid(tmp_path: Path) -> None:
    """Wrong data passed, so no PASS of the month can be trusted; a false alarm only shows."""
    plan = make_plan(tmp_path)
    path = plan.data_home / "detection_matrix" / f"{MONTH}.parquet"
    rows = trials(tmp_path, "sqlite", SEED, 1_000_000)
    missed_one = rows.copy()
    missed_one.loc[_of(rows, "mode_changed"), "detected"] = False
    alarmed = rows.copy()
    alarmed.loc[rows["kind"] == "clean", "quick_check"] = "EngineError: lock"
    for found, verdict, name in (
        (rows, Verdict.UNVERIFIED, ""),
        (alarmed, Verdict.UNVERIFIED, "no_false_alarms"),
        (missed_one, Verdict.INVALID, "every_damage_caught"),
    ):
        keep_rows(path, found)
        report = build_report(plan.data_home, plan, MONTH)
        assert report.verdict is verdict
        told = [text for text in summarize(report).attention if "detection matrix" in text]
        assert bool(told) == bool(name) and all(name in text for text in told)
