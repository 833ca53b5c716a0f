"""Monitoring: nothing doubled, nothing invented, numbers right, and every check can go red."""

import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.monitoring.alerts import Condition, changes, state_of
from recovery_pipelines.monitoring.anomalies import episodes, find_anomalies, scores
from recovery_pipelines.monitoring.application import (
    AccessLogSource,
    ApplicationCollector,
    sketch_of_histogram,
)
from recovery_pipelines.monitoring.baseline import usual_response_times
from recovery_pipelines.monitoring.export import serve
from recovery_pipelines.monitoring.history import (
    bounds,
    day_of,
    newest_outcomes,
    raw_path,
    read_day,
    ticks,
)
from recovery_pipelines.monitoring.picture import picture_of_events
from recovery_pipelines.monitoring.rollup import (
    STEP_SECONDS,
    accept_clock,
    aggregate,
    aggregated_path,
    aggregates,
    compact,
    differences,
    kept_days,
    prune,
    quantile_of,
    retention_problems,
    roll_up,
)
from recovery_pipelines.monitoring.sample import Counters, Outcome, Sample
from recovery_pipelines.monitoring.sketch import RELATIVE_ERROR, merge, quantile, sketch_of
from recovery_pipelines.monitoring.store import Tick, Writer, connect
from recovery_pipelines.monitoring.supervise import ensure_running, running, want
from recovery_pipelines.plan.monitoring import Retention
from tests.dagster_dev import wait_for
from tests.monitoring_effects import LOG_LINE, monitoring, values

DAY = date(2026, 6, 19)
BEGIN = datetime(2026, 6, 19, tzinfo=UTC).timestamp()
NEXT_DAY_NOON = BEGIN + 1.5 * 86400


def fill(
    home: Path, values: list[float | None], step_seconds: float = 60.0, begin: float = BEGIN
) -> None:
    """One system tick per value, from `begin`, and a distribution beside each."""
    with connect(home) as connection:
        writer = Writer(connection)
        for number, value in enumerate(values):
            at = begin + number * step_seconds
            spread = sketch_of([0.1, 0.2, 0.4])
            samples = [
                Sample("cpu.usage", "", value),
                Sample("response_times", "app", 0.7 / 3, spread),
            ]
            writer.append(Tick("system_metrics", at, at, 0.0), samples, [])


# --- numbers ------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e12, 1e12).filter(lambda v: v == 0 or abs(v) > 1e-9), min_size=1))
@settings(max_examples=100, deadline=None)
def test_a_quantile_is_within_its_stated_error_however_it_is_merged(values: list[float]) -> None:
    halves = merge([sketch_of(values[::2]), sketch_of(values[1::2])])
    assert halves == sketch_of(values)
    for q in (0.0, 0.5, 0.95, 0.99, 1.0):
        exact = sorted(values)[int(q * (len(values) - 1))]
        found = quantile(halves, q)
        assert found is not None
        assert abs(found - exact) <= 1.001 * RELATIVE_ERROR * abs(exact)


def test_a_quantile_of_a_histogram_is_within_its_bucket() -> None:
    times = np.random.default_rng(1).exponential(0.05, 10_000)
    bounds = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, float("inf")]
    sketch = sketch_of_histogram([(bound, float((times <= bound).sum())) for bound in bounds])
    assert sum(sketch.values()) == pytest.approx(10_000)
    for q in (0.5, 0.95, 0.99):
        exact = float(np.quantile(times, q))
        upper = next(bound for bound in bounds if exact <= bound)
        lower = max([bound for bound in bounds if bound < exact], default=0.0)
        assert lower * 0.98 <= (quantile(sketch, q) or 0) <= upper * 1.02
    beyond = sketch_of_histogram([(1.0, 1.0), (float("inf"), 100.0)])
    assert quantile(beyond, 0.95) == float("inf"), "nobody knows how slow those were"


def test_counters_survive_a_reset_and_say_nothing_at_first() -> None:
    now = [0.0]
    counters = Counters(lambda: now[0])
    assert counters.rate("x", 100.0) is None
    now[0] = 10.0
    assert counters.rate("x", 150.0) == 5.0
    now[0] = 20.0
    assert counters.rate("x", 30.0) == 3.0, "counted from zero again"
    assert counters.rate("x", None) is None


