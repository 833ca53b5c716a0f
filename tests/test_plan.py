"""The plan: every key has an effect; every mistake is named with its line and what is allowed."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
import yaml
from pydantic import BaseModel

from campaigns.simulated import Month, leave_month
from recovery_pipelines.analysis.objectives import judge_objectives
from recovery_pipelines.analysis.recommendations import recommendations
from recovery_pipelines.build import build_definitions
from recovery_pipelines.drills.failure import tell_failure
from recovery_pipelines.drills.record import DrillRecord
from recovery_pipelines.drills.recoveries import carry_out
from recovery_pipelines.errors import EvidenceError, PlanError
from recovery_pipelines.evidence.signoff import sign_off, standings
from recovery_pipelines.notifications import notify
from recovery_pipelines.orchestration.controls import run_tags
from recovery_pipelines.plan import Plan, load_plan, parse_plan
from recovery_pipelines.reporting.publish import distribute, write_reports
from recovery_pipelines.reporting.render import NAMES as REPORTS
from recovery_pipelines.verdict import Verdict
from scripts.plan_reference import PAGE, reference
from tests import monitoring_effects
from tests.audit_effects import AUDIT_EFFECTS
from tests.database_effects import DATABASE_EFFECTS
from tests.matrix_effects import MATRIX_EFFECTS
from tests.pair_effects import PAIR_EFFECTS
from tests.plans import MONTH, SHIPPED, content, make_plan, make_spec
from tests.stack_effects import STACK_EFFECTS

DATA = "test_framework__test_scenarios__data_recovery"
EXECUTION = "test_framework__test_execution"
CONTROLS = f"{EXECUTION}__execution_controls"
RETENTION = "test_framework__reporting__documentation__test_results__retention"
MANUAL = f"{EXECUTION}__validation__manual_verification"
METRICS = "test_framework__reporting__metrics__collection"
RECOMMENDATIONS = "test_framework__reporting__documentation__recommendations"
ANALYSIS = "test_framework__reporting__metrics__analysis"
ONE_CRITERION: dict[str, list[str]] = {
    "data_integrity": ["checksums_match"],
    "structure": [],
    "accessibility": [],
}
RESULTS = "test_framework__reporting__documentation__test_results"


@pytest.fixture
def drill(tmp_path: Path) -> Callable[..., DrillRecord]:
    """Carries out one small drill, with the plan changed by dotted keys; of the criteria only one
    is judged (each costs canaries), unless `all_criteria` are wanted."""

    def run(all_criteria: bool = False, **changes: Any) -> DrillRecord:
        if not all_criteria:
            key = f"{DATA}__scenarios__0__validation_criteria"
            changes = {key: ONE_CRITERION} | changes
        spec = make_spec(tmp_path, **changes)
        return carry_out(spec, MONTH, f"run-{len(list(tmp_path.rglob('record.json')))}")

    return run


Drill = Callable[..., DrillRecord]


def journal(record: DrillRecord) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (record.folder / "journal.jsonl").read_text().splitlines()]


def table(record: DrillRecord, name: str) -> pd.DataFrame:
    return pd.read_parquet(record.folder / f"{name}.parquet")


def messages(home: Path, name: str = "notifications.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home / name).read_text().splitlines()]


def check_names(folder: Path, **changes: Any) -> set[str]:
    definitions = build_definitions(make_plan(folder, **changes))
    keys = definitions.resolve_asset_graph().asset_check_keys
    return {key.name for key in keys if key.asset_key.path[0] == "corruption_recovery_tar"}


def asset_names(folder: Path, **changes: Any) -> set[str]:
    definitions = build_definitions(make_plan(folder, **changes))
    return {key.path[-1] for key in definitions.resolve_asset_graph().get_all_asset_keys()}


def recommended(folder: Path, **changes: Any) -> pd.DataFrame:
    """What is recommended after one month in which a check failed and something was not tested."""
    plan = make_plan(folder, **changes)
    failed = Month(
        checks={"checksums_match": (Verdict.FAIL, "1 of 2 files")}, not_tested=["no xattr here"]
    )
    if not (plan.data_home / "drills").exists():
        for spec in plan.drills():
            leave_month(spec, 0, failed, np.random.default_rng(1))
    return recommendations(plan.data_home, plan, date(2026, 1, 31))


# --- the effect of each key ---------------------------------------------------------------


def effect_host(tmp_path: Path, drill: Drill) -> None:
    assert [spec.name for spec in make_plan(tmp_path, host="alpha").drills()] == [
        "alpha_corruption_recovery_tar",
        "alpha_incremental_recovery_tar",
    ]
    keys = build_definitions(make_plan(tmp_path, host="alpha")).resolve_asset_graph()
    assert dg.AssetKey(["alpha", "drill_history"]) in keys.get_all_asset_keys()


def effect_data_home(tmp_path: Path, drill: Drill) -> None:
    assert drill(data_home="elsewhere").folder.is_relative_to(tmp_path / "elsewhere")


def effect_target_path(tmp_path: Path, drill: Drill) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "only.txt").write_text("data")
    criteria = f"{DATA}__scenarios__0__validation_criteria__accessibility"
    record = drill(**{"targets": {"mine": {"path": str(tree)}}, criteria: ["files_accessible"]})
    assert table(record, "snapshots")["files"][0] == 1
    assert (tree / "only.txt").read_text() == "data"


def effect_dataset_size(tmp_path: Path, drill: Drill) -> None:
    sizes = [
        table(drill(targets__test_dataset__dataset__size=size), "snapshots")["bytes"][0]
        for size in ("1MB", "11MB")
    ]
    assert sizes[1] - sizes[0] > 5_000_000


def effect_dataset_seed(tmp_path: Path, drill: Drill) -> None:
    names = [
        set(table(drill(targets__test_dataset__dataset__seed=seed), "faults")["before"])
        for seed in (1, 2)
    ]
    assert names[0] != names[1]


def effect_engines(tmp_path: Path, drill: Drill) -> None:
    plan = make_plan(tmp_path, targets__test_dataset__engines=["tar", "restic"])
    assert "corruption_recovery_restic" in {spec.name for spec in plan.drills()}


def effect_increments(tmp_path: Path, drill: Drill) -> None:
    assert len(table(drill(targets__test_dataset__increments=4), "snapshots")) == 5


def effect_recovery(tmp_path: Path, drill: Drill) -> None:
    restored = [
        table(drill(targets__test_dataset__recovery=mode), "restore").iloc[0]
        for mode in ("selective", "full")
    ]
    assert [row["mode"] for row in restored] == ["selective", "full"]
    assert restored[0]["files"] < restored[1]["files"]


def effect_repeats(tmp_path: Path, drill: Drill) -> None:
    record = drill(targets__test_dataset__repeats=3)
    assert record.verdict is Verdict.PASS
    for phase, values in table(record, "repeats").groupby("phase")["seconds"]:
        assert len(values) == 3
        assert record.metrics[f"{phase}_seconds"] == values.median()
    assert not (drill().folder / "repeats.parquet").exists()


def effect_fault_kinds(tmp_path: Path, drill: Drill) -> None:
    record = drill(targets__test_dataset__faults={"kinds": ["truncate"], "count": 3})
    assert set(table(record, "faults")["kind"]) == {"truncate"}


def effect_fault_count(tmp_path: Path, drill: Drill) -> None:
    assert len(table(drill(targets__test_dataset__faults={"count": 5}), "faults")) == 5


def effect_not_kept(tmp_path: Path, drill: Drill) -> None:
    record = drill(
        targets__test_dataset__not_kept=["mtime"],
        targets__test_dataset__faults={"kinds": ["mtime_change"], "count": 1},
    )
    assert record.verdict is not Verdict.PASS, "a fault in an aspect that is not kept goes unseen"
    assert any("mtime" in line for line in record.not_tested)


def effect_channel_file(tmp_path: Path, drill: Drill) -> None:
    drill(teams__admin_team=[{"file": "other.jsonl"}])
    assert messages(tmp_path / "data", "other.jsonl")


def effect_channel_log(tmp_path: Path, drill: Drill, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "recovery_pipelines"):
        drill(teams__admin_team=[{"log": True}])
    assert any("notification to" in line for line in caplog.messages)


def effect_channel_webhook(tmp_path: Path, drill: Drill) -> None:
    from tests.webhook import receiving

    with receiving() as (address, received):
        drill(teams__admin_team=[{"webhook": address}])
    assert [message["subject"].split()[-1] for message in received] == ["start", "completion"]


def effect_channel_email(tmp_path: Path, drill: Drill) -> None:
    from tests.mail import receiving_mail

    with receiving_mail() as server:
        smtp = server.settings | {"sender": "drills@example.org"}
        plan = make_plan(tmp_path, smtp=smtp, teams__admin_team=[{"email": ["ops@example.org"]}])
        notify(plan, ["admin_team"], "subject", {})
    (mail,) = server.received
    assert (mail.sender, mail.recipients) == ("drills@example.org", ["ops@example.org"])


def effect_channel_apprise(tmp_path: Path, drill: Drill) -> None:
    from tests.webhook import receiving

    with receiving() as (address, received):
        channel = {"apprise": address.replace("http://", "json://")}
        notify(make_plan(tmp_path, teams__admin_team=[channel]), ["admin_team"], "subject", {})
    assert [message["title"] for message in received] == ["subject"]


def effect_smtp_login(tmp_path: Path, drill: Drill) -> None:
    """Username, password and security are exercised in test_notifications.py, with TLS."""
    from tests.test_notifications import test_a_login_needs_an_encrypted_session

    with pytest.MonkeyPatch.context() as patch:
        test_a_login_needs_an_encrypted_session(tmp_path, patch)


def effect_scenario_name(tmp_path: Path, drill: Drill) -> None:
    plan = make_plan(tmp_path, **{f"{DATA}__scenarios": [{"name": "incremental_recovery"}]})
    assert [spec.name for spec in plan.drills()] == ["incremental_recovery_tar"]


def effect_description(tmp_path: Path, drill: Drill) -> None:
    definitions = build_definitions(
        make_plan(tmp_path, **{f"{DATA}__scenarios__0__description": "Rot on purpose"})
    )
    assert definitions.resolve_job_def("corruption_recovery_tar").description == "Rot on purpose"


def effect_steps(tmp_path: Path, drill: Drill) -> None:
    without_recovery = ["create_test_dataset", "simulate_corruption", "validate_data"]
    assert drill(**{f"{DATA}__scenarios__0__steps": without_recovery}).verdict is Verdict.FAIL
    without_validation = ["create_test_dataset", "simulate_corruption", "trigger_recovery"]
    record = drill(**{f"{DATA}__scenarios__0__steps": without_validation})
    assert record.verdict is Verdict.UNVERIFIED
    assert "step validate_data is left out of the plan" in record.not_tested


def effect_criteria(group: str, kept: str, left_out: str) -> Callable[..., None]:
    def effect(tmp_path: Path, drill: Drill) -> None:
        key = f"{DATA}__scenarios__0__validation_criteria__{group}"
        assert left_out in check_names(tmp_path)
        names = check_names(tmp_path, **{key: [kept]})
        assert kept in names
        assert left_out not in names

    return effect


def effect_additional_criteria(tmp_path: Path, drill: Drill) -> None:
    key = f"{DATA}__scenarios__0__validation_criteria__additional"
    with pytest.raises(PlanError, match="unknown validation criterion 'nowhere'"):
        build_definitions(make_plan(tmp_path, **{key: ["nowhere"]}))


def effect_schedule(tmp_path: Path, drill: Drill) -> None:
    crons = [
        [
            schedule.cron_schedule
            for schedule in build_definitions(
                make_plan(tmp_path, **{f"{DATA}__automation__schedule": value})
            ).schedules
            or []
            if schedule.job_name == "data_recovery"
        ]
        for value in ("monthly", "30 4 2 * *", "manual")
    ]
    assert crons == [["0 3 1 * *"], ["30 4 2 * *"], []]


def effect_notification(tmp_path: Path, drill: Drill) -> None:
    plan_key = f"{DATA}__automation__notification"
    spec = make_spec(tmp_path, **{plan_key: ["stakeholders"]})
    tell_failure(spec, MONTH, "run", "because", [])
    assert messages(tmp_path / "data")[-1]["teams"] == ["stakeholders"]


def effect_automation_reporting(tmp_path: Path, drill: Drill) -> None:
    key = f"{DATA}__automation__reporting"
    both = {path.name for path in drill().folder.iterdir()}
    none = {path.name for path in drill(**{key: []}).folder.iterdir()}
    assert both - none == {"journal.jsonl", "metrics.parquet"}
    assert "recommendations" in asset_names(tmp_path)
    assert "recommendations" not in asset_names(tmp_path, **{key: ["metrics"]})


def effect_requirements(tmp_path: Path, drill: Drill) -> None:
    key = f"{EXECUTION}__preparation__requirements"
    full, bare = drill(), drill(**{key: []})
    assert "backup_verification" in {check.name for check in full.checks}
    assert "backup_verification" not in {check.name for check in bare.checks}
    snapshots = [
        json.loads((record.folder / "record.json").read_text())["system_snapshot"]
        for record in (full, bare)
    ]
    assert snapshots[0]["host"]
    assert snapshots[1] == {}
    refused = drill(targets__test_dataset__dataset__size="900TB")
    assert refused.verdict is Verdict.ERROR
    assert "bytes needed" in refused.messages[0]


def effect_told(moment: str) -> Callable[..., None]:
    def effect(tmp_path: Path, drill: Drill) -> None:
        drill(**{f"{EXECUTION}__preparation__notifications__{moment}": ["service_owners"]})
        told = [m["teams"] for m in messages(tmp_path / "data") if m["subject"].endswith(moment)]
        assert told == [["service_owners"]]

    return effect


def effect_parallel_tests(tmp_path: Path, drill: Drill) -> None:
    tags = [
        run_tags([make_spec(tmp_path, **{f"{CONTROLS}__parallel_tests": value})])
        for value in (False, True)
    ]
    assert "recovery/drill" in tags[0]
    assert "recovery/drill" not in tags[1]


def effect_timeout(tmp_path: Path, drill: Drill) -> None:
    record = drill(**{f"{CONTROLS}__timeout": 1, "targets__test_dataset__dataset__size": "400MB"})
    assert record.verdict is Verdict.ERROR
    assert record.errors == ["DrillTimeout"]


def effect_retry_attempts(tmp_path: Path, drill: Drill) -> None:
    spec = make_spec(tmp_path, **{f"{CONTROLS}__retry_attempts": 1})
    assert run_tags([spec])["dagster/max_retries"] == "1"


def effect_failure_handling(tmp_path: Path, drill: Drill) -> None:
    from recovery_pipelines.orchestration.resources import OpenDrills

    for handling, started in (("stop_and_notify", False), ("continue_and_notify", True)):
        changes = {f"{CONTROLS}__failure_handling": handling}
        first, second = (
            make_spec(tmp_path, scenario, **changes)
            for scenario in ("corruption_recovery", "incremental_recovery")
        )
        drills = OpenDrills(f"run-{handling}")
        drills.stage(first, MONTH, "test_dataset").errors.append("Broken")
        try:
            drills.stage(second, MONTH, "test_dataset")
        except Exception as error:
            assert not started, error
        else:
            assert started
        drills.close()


def effect_automated_checks(tmp_path: Path, drill: Drill) -> None:
    key = f"{EXECUTION}__validation__automated_checks__data_integrity"
    record = drill(all_criteria=True, **{key: ["checksums", "structure"]})
    by_name = {check.name: check.verdict for check in record.checks}
    assert by_name["permissions_correct"] is Verdict.UNVERIFIED
    assert by_name["checksums_match"] is Verdict.PASS


def effect_manual_checks(tmp_path: Path, drill: Drill) -> None:
    record = drill(**{f"{MANUAL}__required_checks": ["user_access"]})
    assert (record.verdict, record.manual_checks) == (Verdict.UNVERIFIED, ("user_access",))
    assert drill().verdict is Verdict.PASS


def effect_manual_documentation(tmp_path: Path, drill: Drill) -> None:
    asked = {f"{MANUAL}__required_checks": ["user_access"]}
    drill(**asked, **{f"{MANUAL}__documentation": ["resolutions"]})
    (standing,) = standings(tmp_path / "data")
    said = {"check": "user_access", "result": "pass", "by": "Ada", "role": "reviewer"}
    with pytest.raises(EvidenceError, match="write down resolutions:"):
        sign_off(tmp_path / "data", standing.drill, **said, documentation={})


def effect_timestamp_authority(tmp_path: Path, drill: Drill) -> None:
    from recovery_pipelines.evidence.chain import read_chain
    from tests.authority import stamping

    with stamping(tmp_path / "tsa") as url:
        for ca, entries in (("tsa/tsa.key", 2), ("tsa/ca.pem", 4)):
            drill(evidence__timestamp_authority={"url": url, "ca": ca})
            assert len(read_chain(tmp_path / "data").entries) == entries


def effect_retention(key: str, gone: str) -> Callable[..., None]:
    def effect(tmp_path: Path, drill: Drill) -> None:
        from recovery_pipelines.evidence.clock import Clock
        from recovery_pipelines.evidence.retention import prune

        for _ in range(3):
            drill()
        later = Clock("boot", 0, datetime.now(UTC) + timedelta(days=40))
        for days, removed in (("50d", False), ("30d", True)):
            retentions = {RETENTION: "30d", "evidence__retention": "forever"} | {key: days}
            found = prune(
                make_plan(tmp_path, **retentions), dry_run=True, trust_clock=True, now=later
            )
            assert any(name.endswith(gone) for name in found.sealed) is removed

    return effect


def effect_metrics(group: str, column: str) -> Callable[..., None]:
    def effect(tmp_path: Path, drill: Drill) -> None:
        assert column in drill().metrics
        assert column not in drill(**{f"{METRICS}__{group}": []}).metrics

    return effect


def effect_objective(key: str, metric: str) -> Callable[..., None]:
    def effect(tmp_path: Path, drill: Drill) -> None:
        check = key.replace("_seconds", "_met")
        assert check not in check_names(tmp_path)
        tight, wide = ({f"targets__test_dataset__objectives__{key}": v} for v in (0.0001, 1e6))
        assert check in check_names(tmp_path, **tight)
        row = drill().metrics | {metric: 5.0}
        for changes, verdict in ((tight, Verdict.FAIL), (wide, Verdict.PASS)):
            objectives = make_spec(tmp_path, **changes).target.objectives
            assert [result.verdict for result in judge_objectives(objectives, row)] == [verdict]

    return effect


def effect_analysis(key: str, asset: str) -> Callable[..., None]:
    def effect(tmp_path: Path, drill: Drill) -> None:
        every = ("trend_analysis", "comparison_with_baseline", "anomaly_detection")
        without = asset_names(tmp_path, **{f"{ANALYSIS}__{key}": False})
        assert asset_names(tmp_path) - without == {asset}
        assert "drill_history" in without
        nothing = {f"{ANALYSIS}__{name}": False for name in every}
        nothing[f"{DATA}__automation__reporting"] = []
        assert "drill_history" not in asset_names(tmp_path, **nothing)

    return effect


def effect_report_format(tmp_path: Path, drill: Drill) -> None:
    for names in (["executive_summary"], ["detailed_report", "executive_summary"], []):
        plan = make_plan(tmp_path, **{f"{RESULTS}__format": names})
        keys = build_definitions(plan).resolve_asset_graph().get_all_asset_keys()
        assert {key.path[-1] for key in keys} & set(REPORTS) == set(names)


def effect_distribution(tmp_path: Path, drill: Drill) -> None:
    drill()
    told = []
    for team in ("stakeholders", "service_owners"):
        plan = make_plan(tmp_path, **{f"{RESULTS}__distribution": [team]})
        distribute(plan.data_home, plan, write_reports(plan.data_home, plan, MONTH))
        told = [m["teams"] for m in messages(plan.data_home) if "report" in m["subject"]]
    assert told == [["stakeholders"]], "and what was sent is not sent again"


def effect_categories(tmp_path: Path, drill: Drill) -> None:
    key = f"{RECOMMENDATIONS}__categories"
    assert set(recommended(tmp_path)["category"]) == {"risk_mitigation", "process_improvements"}
    kept = recommended(tmp_path, **{key: ["risk_mitigation"]})
    assert set(kept["category"]) == {"risk_mitigation"}


def effect_prioritization(tmp_path: Path, drill: Drill) -> None:
    key = f"{RECOMMENDATIONS}__prioritization"
    assert recommended(tmp_path)["priority"].drop_duplicates().tolist() == ["critical", "low"]
    turned = recommended(tmp_path, **{key: ["low", "critical"]})
    assert turned["priority"].drop_duplicates().tolist() == ["low", "critical"]
    assert set(recommended(tmp_path, **{key: ["low"]})["priority"]) == {"low"}


EFFECTS: dict[str, Callable[..., None]] = {
    "data_home": effect_data_home,
    "host": effect_host,
    "targets.path": effect_target_path,
    "targets.dataset.size": effect_dataset_size,
    "targets.dataset.seed": effect_dataset_seed,
    "targets.engines": effect_engines,
    "targets.increments": effect_increments,
    "targets.recovery": effect_recovery,
    "targets.repeats": effect_repeats,
    "targets.faults.kinds": effect_fault_kinds,
    "targets.faults.count": effect_fault_count,
    "targets.objectives.rto_seconds": effect_objective("rto_seconds", "recovery_seconds"),
    "targets.objectives.rpo_seconds": effect_objective("rpo_seconds", "rpo_seconds"),
    "targets.not_kept": effect_not_kept,
    "evidence.retention": effect_retention("evidence__retention", "record.json"),
    "evidence.timestamp_authority.url": effect_timestamp_authority,
    "evidence.timestamp_authority.ca": effect_timestamp_authority,
    "teams.log": effect_channel_log,
    "teams.file": effect_channel_file,
    "teams.webhook": effect_channel_webhook,
    "teams.email": effect_channel_email,
    "teams.apprise": effect_channel_apprise,
    "smtp.host": effect_channel_email,
    "smtp.port": effect_channel_email,
    "smtp.sender": effect_channel_email,
    "smtp.security": effect_smtp_login,
    "smtp.username": effect_smtp_login,
    "smtp.password": effect_smtp_login,
} | {
    f"test_framework.{key}": effect
    for key, effect in {
        "test_scenarios.data_recovery.scenarios.name": effect_scenario_name,
        "test_scenarios.data_recovery.scenarios.description": effect_description,
        "test_scenarios.data_recovery.scenarios.steps": effect_steps,
        "test_scenarios.data_recovery.scenarios.validation_criteria.data_integrity": (
            effect_criteria("data_integrity", "checksums_match", "all_files_recovered")
        ),
        "test_scenarios.data_recovery.scenarios.validation_criteria.structure": (
            effect_criteria("structure", "permissions_correct", "directory_structure_intact")
        ),
        "test_scenarios.data_recovery.scenarios.validation_criteria.accessibility": (
            effect_criteria("accessibility", "files_accessible", "applications_functional")
        ),
        "test_scenarios.data_recovery.scenarios.validation_criteria.additional": (
            effect_additional_criteria
        ),
        "test_scenarios.data_recovery.automation.schedule": effect_schedule,
        "test_scenarios.data_recovery.automation.notification": effect_notification,
        "test_scenarios.data_recovery.automation.reporting": effect_automation_reporting,
        "reporting.documentation.recommendations.categories": effect_categories,
        "reporting.documentation.recommendations.prioritization": effect_prioritization,
        "test_execution.preparation.requirements": effect_requirements,
        "test_execution.preparation.notifications.start": effect_told("start"),
        "test_execution.preparation.notifications.completion": effect_told("completion"),
        "test_execution.execution_controls.parallel_tests": effect_parallel_tests,
        "test_execution.execution_controls.timeout": effect_timeout,
        "test_execution.execution_controls.retry_attempts": effect_retry_attempts,
        "test_execution.execution_controls.failure_handling": effect_failure_handling,
        "test_execution.validation.automated_checks.data_integrity": effect_automated_checks,
        "test_execution.validation.manual_verification.required_checks": effect_manual_checks,
        "test_execution.validation.manual_verification.documentation": effect_manual_documentation,
        "reporting.documentation.test_results.retention": (
            effect_retention(RETENTION, "journal.jsonl")
        ),
        "reporting.metrics.collection.performance_metrics": (
            effect_metrics("performance_metrics", "recovery_seconds")
        ),
        "reporting.metrics.collection.resource_metrics": (
            effect_metrics("resource_metrics", "cpu_seconds")
        ),
        "reporting.metrics.collection.error_metrics": (
            effect_metrics("error_metrics", "failure_count")
        ),
        "reporting.metrics.analysis.trend_analysis": (
            effect_analysis("trend_analysis", "trend_analysis")
        ),
        "reporting.metrics.analysis.comparison_with_baseline": (
            effect_analysis("comparison_with_baseline", "baseline_comparison")
        ),
        "reporting.documentation.test_results.format": effect_report_format,
        "reporting.documentation.test_results.distribution": effect_distribution,
        "reporting.metrics.analysis.anomaly_detection": (
            effect_analysis("anomaly_detection", "anomaly_detection")
        ),
    }.items()
}
EFFECTS |= {f"monitoring.{key}": effect for key, effect in monitoring_effects.EFFECTS.items()}

EFFECTS |= STACK_EFFECTS | PAIR_EFFECTS | MATRIX_EFFECTS | AUDIT_EFFECTS | DATABASE_EFFECTS


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every leaf key of the plan's schema, list positions and free names left out."""
    for name, field in model.model_fields.items():
        inner = inner_models(field.annotation)
        for model_inside in inner:
            yield from keys_of(model_inside, f"{prefix}{name}.")
        if not inner:
            yield f"{prefix}{name}"


