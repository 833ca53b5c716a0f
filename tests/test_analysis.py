"""What the drills say together: baselines, trends, anomalies and bounds, from records to the UI."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from campaigns.false_alarms import YEARS, detections, false_alarms
from recovery_pipelines.analysis import drills as analysis
from recovery_pipelines.analysis.acknowledgements import read_acknowledgements
from recovery_pipelines.analysis.control import MINIMUM_DRILLS, judge
from recovery_pipelines.analysis.history import METRICS, load_history, missed_months, monthly
from recovery_pipelines.analysis.objectives import judge_objectives
from recovery_pipelines.build import build_definitions
from recovery_pipelines.cli import recovery
from recovery_pipelines.drills.record import folder_of, write_record
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.plan.targets import Objectives
from recovery_pipelines.sandbox import Lease
from recovery_pipelines.verdict import Verdict
from tests.plans import make_plan

DRILL = "corruption_recovery_tar"
OTHER = "incremental_recovery_tar"
TABLES = ("baseline_comparison", "trend_analysis", "anomaly_detection")
REPORTS = ("detailed_report", "executive_summary")


def label(position: int) -> str:
    """The month so many months after January 2026."""
    return (pd.Period("2026-01", freq="M") + position).strftime("%Y-%m-01")


def leave_record(
    home: Path,
    position: int,
    drill: str = DRILL,
    verdict: str = "PASS",
    run: str = "run",
    **metrics: object,
) -> Path:
    """A record as a drill leaves it; returns its folder."""
    month = label(position)
    folder = folder_of(home, drill, month, run)
    folder.mkdir(parents=True)
    started_at = f"{month[:8]}02 03:00:{len(list(folder.parent.iterdir())):02}+00:00"
    row = {"drill": drill, "month": month, "run_id": run, "verdict": verdict, **metrics}
    content: dict[str, object] = {
        "drill": drill,
        "month": month,
        "run_id": run,
        "verdict": verdict,
        "checks": [],
        "errors": [],
        "messages": [],
        "not_tested": [],
        "metrics": row | {"started_at": started_at},
    }
    write_record(folder, content)
    return folder


def months_of(home: Path) -> pd.DataFrame:
    return monthly(load_history(home))


def frame(values: Sequence[float | None], drill: str = DRILL, **others: object) -> pd.DataFrame:
    """The months of one drill with these recovery times, one a month; other metrics are absent."""
    rows = [
        {"drill": drill, "month": label(at), "verdict": "PASS", "proven": True}
        | dict.fromkeys(METRICS, float("nan"))
        | {"recovery_seconds": value}
        for at, value in enumerate(values)
    ]
    table = pd.DataFrame(rows)
    table[list(METRICS)] = table[list(METRICS)].astype(float)
    return table


def noisy(count: int, seed: int = 1, sigma: float = 0.1) -> list[float]:
    """Recovery times around 100 s."""
    return list(100 * np.exp(sigma * np.random.default_rng(seed).standard_normal(count)))


def outcome(months: pd.DataFrame) -> str:
    compared = analysis.compare_with_baseline(months)
    return str(compared.set_index("metric").loc["recovery_seconds", "outcome"])


# --- history ------------------------------------------------------------------------------


def test_the_last_attempt_is_the_months_drill_but_does_not_undo_a_finding(tmp_path: Path) -> None:
    for at, verdicts in enumerate(
        (["PASS"], ["ERROR", "PASS"], ["FAIL", "PASS"], ["PASS", "ERROR"], ["UNVERIFIED"])
    ):
        for attempt, verdict in enumerate(verdicts):
            seconds = None if verdict == "ERROR" else 10.0 + attempt
            leave_record(
                tmp_path, at, verdict=verdict, run=f"run-{9 - attempt}", recovery_seconds=seconds
            )
    months = months_of(tmp_path).set_index("month")
    assert list(months["verdict"]) == ["PASS", "PASS", "PASS", "ERROR", "UNVERIFIED"]
    assert list(months["proven"]) == [True, True, False, False, False]
    assert list(months["attempts"]) == [1, 2, 2, 2, 1]
    assert months["recovery_seconds"].fillna(-1).tolist() == [10, 11, 11, -1, 10]


@pytest.mark.parametrize("verdict", ["ERROR", "FAIL", "INVALID"])
def test_a_drill_that_did_other_work_gives_no_times(tmp_path: Path, verdict: str) -> None:
    leave_record(tmp_path, 0, verdict=verdict, recovery_seconds=1.0, cpu_seconds=1.0)
    months = months_of(tmp_path)
    assert months[list(METRICS)].isna().all(axis=None)
    assert not months["proven"].any()
    assert set(analysis.compare_with_baseline(months)["outcome"]) <= {"no value"}


def test_a_history_of_killed_drills_is_compared_with_nothing(tmp_path: Path) -> None:
    (leave_record(tmp_path, 0) / "record.json").unlink()
    assert list(analysis.compare_with_baseline(months_of(tmp_path))["outcome"]) == []


def no_json(folder: Path) -> None:
    (folder / "record.json").write_text('{"drill": ')


def not_text(folder: Path) -> None:
    (folder / "record.json").write_bytes(b"\xff\xfe\x00")


def a_list(folder: Path) -> None:
    (folder / "record.json").write_text("[1, 2]")


def lacks_metrics(folder: Path) -> None:
    content = json.loads((folder / "record.json").read_text())
    del content["metrics"]
    (folder / "record.json").write_text(json.dumps(content))


def of_another_drill(folder: Path) -> None:
    content = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(content | {"drill": "other"}))


def unknown_verdict(folder: Path) -> None:
    content = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(content | {"verdict": "FINE"}))


def absent(folder: Path) -> None:
    (folder / "record.json").unlink()


@pytest.mark.parametrize(
    "damage",
    [no_json, not_text, a_list, lacks_metrics, of_another_drill, unknown_verdict, absent],
)
def test_a_damaged_record_counts_as_not_proven_and_is_reported(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    leave_record(tmp_path, 0, recovery_seconds=10.0)
    damage(leave_record(tmp_path, 1, recovery_seconds=10.0))
    history = load_history(tmp_path)
    assert history["problem"].notna().tolist() == [False, True]
    proven = analysis.recoverability(monthly(history)).iloc[0]
    assert (proven["drills"], proven["proven"]) == (2, 1)


def test_a_drill_that_runs_now_is_not_a_killed_one(tmp_path: Path) -> None:
    leave_record(tmp_path, 0)
    absent(leave_record(tmp_path, 1))
    lease = Lease.create(tmp_path, DRILL)
    assert len(load_history(tmp_path)) == 1
    lease.release()
    assert load_history(tmp_path)["verdict"].tolist() == ["PASS", "ERROR"]


def test_missed_months_are_named(tmp_path: Path) -> None:
    for drill, positions in ((DRILL, (0, 1, 4)), (OTHER, (3,))):
        for at in positions:
            leave_record(tmp_path, at, drill)
    missed = missed_months(load_history(tmp_path))
    assert missed.to_numpy().tolist() == [
        [DRILL, label(2)],
        [DRILL, label(3)],
        [OTHER, label(4)],
    ]


def test_nothing_yet(tmp_path: Path) -> None:
    months = months_of(tmp_path)
    for make in (
        analysis.recoverability,
        analysis.compare_with_baseline,
        analysis.trends,
        analysis.forecast,
        analysis.anomalies,
    ):
        assert make(months).empty
    assert "What the drills prove\nnone" in command(tmp_path, "show")


# --- what the drills prove ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "total", "bound"), [(12, 12, 0.779), (24, 24, 0.883), (36, 36, 0.920), (0, 5, 0)]
)
def test_the_success_rate_that_drills_prove(successes: int, total: int, bound: float) -> None:
    assert analysis.success_bound(successes, total) == pytest.approx(bound, abs=0.0005)


@pytest.mark.parametrize(("claim", "passes"), [(0.90, 29), (0.95, 59), (0.99, 299)])
def test_straight_passes_for_a_claim(claim: float, passes: int) -> None:
    assert analysis.passes_needed(0, 0, claim) == passes
    assert analysis.passes_needed(20, 20, claim) == passes - 20
    after_a_failure = analysis.passes_needed(0, 1, claim)
    assert after_a_failure > passes
    assert analysis.success_bound(after_a_failure, after_a_failure + 1) >= claim
    assert analysis.success_bound(after_a_failure - 1, after_a_failure) < claim


@pytest.mark.parametrize("probability", [0.6, 0.8, 0.95])
def test_the_success_bound_holds_as_often_as_it_says(probability: float) -> None:
    """Exact: the chance of a count whose bound is above the truth is at most 5 %."""
    total = 24
    wrong = sum(
        float(stats.binom.pmf(successes, total, probability))
        for successes in range(total + 1)
        if analysis.success_bound(successes, total) > probability
    )
    assert wrong <= 0.05


# --- baseline -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=MINIMUM_DRILLS))
def test_too_few_drills_never_give_a_verdict(values: list[float]) -> None:
    months = frame(values)
    assert outcome(months) == analysis.INSUFFICIENT
    assert analysis.anomalies(months).empty
    if len(values) < MINIMUM_DRILLS:
        assert analysis.trends(months)["outcome"].tolist() == [analysis.INSUFFICIENT]
        assert analysis.forecast(months)["outcome"].tolist() == [analysis.INSUFFICIENT]


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-6, 1e15), st.integers(1, 40))
def test_a_constant_series_never_alarms(value: float, count: int) -> None:
    months = frame([value] * count)
    assert analysis.anomalies(months).empty
    assert "growing" not in set(analysis.trends(months)["outcome"])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.none(), st.just(0.0), st.floats(1, 200)), max_size=20))
def test_absent_and_zero_values_are_neither_compared_nor_counted(
    values: list[float | None],
) -> None:
    """They are as if the drill had not run: what is said of the others stays the same."""
    months = frame([*values, 7.0])
    dense = frame([*(value for value in values if value), 7.0])
    columns = ["value", "outcome", "baseline_drills", "p_value", "q_value", "typical"]
    pd.testing.assert_frame_equal(
        analysis.compare_with_baseline(months)[columns],
        analysis.compare_with_baseline(dense)[columns],
    )


def test_a_newest_month_without_a_value_is_said_to_have_none() -> None:
    assert outcome(frame([*noisy(12), None])) == "no value"


@settings(deadline=None, max_examples=10)
@given(st.randoms(use_true_random=False), st.floats(1, 1000))
def test_other_drills_and_the_order_of_rows_change_nothing(shuffle: Any, factor: float) -> None:
    own = frame([*noisy(12), 300.0])
    others = frame(noisy(13, seed=2, sigma=0.5), OTHER)
    others["recovery_seconds"] *= factor
    order = list(range(26))
    shuffle.shuffle(order)
    both = pd.concat([own, others]).iloc[order]
    for make in (analysis.compare_with_baseline, analysis.trends, analysis.anomalies):
        of_both = make(both)
        alone = of_both[of_both["drill"] == DRILL].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, make(own), check_dtype=False)


def test_a_flagged_value_leaves_the_baseline_and_one_that_is_not_stays() -> None:
    for last, stays in ((300.0, False), (105.0, True)):
        months = frame([*noisy(12), last])
        before = analysis.compare_with_baseline(months.iloc[:-1])["typical"].iloc[0]
        after = analysis.compare_with_baseline(months)["typical"].iloc[0]
        assert bool(after != before) is stays
        following = frame([*noisy(12), last, 100.0])
        assert analysis.compare_with_baseline(following)["baseline_drills"].iloc[0] == 12 + stays


def test_an_outlier_that_left_the_baseline_does_not_hide_the_next_one() -> None:
    assert outcome(frame([*noisy(12), 300.0, 300.0])) == "unusual"


def test_the_point_test_is_the_moderated_t_prediction() -> None:
    values = np.array([*noisy(8), 150.0])
    logs = np.log(values[:-1])
    variance = (4 * 0.2**2 + 7 * logs.var(ddof=1)) / (4 + 7)
    distance = (np.log(150.0) - logs.mean()) / np.sqrt(variance * (1 + 1 / 8))
    found = judge(values[:, None])
    assert found.p_value[-1, 0] == pytest.approx(stats.t.sf(distance, 11))


def covered(sigma: float, count: int, drills: int) -> tuple[float, float, float]:
    """How often the interval of the typical time, the limit and the forecast hold the truth."""
    inside = np.zeros(3)
    for seed in range(drills):
        *values, following = noisy(count + 1, seed, sigma)
        row = analysis.compare_with_baseline(frame(values)).iloc[0]
        ahead = analysis.forecast(frame(values)).iloc[0]
        inside += [
            row["typical_low"] <= 100 <= row["typical_high"],
            following <= row["next_limit"],
            ahead["low_seconds"] <= following <= ahead["high_seconds"],
        ]
    typical, limit, expected = inside / drills
    return typical, limit, expected


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    for share in covered(sigma=0.2, count=8, drills=200):
        assert share == pytest.approx(0.95, abs=0.04)


# --- trends, forecast ---------------------------------------------------------------------


def growing(percent: float, count: int = 18, sigma: float = 0.05) -> list[float]:
    return [v * (1 + percent / 100) ** at for at, v in enumerate(noisy(count, sigma=sigma))]


def test_growth_is_found_and_measured() -> None:
    row = analysis.trends(frame(growing(5))).iloc[0]
    assert row["outcome"] == "growing"
    assert row["growth_percent_low"] < 5 < row["growth_percent_high"]
    assert analysis.trends(frame(noisy(18))).iloc[0]["outcome"] == "no trend proven"


def test_a_missed_month_keeps_its_place_in_the_growth() -> None:
    months = frame(growing(5, sigma=0.0)).drop(index=[3, 4, 5, 11])
    assert analysis.trends(months).iloc[0]["growth_percent"] == pytest.approx(5)


def test_the_month_in_which_growth_breaks_the_objective() -> None:
    months = frame(growing(5, count=12, sigma=0.0))
    objective = 100 * 1.05**20 - 0.01
    row = analysis.forecast(months, (), {DRILL: objective}).iloc[0]
    assert row["month"] == label(12)
    assert row["expected_seconds"] == pytest.approx(100 * 1.05**12)
    assert row["broken_from"] == label(20)
    assert row["outcome"] == "growth breaks the objective"


@pytest.mark.parametrize(
    ("values", "objective", "outcome"),
    [
        (noisy(12), 200.0, "objective holds"),
        (noisy(12, sigma=0.3), 150.0, "objective at risk"),
        (noisy(12), None, "no objective"),
        (growing(1, sigma=0.001), 10_000.0, "objective holds"),
    ],
)
def test_what_the_forecast_says(values: list[float], objective: float | None, outcome: str) -> None:
    objectives = {DRILL: objective} if objective else {}
    row = analysis.forecast(frame(values), (), objectives).iloc[0]
    assert row["outcome"] == outcome
    assert pd.isna(row["broken_from"])
    assert row["low_seconds"] < row["expected_seconds"] < row["high_seconds"]


# --- anomalies ----------------------------------------------------------------------------


def events(values: Sequence[float | None]) -> list[list[object]]:
    found = analysis.anomalies(frame(values))
    return found[["found_by", "first_month", "last_month", "state"]].to_numpy().tolist()


def test_one_spike_is_one_event_and_over_when_the_value_is_back() -> None:
    spike = [*noisy(12), 300.0]
    assert events(spike) == [["unusual value", label(12), label(12), "open"]]
    assert events([*spike, None]) == [["unusual value", label(12), label(12), "open"]]
    over = [["unusual value", label(12), label(12), "over"]]
    assert events([*spike, 100.0]) == events([*spike, 100.0, 100.0, 100.0]) == over
    again = [*over, ["unusual value", label(15), label(15), "open"]]
    assert events([*spike, 100.0, 100.0, 300.0]) == again


@pytest.mark.parametrize("factor", [1.5, 2.0, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_level_shift_is_one_event_that_lasts(factor: float, seed: int) -> None:
    after = noisy(12, seed + 100)
    found = events([*noisy(12, seed), *(factor * value for value in after)])
    (event,) = (event for event in found if str(event[1]) >= label(12))
    assert "level shift" in str(event[0])
    assert label(12) <= str(event[1]) <= label(18)
    assert event[2:] == [label(23), "open"]


def test_a_level_shift_that_goes_back_is_over() -> None:
    there = [2 * value for value in noisy(6, 2)]
    (event,) = events([*noisy(12), *there, *noisy(9, 3)])
    assert event[3] == "over"


def test_slow_growth_is_one_event() -> None:
    (event,) = events(growing(4, count=24))
    assert "trend" in str(event[0])
    assert event[3] == "open"


DECLARED = {"lognormal": 0.5, "log-t5": 1.3, "correlated .5": 0.5, "AR .3": 1.1}
"""Months with a false alarm, per drill and year; docs/analysis.md has the measured figures."""


@pytest.mark.parametrize("kind", DECLARED)
def test_false_alarms_are_as_rare_as_declared(kind: str) -> None:
    """A slice of `python -m campaigns.false_alarms`."""
    drills = 30
    counts = false_alarms(kind, drills, seed=2)
    assert sum(counts) <= stats.poisson.ppf(0.999, DECLARED[kind] * drills * YEARS)


def test_what_matters_is_found() -> None:
    """Shares of 12 simulated drills; a rule that says nothing would pass the test above."""
    assert detections("spike x3", 12, seed=2)["at_once"].mean() >= 0.6
    assert detections("shift x2", 12, seed=2)["within_6"].mean() >= 0.6
    assert detections("growth 10 % a month", 12, seed=2)["by_the_end"].mean() >= 0.8


# --- acknowledging ------------------------------------------------------------------------


def command(home: Path, *arguments: str, code: int = 0) -> str:
    """`recovery analysis …` on that data home; RecoveryErrors are returned as text."""
    plan = home / "recovery.yaml"
    plan.write_text("data_home: .\ntargets: {test_dataset: {dataset: {size: 1MB}}}\n")
    verb, *rest = arguments
    done = CliRunner().invoke(recovery, ["analysis", verb, "--plan", str(plan), *rest])
    if isinstance(done.exception, RecoveryError):
        return str(done.exception)
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def shifted(home: Path, after: int) -> None:
    values = [*noisy(12), *(2 * value for value in noisy(after, 2))]
    for at, value in enumerate(values):
        leave_record(home, at, recovery_seconds=value)


ANSWER = ("--by", "Ada", "--reason", "twice the data since the merger")


def test_an_acknowledged_level_is_the_new_normal(tmp_path: Path) -> None:
    shifted(tmp_path, after=4)
    shown = command(tmp_path, "acknowledge", DRILL, "recovery_seconds", label(14), *ANSWER)
    assert f"starts anew with {label(14)}" in shown
    said = read_acknowledgements(tmp_path)
    (event,) = analysis.anomalies(months_of(tmp_path), said).to_dict("records")
    assert (event["first_month"], event["last_month"]) == (label(12), label(14))
    assert (event["state"], event["acknowledged_by"]) == ("acknowledged", "Ada")
    assert "Ada" in command(tmp_path, "show")
    for at, value in enumerate([*(2 * value for value in noisy(6, 3)), 900.0], start=16):
        leave_record(tmp_path, at, recovery_seconds=value)
    first, second = analysis.anomalies(months_of(tmp_path), said).to_dict("records")
    assert first == event
    assert (second["first_month"], second["state"]) == (label(22), "open")
    typical = analysis.compare_with_baseline(months_of(tmp_path), said)["typical"].iloc[0]
    assert typical == pytest.approx(200, rel=0.2)


def test_what_was_known_at_a_months_end_is_what_the_months_until_then_say(tmp_path: Path) -> None:
    """Recommendations judge a history once, and look at each month's end by `until`."""
    shifted(tmp_path, after=4)
    command(tmp_path, "acknowledge", DRILL, "recovery_seconds", label(14), *ANSWER)
    for at, value in enumerate([*(2 * value for value in noisy(6, 3)), 900.0], start=16):
        leave_record(tmp_path, at, recovery_seconds=value, cpu_seconds=7.0)
    months, said = months_of(tmp_path), read_acknowledgements(tmp_path)
    every = list(analysis.series_of(months, said))
    assert len(analysis.anomalies(months, said)) > 1
    for position in range(23):
        now = label(position)
        past = months[months["month"] <= now]
        known = [each for each in said if each.month <= now]
        then = [series for each in every if (series := each.until(now))]
        pd.testing.assert_frame_equal(analysis.anomalies_of(then), analysis.anomalies(past, known))
        objectives = {DRILL: 150.0}
        pd.testing.assert_frame_equal(
            analysis.forecast_of(then, objectives), analysis.forecast(past, known, objectives)
        )