def test_an_access_log_is_followed_over_its_rotation(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_text(LOG_LINE * 5)
    source = AccessLogSource(log)
    assert source.since_last_look().requests is None, "what was there before is not counted"
    with log.open("a") as file:
        file.write(LOG_LINE * 2 + LOG_LINE[:40])
    assert source.since_last_look().requests == 2, "an unfinished line waits"
    with log.open("a") as file:
        file.write(LOG_LINE[40:])
    log.rename(tmp_path / "access.log.1")
    log.write_text(LOG_LINE.replace(" 200 ", " 503 ") * 3)
    traffic = source.since_last_look()
    assert (traffic.requests, traffic.errors_by_status) == (4, {"503": 3})
    log.write_text(LOG_LINE)
    assert source.since_last_look().requests == 1, "copied and truncated"
    log.write_text("this is no access log\n" * 100)
    assert source.since_last_look().requests is None


def test_an_error_that_is_over_is_zero_and_not_its_last_value(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_text("")
    services = {"app": {"service_port": 1, "access_log": str(log)}}
    found = monitoring(tmp_path, services=services)
    collector = ApplicationCollector(found.services, found.metrics_collection.application_metrics)
    rates = []
    for status in ("500", "200"):
        with log.open("a") as file:
            file.write(LOG_LINE.replace(" 200 ", f" {status} "))
        rates.append(values(collector)["error_rates.by_type", "app 500"])
    assert rates == [1.0, 0.0]


# --- store and rollup ---------------------------------------------------------------------


def test_aggregates_follow_from_raw_data_and_a_repeated_rollup_changes_nothing(
    tmp_path: Path,
) -> None:
    values: list[float | None] = [float(value) for value in range(1, 31)]
    values[7] = None
    fill(tmp_path, values)
    before = read_day(tmp_path, DAY)
    first = roll_up(tmp_path, DAY, NEXT_DAY_NOON)
    pd.testing.assert_frame_equal(read_day(tmp_path, DAY), before)
    assert not len(ticks(tmp_path)), "the day has left the hot store"
    row = first[first["metric"] == "cpu.usage"].iloc[1]
    assert (row["count"], row["missing"], row["sum"]) == (4, 1, 6 + 7 + 9 + 10)
    assert (row["min"], row["max"]) == (6, 10)
    requests = first[first["metric"] == "response_times"]
    assert requests["count"].sum() == 90
    assert quantile_of(requests, 0.95) == pytest.approx(0.4, rel=RELATIVE_ERROR)
    again = roll_up(tmp_path, DAY, NEXT_DAY_NOON)
    pd.testing.assert_frame_equal(again, first)
    fill(tmp_path, [1.0])  # a look that was written late
    assert roll_up(tmp_path, DAY, NEXT_DAY_NOON)["count"].sum() == first["count"].sum() + 4


def test_a_damaged_aggregate_is_found(tmp_path: Path) -> None:
    fill(tmp_path, [1.0, 2.0, 3.0])
    roll_up(tmp_path, DAY, NEXT_DAY_NOON)
    assert differences(tmp_path, DAY) == []
    path = aggregated_path(tmp_path, DAY)
    right = pd.read_parquet(path)
    for column, value in (("sum", 6.5), ("count", 4.0), ("min", 0.0), ("max", 9.0)):
        right.assign(**{column: value}).to_parquet(path)
        assert differences(tmp_path, DAY), column
    right.iloc[1:].to_parquet(path)
    assert differences(tmp_path, DAY)


def test_a_day_that_is_not_over_or_empty_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, [1.0])
    with pytest.raises(RecoveryError, match="not over"):
        roll_up(tmp_path, DAY, BEGIN + 86400)
    with pytest.raises(RecoveryError, match="nothing was measured"):
        roll_up(tmp_path, DAY - timedelta(days=1), NEXT_DAY_NOON)


def day_files(home: Path, days: int, last: date = DAY - timedelta(days=1)) -> None:
    for age in range(days):
        for folder in ("raw", "aggregated"):
            path = home / "monitoring" / folder / f"{last - timedelta(days=age)}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def test_a_clock_that_runs_years_ahead_does_not_empty_the_store(tmp_path: Path) -> None:
    day_files(tmp_path, 20)
    retention = Retention()
    prune(tmp_path, retention, BEGIN + 10 * 365 * 86400)
    assert sum(folder == "raw" for folder, _ in kept_days(tmp_path)) == 7
    assert sum(folder == "aggregated" for folder, _ in kept_days(tmp_path)) == 20


def test_a_clock_jump_stops_pruning_until_somebody_accepts_it(tmp_path: Path) -> None:
    day_files(tmp_path, 20)
    with connect(tmp_path) as connection:
        Writer(connection).note_clock_jump(BEGIN, 7200.0)
    before = kept_days(tmp_path)
    assert "accept-clock" in (prune(tmp_path, Retention(), BEGIN).stopped_by or "")
    assert kept_days(tmp_path) == before
    assert accept_clock(tmp_path, "somebody") == 1
    assert prune(tmp_path, Retention(), BEGIN).removed
    assert retention_problems(tmp_path, Retention(), before, BEGIN) == []


def test_what_goes_too_early_is_found(tmp_path: Path) -> None:
    day_files(tmp_path, 20)
    before = kept_days(tmp_path)
    (tmp_path / "monitoring" / "raw" / f"{DAY - timedelta(days=3)}.parquet").unlink()
    assert "too early" in retention_problems(tmp_path, Retention(), before, BEGIN)[0]


def test_ninety_days_answer_from_their_aggregates(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    every = []
    for number in range(3):
        day = DAY + timedelta(days=number)
        values = generator.lognormal(0, 1, 96)
        every.append(values)
        with connect(tmp_path) as connection:
            writer = Writer(connection)
            for position, value in enumerate(values):
                at = BEGIN + 86400 * number + 900 * position
                sample = Sample("network.latency", "x", float(value))
                writer.append(Tick("system_metrics", at, at, 0.0), [sample], [])
        roll_up(tmp_path, day, NEXT_DAY_NOON + 86400 * number)
    rows = aggregates(tmp_path, "network.latency", DAY, DAY + timedelta(days=2))
    exact = float(np.quantile(np.concatenate(every), 0.95, method="lower"))
    assert quantile_of(rows, 0.95) == pytest.approx(exact, rel=1.01 * RELATIVE_ERROR)


def test_past_months_become_one_file_each_and_read_the_same(tmp_path: Path) -> None:
    days = [date(2026, 4, 29), date(2026, 4, 30), date(2026, 5, 1), date(2026, 6, 19)]
    for day in days:
        fill(tmp_path, [1.0, None, float(day.day)], begin=bounds(day)[0])
        roll_up(tmp_path, day, NEXT_DAY_NOON)

    def read() -> list[pd.DataFrame]:
        spans = [(days[0], days[-1]), (days[1], days[2])]
        return [aggregates(tmp_path, m, *s) for m in ("cpu.usage", "response_times") for s in spans]

    before, kept = read(), kept_days(tmp_path)
    assert compact(tmp_path, NEXT_DAY_NOON) == [], "raw data is still there"
    for day in days[:3]:
        raw_path(tmp_path, day).unlink()
    daily = {path: path.read_bytes() for path in (tmp_path / "monitoring/aggregated").iterdir()}
    assert compact(tmp_path, NEXT_DAY_NOON) == ["2026-04", "2026-05"]
    names = sorted(path.name for path in (tmp_path / "monitoring/aggregated").iterdir())
    assert names == ["2026-04.parquet", "2026-05.parquet", "2026-06-19.parquet"]

    def same() -> bool:
        pairs = zip(read(), before, strict=True)
        return all(new.equals(old) for new, old in pairs)

    assert same()
    assert kept_days(tmp_path) >= {entry for entry in kept if entry[0] == "aggregated"}
    for path, content in daily.items():
        path.write_bytes(content)
    assert same(), "broken off before the days' files went: none counts twice"
    assert compact(tmp_path, NEXT_DAY_NOON) == ["2026-04", "2026-05"]
    assert same()
    fill(tmp_path, [1.0], begin=bounds(days[0])[0])
    with pytest.raises(RecoveryError, match="raw data is gone"):
        roll_up(tmp_path, days[0], NEXT_DAY_NOON)


def test_a_month_leaves_as_a_whole_when_its_last_day_is_too_old(tmp_path: Path) -> None:
    fill(tmp_path, [1.0])
    roll_up(tmp_path, DAY, NEXT_DAY_NOON)
    raw_path(tmp_path, DAY).unlink()
    compact(tmp_path, bounds(date(2026, 7, 1))[0])
    retention = Retention(raw_data="1d", aggregated="2d")
    day_files(tmp_path, 3, last=date(2026, 6, 30))
    before = kept_days(tmp_path)
    for day, left in ((date(2026, 6, 21), True), (date(2026, 6, 22), False)):
        pruned = prune(tmp_path, retention, bounds(day)[0])
        assert (tmp_path / "monitoring/aggregated/2026-06.parquet").exists() is left, pruned
        assert not retention_problems(tmp_path, retention, before, bounds(day)[0])


# --- anomalies and what is usual ----------------------------------------------------------


def test_an_episode_is_one_event_and_warming_up_is_none(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    calm = generator.normal(50, 5, 2000)
    assert len(episodes(scores(calm))) <= 1
    disturbed = calm.copy()
    disturbed[1500:1530] += 200
    found = episodes(scores(disturbed))
    assert [at for at in found if at < 1600 and at >= 1500] == [1500], "an episode, not 30 events"
    constant = np.full(2000, 7.0)
    assert episodes(scores(constant)) == [], "a flat line has no deviation to divide by"


def test_anomalies_of_the_store(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    now = BEGIN + 86400.0
    rows = {
        "cpu.usage": np.concatenate([generator.normal(20, 2, 700), [95.0], [21.0] * 20]),
        "network.latency": np.exp(np.concatenate([generator.normal(-5, 0.3, 700), [2.0] * 21])),
        "memory.usage": np.full(100, 40.0),
    }
    for name, series in rows.items():
        at = BEGIN + 86400 - STEP_SECONDS * np.arange(len(series), 0, -1)
        frame = pd.DataFrame({"at": at, "value": series, "metric": name, "entity": "x"})
        frame = frame.assign(tick=range(len(frame)), section="s", sketch=None)
        for day, of_day in frame.groupby(frame["at"].map(day_of)):
            path = aggregated_path(tmp_path, day)
            path.parent.mkdir(parents=True, exist_ok=True)
            made = aggregate(of_day)
            if path.exists():
                made = pa.concat_tables([pq.read_table(path), made])
            pq.write_table(made, path)
    found = find_anomalies(tmp_path, monitoring(tmp_path, limits={"cpu.usage": 90}), now)
    assert (found.judged, found.warming_up) == (2, 1)
    by_metric = found.events.set_index("metric")
    assert by_metric.loc["cpu.usage", "value"] == 95.0
    assert by_metric.loc["cpu.usage", "over_limit"]
    assert not by_metric.loc["network.latency", "over_limit"], "it has no limit"
    assert len(found.events) == 2
    assert len(found.worst) > 600
    assert picture_of_events(found)
    assert not found.over_budget, "two where 0.5 are expected: chance, in 9 of 100 weeks"
    assert replace(found, events=pd.concat([found.events] * 3)).over_budget


def test_what_is_usual_of_a_service_comes_from_its_requests_only(tmp_path: Path) -> None:
    with connect(tmp_path) as connection:
        for name in ("app", "probed"):
            sample = Sample("response_times", name, 0.2, sketch_of([0.1] * 90 + [0.5] * 10))
            Writer(connection).append(Tick("application_metrics", BEGIN, BEGIN, 0.0), [sample], [])
    services = {
        "app": {"service_port": 1, "prometheus": {}},
        "probed": {"service_port": 1},
        "new": {"service_port": 1, "prometheus": {}},
    }
    plan = monitoring(tmp_path, services=services)
    for now in (BEGIN + 60, BEGIN + 86400 + 700):  # from the hot store, and after the rollup
        usual = usual_response_times(tmp_path, plan, now)
        assert set(usual) == {"app"}
        assert usual["app"].requests == 100
        assert usual["app"].p95_seconds == pytest.approx(0.5, rel=RELATIVE_ERROR)
        roll_up(tmp_path, DAY, NEXT_DAY_NOON)


# --- alerts -------------------------------------------------------------------------------


def test_a_change_is_told_once_and_flapping_is_damped() -> None:
    def news(states: list[str], told: dict[str, str]) -> list[str]:
        return [change.now for change in changes([Condition("x", states, "")], told)]

    assert news(["ok"], {}) == []
    assert news(["ok", "failed"], {"x": "ok"}) == ["failed"]
    assert news(["ok", "failed", "failed"], {"x": "failed"}) == []
    assert news(["failed", "ok"], {"x": "failed"}) == ["ok"]
    assert news(["failed"], {}) == ["failed"]
    assert news(["unknown"], {"x": "ok"}) == ["unknown"]
    restless = ["ok", "failed"] * 4
    assert news(restless, {"x": "ok"}) == ["flapping"]
    assert news([*restless, "ok"], {"x": "flapping"}) == []
    assert state_of([*restless, *["ok"] * 18], "flapping") == "ok"


# --- the process --------------------------------------------------------------------------

FAST = {
    "metrics_collection__system_metrics__collection_interval": 1,
    "metrics_collection__application_metrics__collection_interval": 1,
}


def test_a_killed_collector_is_started_again_without_doubled_rows(tmp_path: Path) -> None:
    settings = monitoring(tmp_path, **FAST)
    home = tmp_path / "data"
    want(home, "system_metrics")
    assert ensure_running(home, settings) == "started"
    try:
        first = wait_for(lambda: running(home), 60, "the collector")
        assert ensure_running(home, settings) is None
        wait_for(lambda: len(ticks(home)) >= 2, 60, "two ticks")
        subprocess.run(["kill", "-KILL", str(first.pid)], check=True)
        wait_for(lambda: running(home) is None, 20, "its end")
        before = len(ticks(home))
        assert ensure_running(home, settings) == "started"
        wait_for(lambda: len(ticks(home)) >= before + 2, 60, "two more ticks")
        assert wait_for(lambda: running(home), 20, "the next collector").pid != first.pid
        found = ticks(home)
        assert set(found["section"]) == {"system_metrics"}, "nothing else is wanted"
        assert not found.duplicated(["section", "slot"]).any()
        assert (found["slot"] % 1 == 0).all()
    finally:
        found_now = running(home)
        if found_now:
            subprocess.run(["kill", "-TERM", str(found_now.pid)], check=False)
            wait_for(lambda: running(home) is None, 20, "its end")


def test_status_says_blind_when_nothing_is_measured(tmp_path: Path) -> None:
    (tmp_path / "recovery.yaml").write_text(
        "targets: {t: {dataset: {size: 1MB}}}\nmonitoring: {enabled: false}\n"
    )
    recovery = Path(sys.executable).with_name("recovery")
    done = subprocess.run(
        [recovery, "monitor", "status"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert "blind: system_metrics" in done.stdout


def test_what_is_exported_is_of_the_present_only(tmp_path: Path) -> None:
    """Read as Prometheus reads it; an old section and a missing value are not there."""
    now = time.time()
    with connect(tmp_path) as connection:
        writer = Writer(connection)
        fresh = [Sample("cpu.usage", "", 12.5), Sample("cpu.temperature", "", None)]
        writer.append(Tick("system_metrics", now, now, 0.0), fresh, [])
        checked = [Outcome("shop http", "failed", "refused")]
        writer.append(Tick("service_checks", now, now, 0.0), [], checked)
        old = now - 3600
        writer.append(
            Tick("service_metrics", old, old, 0.0), [Sample("availability.uptime", "shop", 9.0)], []
        )
    port = serve(tmp_path, monitoring(tmp_path), "127.0.0.1", 0)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text"}
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        families = list(openmetrics.text_string_to_metric_families(reply.read().decode()))
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }
    assert found["recovery_cpu_usage_percent", ""] == 12.5
    assert found["recovery_health_check", "shop http", "failed"] == 1
    assert found["recovery_health_check", "shop http", "ok"] == 0
    assert found["recovery_section_blind", "system_metrics"] == 0
    assert found["recovery_section_blind", "service_metrics"] == 1
    assert not [name for name, *_ in found if "temperature" in name or "uptime" in name]
    with pytest.raises(RecoveryError, match="cannot serve on"):
        serve(tmp_path, monitoring(tmp_path), "127.0.0.1", port)


def test_outcomes_are_kept_with_their_reasons(tmp_path: Path) -> None:
    with connect(tmp_path) as connection:
        outcome = Outcome("cache connectivity", "failed", "refused")
        tick = Tick("dependency_checks", BEGIN, BEGIN, 0.0)
        Writer(connection).append(tick, [], [outcome])
    assert list(newest_outcomes(tmp_path)["detail"]) == ["refused"]