def inner_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inside = getattr(annotation, "__args__", ())
    return [model for argument in inside for model in inner_models(argument)]


def test_every_key_has_an_effect_that_is_tested() -> None:
    assert set(keys_of(Plan)) == set(EFFECTS)


def test_the_reference_is_that_of_the_schema() -> None:
    page = PAGE.read_text()
    assert reference(page) == page, "make docs"


@pytest.mark.parametrize("key", EFFECTS)
def test_effect(key: str, tmp_path: Path, drill: Drill, caplog: pytest.LogCaptureFixture) -> None:
    if key == "teams.log":
        effect_channel_log(tmp_path, drill, caplog)
    else:
        EFFECTS[key](tmp_path, drill)


# --- the shipped plan and the seed --------------------------------------------------------

SEED_VALUES = {
    "automation": {
        "schedule": "monthly",
        "notification": ["admin_team"],
        "reporting": ["detailed_logs", "metrics", "recommendations"],
    },
    "execution_controls": {
        "parallel_tests": False,
        "timeout": 3600,
        "retry_attempts": 2,
        "failure_handling": "stop_and_notify",
    },
    "requirements": ["backup_verification", "system_snapshot", "resource_availability"],
    "start": ["admin_team", "service_owners"],
    "completion": ["admin_team", "stakeholders"],
    "analysis": {
        "trend_analysis": True,
        "comparison_with_baseline": True,
        "anomaly_detection": True,
    },
}


