"""Drills whose process or host was killed: their runs end as failed, and are taken up again.

Dagster's default launcher cannot tell (`supports_check_run_worker_health` is False): such a run
would stay STARTED and keep its slot until its `dagster/max_runtime`. Only the host that carried it
out knows, from its claim; so the host itself says it, when it is back and a retry can start there.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run

from recovery_pipelines.orchestration.jobs import belongs_to
from recovery_pipelines.orchestration.partitions import PARTITION_TAG
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.sandbox import claim_run, ended_runs, forget_run, is_claimed

_WILL_RETRY_TAG = "dagster/will_retry"
_RETRY_NUMBER_TAG = "dagster/retry_number"
_MAX_RETRIES_TAG = "dagster/max_retries"
_REASON_TAG = "dagster/failure_reason"
_BEGIN_SECONDS = 180.0
"""From a run's start to its claim; later than that it may not claim any more."""
_LOOK_BACK = timedelta(days=35)


def begin(context: dg.AssetExecutionContext, home: Path) -> None:
    """Claim the run for this process. Raises Failure if it was called failed before it began."""
    claim_run(home, context.run_id)
    run = context.instance.get_run_by_id(context.run_id)
    if run and run.is_finished:
        raise dg.Failure("too late: this run has ended for Dagster, and may be retried already")


def fail_killed_runs(home: Path, instance: dg.DagsterInstance) -> list[str]:
    """End as failed every run that claimed this data home and whose process is gone."""
    failed = []
    for run_id in ended_runs(home):
        run = instance.get_run_by_id(run_id)
        if run and run.status is dg.DagsterRunStatus.CANCELING:
            continue  # until run monitoring has called it canceled
        if run and not run.is_finished:
            instance.report_run_failed(run, "The run's process, or its whole host, was killed.")
            failed.append(run_id)
        forget_run(home, run_id)
    return failed


def fail_unbegun_runs(
    home: Path, instance: dg.DagsterInstance, specs: Sequence[DrillSpec], location: str
) -> list[str]:
    """End as failed the runs of a code location's drills that died before they had a claim."""
    started = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    failed = []
    for record in started:
        run = record.dagster_run
        age_seconds = time.time() - (record.start_time or time.time())
        if (
            age_seconds > _BEGIN_SECONDS
            and _location(run) == location
            and any(belongs_to(run, spec) for spec in specs)
            and not is_claimed(home, run.run_id)
        ):
            instance.report_run_failed(run, "The run was killed before its first drill began.")
            failed.append(run.run_id)
    return failed


def is_last_attempt(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a failed run neither was retried nor will be.

    Dagster's own answer, a tag, is no help: it is written after the failure was seen, and may say
    "false" of a run that has its retry already, as it then counts one attempt too many.
    """
    if should_retry(instance, run):
        return False
    group = instance.get_run_group(run.run_id)
    attempts = group[1] if group else []
    return not any(
        other.parent_run_id == run.run_id and _RETRY_NUMBER_TAG in other.tags for other in attempts
    )


def missed_its_retry(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether Dagster was to retry a failed run and could not: it tries once, and its host was
    away."""
    return run.tags.get(_WILL_RETRY_TAG) == "false" and should_retry(instance, run)


def should_retry(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether Dagster is to retry a failed run, as far as its retries so far say."""
    if not instance.run_retries_enabled:
        return False
    reason = run.tags.get(_REASON_TAG)
    why = RunFailureReason(reason) if reason else None
    return bool(auto_reexecution_should_retry_run(instance, run, why))


def missed_retries(
    instance: dg.DagsterInstance, specs: Sequence[DrillSpec], jobs: Sequence[str]
) -> list[dg.RunRequest]:
    """The retries that were missed, of drills that nobody has started again since."""
    failed = instance.get_run_records(
        dg.RunsFilter(
            statuses=[dg.DagsterRunStatus.FAILURE],
            tags={_WILL_RETRY_TAG: "false"},
            created_after=datetime.now(UTC) - _LOOK_BACK,
        )
    )
    requests = []
    for record in failed:
        run = record.dagster_run
        if run.job_name not in jobs or not missed_its_retry(instance, run):
            continue
        names = _drills(run, specs)
        later = instance.get_runs(
            dg.RunsFilter(
                tags={PARTITION_TAG: run.tags[PARTITION_TAG]},
                created_after=record.create_timestamp,
            )
        )
        if not any(names & _drills(other, specs) for other in later):
            requests.append(_retry(instance, run))
    return requests


def _retry(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.RunRequest:
    group = instance.get_run_group(run.run_id)
    tried = len(list(group[1])) if group else 1
    return dg.RunRequest(
        run_key=f"retry of {run.run_id}",
        job_name=run.job_name,
        partition_key=run.tags[PARTITION_TAG],
        asset_selection=sorted(run.asset_selection) if run.asset_selection else None,
        tags={_MAX_RETRIES_TAG: str(int(run.tags[_MAX_RETRIES_TAG]) - tried)},
    )


def _drills(run: dg.DagsterRun, specs: Sequence[DrillSpec]) -> set[str]:
    return {spec.name for spec in specs if belongs_to(run, spec)}


def _location(run: dg.DagsterRun) -> str | None:
    origin = run.remote_job_origin
    return origin.repository_origin.code_location_origin.location_name if origin else None