def test_an_acknowledged_spike_that_is_over_keeps_the_baseline(tmp_path: Path) -> None:
    for at, value in enumerate([*noisy(12), 300.0, 100.0]):
        leave_record(tmp_path, at, recovery_seconds=value)
    before = analysis.compare_with_baseline(months_of(tmp_path))
    assert "it is over" in command(
        tmp_path, "acknowledge", DRILL, "recovery_seconds", label(12), *ANSWER
    )
    said = read_acknowledgements(tmp_path)
    assert analysis.anomalies(months_of(tmp_path), said)["state"].tolist() == ["acknowledged"]
    after = analysis.compare_with_baseline(months_of(tmp_path), said)
    pd.testing.assert_frame_equal(before, after)


@pytest.mark.parametrize(
    "arguments",
    [
        (DRILL, "recovery_seconds", label(3)),
        (DRILL, "recovery_seconds", label(40)),
        (DRILL, "cpu_seconds", label(14)),
        (OTHER, "recovery_seconds", label(14)),
    ],
)
def test_nothing_is_silenced_in_advance(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    shifted(tmp_path, after=4)
    assert "nothing to acknowledge" in command(tmp_path, "acknowledge", *arguments, *ANSWER)
    assert read_acknowledgements(tmp_path) == []


def test_a_broken_acknowledgement_is_named_with_its_line(tmp_path: Path) -> None:
    shifted(tmp_path, after=4)
    command(tmp_path, "acknowledge", DRILL, "recovery_seconds", label(14), *ANSWER)
    with (tmp_path / "analysis" / "acknowledgements.jsonl").open("a") as file:
        file.write('{"drill": "x"')
    with pytest.raises(RecoveryError, match=r"acknowledgements.jsonl:2: .*remove the line"):
        read_acknowledgements(tmp_path)


# --- objectives ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drill", "seconds", "verdict"),
    [
        ("PASS", 9.9, Verdict.PASS),
        ("PASS", 10, Verdict.PASS),
        ("PASS", 10.1, Verdict.FAIL),
        ("FAIL", 10.1, Verdict.FAIL),
        ("FAIL", 1.0, Verdict.UNVERIFIED),
        ("UNVERIFIED", 1.0, Verdict.UNVERIFIED),
        ("PASS", None, Verdict.UNVERIFIED),
        ("PASS", float("nan"), Verdict.UNVERIFIED),
    ],
)
def test_an_objective_is_met_only_by_a_verified_restore(
    drill: str, seconds: float | None, verdict: Verdict
) -> None:
    row = {"recovery_seconds": seconds, "verdict": drill}
    (result,) = judge_objectives(Objectives(rto_seconds=10), row)
    assert (result.name, result.verdict) == ("rto_met", verdict)