def test_the_shipped_plan_holds_the_seeds_values() -> None:
    framework = yaml.safe_load(SHIPPED.read_text())["test_framework"]
    execution = framework["test_execution"]
    assert framework["test_scenarios"]["data_recovery"]["automation"] == SEED_VALUES["automation"]
    assert execution["execution_controls"] == SEED_VALUES["execution_controls"]
    assert execution["preparation"]["requirements"] == SEED_VALUES["requirements"]
    assert execution["preparation"]["notifications"]["start"] == SEED_VALUES["start"]
    assert execution["preparation"]["notifications"]["completion"] == SEED_VALUES["completion"]
    assert framework["reporting"]["metrics"]["analysis"] == SEED_VALUES["analysis"]
    results = framework["reporting"]["documentation"]["test_results"]
    assert results["format"] == ["detailed_report", "executive_summary"]
    assert results["distribution"] == ["admin_team", "stakeholders"]


def test_a_plan_of_one_target_drills_both_scenarios(tmp_path: Path) -> None:
    text = "targets:\n  documents:\n    path: /srv/documents\n    engines: [tar]\n"
    plan = parse_plan(text, name="recovery.yaml", folder=tmp_path)
    names = [spec.name for spec in plan.drills()]
    assert names == ["corruption_recovery_documents_tar", "incremental_recovery_documents_tar"]


