"""The library's surface: Dagster definitions made from a plan.

Users merge them into their own code location. Must not load a component tree or hold a global
`Definitions`: both would collide with the user's own.
"""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from recovery_pipelines.analysis.recommendations import recommended_drills
from recovery_pipelines.assets import (
    anomaly_detection,
    audit_shard,
    baseline_comparison,
    checksum_validation,
    corruption,
    detection_matrix,
    drill_history,
    evidence_retention,
    incremental_backups,
    recommendations,
    recovery_metrics,
    reports,
    restore,
    scenario_steps,
    test_dataset,
    trend_analysis,
)
from recovery_pipelines.assets import monitoring as monitoring_assets
from recovery_pipelines.assets import repositories as repository_assets
from recovery_pipelines.drills.data_recovery import require_known
from recovery_pipelines.drills.run import STAGED
from recovery_pipelines.orchestration.jobs import drill_job, drill_schedule, jobs, monitoring_job
from recovery_pipelines.orchestration.shards import shards_job, shards_schedule
from recovery_pipelines.orchestration.stages import RESOURCES
from recovery_pipelines.plan import DrillSpec, Plan, find_plan, load_plan
from recovery_pipelines.plan.repositories import RepositoryTarget
from recovery_pipelines.sensors import (
    analysis,
    audit_merge,
    drill_failure,
    drill_overdue,
    monitoring,
    notifications,
    repositories,
    sandbox_reaper,
    sign_offs,
)

_STAGE_MODULES = (
    test_dataset,
    incremental_backups,
    corruption,
    restore,
    checksum_validation,
    recovery_metrics,
)


def build_definitions(plan: Plan | Path | str | None = None) -> dg.Definitions:
    """Assets, checks, jobs, schedules and sensors for every drill of a plan.

    `plan` is a Plan, the path of a `recovery.yaml`, or None for the one that RECOVERY_PLAN names
    or that lies in the working directory or above. Raises PlanError.
    """
    if not isinstance(plan, Plan):
        plan = load_plan(Path(plan) if plan else find_plan())
    specs = plan.drills()
    for spec in specs:
        require_known(spec)
    drill_jobs, other_jobs, schedules = jobs(specs), [], []
    for group, settings in plan.groups():
        in_group = [spec for spec in specs if spec.group == group and not spec.shards]
        if not in_group:
            continue
        drill_jobs.append(drill_job(group, in_group, f"Every drill of {group}"))
        cron_schedule = settings.automation.cron_schedule
        if cron_schedule:
            schedules.append(drill_schedule(drill_jobs[-1], in_group, cron_schedule))
    sharded = [spec for spec in specs if spec.shards]
    merge_jobs = [job for job in drill_jobs if job.name in {spec.name for spec in sharded}]
    for spec in sharded:
        drill_jobs.append(shards_job(spec))
        cron_schedule = spec.automation.cron_schedule
        if cron_schedule:
            schedules.append(shards_schedule(drill_jobs[-1], spec, cron_schedule))
    tables = _analysis_assets(plan, specs)
    derived = list(tables)
    if plan.test_framework.reporting.documentation.test_results.format:
        derived.append(reports.build(plan, specs, tables))
        other_jobs.append(reports.job(derived[-1]))
    retention, daily = evidence_retention.build(plan)
    schedules.append(daily)
    watched: list[dg.AssetsDefinition] = []
    watchers: list[dg.SensorDefinition] = []
    if plan.monitoring:
        watched = monitoring_assets.build(plan, plan.monitoring)
        other_jobs.append(monitoring_job(watched))
        watchers = monitoring.build(plan, plan.monitoring, other_jobs[-1])
    measured: list[dg.AssetsDefinition] = []
    if plan.detection_matrix:
        measured = [detection_matrix.build(plan, plan.detection_matrix)]
        other_jobs.append(detection_matrix.job(plan))
    audits = [spec for spec in specs if isinstance(spec.target, RepositoryTarget)]
    return dg.Definitions(
        assets=[
            *(asset for spec in specs for asset in stage_assets(spec)),
            *derived,
            retention,
            *measured,
            *watched,
            *repository_assets.build(audits),
        ],
        asset_checks=repository_assets.checks(audits),
        resources=RESOURCES,
        jobs=[*drill_jobs, *other_jobs],
        schedules=schedules,
        sensors=[
            drill_failure.build(specs, "recovery_drill_failure"),
            drill_overdue.build(specs),
            notifications.build(plan),
            sandbox_reaper.build(plan.data_home, specs, drill_jobs),
            *([analysis.build(derived)] if derived else []),
            *_sign_off_sensors(plan, specs, tables[:1], derived[len(tables) :]),
            *watchers,
            *([repositories.build(audits)] if audits else []),
            *([audit_merge.build(sharded, merge_jobs)] if sharded else []),
        ],
    )


def stage_assets(spec: DrillSpec) -> Sequence[dg.AssetsDefinition]:
    """The stages of one drill, in order."""
    if isinstance(spec.target, STAGED):
        return [module.build(spec) for module in _STAGE_MODULES]
    shards = [audit_shard.build(spec)] if spec.shards else []
    return [*shards, *scenario_steps.build(spec), recovery_metrics.build(spec)]


def _sign_off_sensors(
    plan: Plan,
    specs: Sequence[DrillSpec],
    history: Sequence[dg.AssetsDefinition],
    reports: Sequence[dg.AssetsDefinition],
) -> list[dg.SensorDefinition]:
    asked = [spec for spec in specs if spec.manual_verification.required_checks]
    keys = [[key for asset in assets for key in asset.keys] for assets in (history, reports)]
    return [sign_offs.build(plan, asked, *keys)] if asked else []


def _analysis_assets(plan: Plan, specs: Sequence[DrillSpec]) -> list[dg.AssetsDefinition]:
    """What is made of all drills together, as far as the plan switches it on."""
    wanted = plan.test_framework.reporting.metrics.analysis
    tables = [
        *([baseline_comparison.build(plan)] if wanted.comparison_with_baseline else []),
        *([trend_analysis.build(plan, specs)] if wanted.trend_analysis else []),
        *([anomaly_detection.build(plan)] if wanted.anomaly_detection else []),
        *([recommendations.build(plan)] if recommended_drills(plan) else []),
    ]
    return [drill_history.build(plan, specs), *tables] if tables else []