def test_a_missed_objective_warns_and_leaves_the_restores_verdict(tmp_path: Path) -> None:
    objectives = {"rto_seconds": 1e-6, "rpo_seconds": 0}
    definitions = build_definitions(
        make_plan(tmp_path, targets__test_dataset__objectives=objectives)
    )
    job = definitions.resolve_job_def(DRILL)
    done = job.execute_in_process(partition_key="2026-11-01")
    assert months_of(tmp_path / "data")["verdict"].tolist() == ["PASS"]
    found = {
        evaluation.check_name: (evaluation.passed, evaluation.severity)
        for evaluation in done.get_asset_check_evaluations()
        if evaluation.check_name in ("rto_met", "rpo_met")
    }
    warning = dg.AssetCheckSeverity.WARN
    assert found == {"rto_met": (False, warning), "rpo_met": (True, warning)}


# --- in Dagster ---------------------------------------------------------------------------


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def test_the_assets_hold_the_tables(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    plan = make_plan(tmp_path)
    shifted(plan.data_home, after=4)
    no_json(leave_record(plan.data_home, 0, OTHER))
    graph = build_definitions(plan).resolve_asset_graph()
    assets = [graph.assets_def_for_key(dg.AssetKey(n)) for n in ("drill_history", *TABLES)]
    result = dg.materialize(assets, instance=instance)
    metadata = {
        name: result.asset_materializations_for_node(name)[0].metadata
        for name in ("drill_history", *TABLES)
    }
    history = metadata["drill_history"]
    assert history["dagster/row_count"].value == 17
    assert history["damaged_records"].value == 1
    assert "JSONDecodeError" in str(history["problems"].value)
    bound = history[f"{DRILL} success at least"].value
    assert bound == pytest.approx(analysis.success_bound(16, 16))
    assert metadata["anomaly_detection"]["open_events"].value == 1
    assert metadata["baseline_comparison"]["unusual_metrics"].value == 1
    assert "expected_seconds" in str(metadata["trend_analysis"]["forecast"].value)
    for name in TABLES:
        path = Path(str(metadata[name]["path"].value))
        assert len(pd.read_parquet(path)) == metadata[name]["dagster/row_count"].value


def test_a_table_without_the_history_says_what_to_do(tmp_path: Path) -> None:
    graph = build_definitions(make_plan(tmp_path)).resolve_asset_graph()
    asset = graph.assets_def_for_key(dg.AssetKey("anomaly_detection"))
    with pytest.raises(dg.Failure, match="materialize drill_history first"):
        dg.materialize([asset])


def test_a_drill_that_ended_refreshes_the_analysis_passed_or_not(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    steps = "test_framework__test_scenarios__data_recovery__scenarios__0__steps"
    no_recovery = ["create_test_dataset", "simulate_corruption", "validate_data"]
    definitions = build_definitions(make_plan(tmp_path, **{steps: no_recovery}))
    (sensor,) = (s for s in definitions.sensors or [] if s.name == "recovery_analysis")
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    cursor = None

    def requested() -> set[str]:
        nonlocal cursor
        result = dg.evaluate_automation_conditions(definitions, instance, cursor=cursor)
        cursor = result.cursor
        return {
            key.to_user_string()
            for key in definitions.resolve_asset_graph().get_all_asset_keys()
            if result.get_num_requested(key)
        }

    assert requested() == set(), "before any drill"
    for drill, verdict in ((OTHER, "PASS"), (DRILL, "FAIL")):
        job = definitions.resolve_job_def(drill)
        done = job.execute_in_process(
            partition_key="2026-11-01", instance=instance, raise_on_error=False
        )
        assert done.success is (verdict == "PASS")
        assert months_of(tmp_path / "data").set_index("drill").loc[drill, "verdict"] == verdict
        assert requested() == {"drill_history", *TABLES, "recommendations", *REPORTS}
        assert requested() == set(), "once for each drill"