# --- mistakes -----------------------------------------------------------------------------

MISTAKES = {
    "unknown key": ("parallel_tests: false", "parallel: false", ["parallel_tests, timeout"]),
    "seed key without support": (
        "    validation:",
        "    manual_verification: {}\n    validation:",
        ["manual_verification", "unknown or not yet supported"],
    ),
    "value not allowed": ("schedule: monthly", "schedule: weekly", ["'monthly' or 'manual'"]),
    "wrong type": ("timeout: 3600", "timeout: soon", ["execution_controls.timeout", "integer"]),
    "unknown step": ("- validate_data", "- validate", ["'validate'", "validate_data"]),
    "steps out of order": (
        "            - create_test_dataset\n            - simulate_corruption",
        "            - simulate_corruption\n            - create_test_dataset",
        ["order"],
    ),
    "unknown team": ("service_owners: [", "owners: [", ["service_owners", "owners"]),
    "key twice": ("timeout: 3600", "timeout: 1\n      timeout: 2", ["stands twice"]),
    "criterion twice": (
        "[all_files_recovered, checksums_match]",
        "[checksums_match, checksums_match]",
        ["more than once"],
    ),
    "neither path nor dataset": (
        "dataset: {size: 64MB, seed: 1}",
        "increments: 3",
        ["targets.test_dataset", "`path`"],
    ),
    "e-mail without a server": (
        "admin_team: [{file: notifications.jsonl}]",
        "admin_team: [{email: [ops@example.org]}]",
        ["admin_team", "`smtp`"],
    ),
    "address with a line break": (
        "admin_team: [{file: notifications.jsonl}]",
        'admin_team: [{email: ["ops@example.org\\r\\nBcc: x@example.org"]}]',
        ["teams.admin_team.0.email.0"],
    ),
    "password in the plan": (
        "teams:",
        "smtp: {host: mail, sender: a@example.org, username: a, password: secret}\nteams:",
        ["smtp.password", "env:"],
    ),
    "password in the clear": (
        "teams:",
        "smtp: {host: mail, sender: a@example.org, security: none, username: a,"
        " password: env:P}\nteams:",
        ["smtp", "starttls or ssl"],
    ),
    "two ways in one channel": (
        "admin_team: [{file: notifications.jsonl}]",
        "admin_team: [{file: notifications.jsonl, log: true}]",
        ["exactly one of: log, file, webhook, email, apprise"],
    ),
    "team without a channel": (
        "admin_team: [{file: notifications.jsonl}]",
        "admin_team: []",
        ["teams.admin_team", "at least 1"],
    ),
    "records shorter than tables": (
        "  retention: forever",
        "  retention: 30d",
        ["evidence.retention (30d) is shorter"],
    ),
    "not YAML": ("targets:", "targets: [", ["not valid YAML"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, tmp_path: Path) -> None:
    right, wrong, expected = MISTAKES[mistake]
    text = SHIPPED.read_text()
    assert right in text
    with pytest.raises(PlanError) as raised:
        parse_plan(text.replace(right, wrong, 1), name="recovery.yaml", folder=tmp_path)
    message = str(raised.value)
    assert all(part in message for part in expected), message
    if mistake not in ("not YAML",):
        line = int(message.split(":")[1])
        assert 1 <= line <= text.count("\n") + 2


def test_the_line_is_the_line_of_the_mistake(tmp_path: Path) -> None:
    text = SHIPPED.read_text()
    line = next(n for n, row in enumerate(text.splitlines(), 1) if "timeout:" in row)
    with pytest.raises(PlanError, match=f"recovery.yaml:{line}: .*timeout"):
        parse_plan(text.replace("3600", "-5"), name="recovery.yaml", folder=tmp_path)


def test_unknown_engines_and_faults_are_refused(tmp_path: Path) -> None:
    for changes, known in (
        ({"targets__test_dataset__engines": ["floppy"]}, "restic"),
        ({"targets__test_dataset__faults": {"kinds": ["gremlin"]}}, "bit_flip"),
    ):
        with pytest.raises(PlanError, match=known):
            build_definitions(make_plan(tmp_path, **changes))


def test_a_missing_plan_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan(tmp_path / "none.yaml")


def test_definitions_load(tmp_path: Path) -> None:
    dg.Definitions.validate_loadable(build_definitions(make_plan(tmp_path)))
    assert content()["targets"]["test_dataset"]["dataset"]["size"] == "1MB"
