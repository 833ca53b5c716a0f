"""The plan's execution controls as Dagster's own: timeout, retries, one drill at a time."""

from collections.abc import Sequence

import dagster as dg

from recovery_pipelines.plan import DrillSpec, Plan

POOL = "recovery_drill"
DRILL_TAG = "recovery/drill"
TARGET_TAG = "recovery/target"
"""On runs over the drills of one target, for a limit by target."""
RETRY_TAG = "dagster/retry_on_asset_or_op_failure"

# The engine's own clock comes first: a run that Dagster stops may end as canceled, unretried.
_START_AND_CLEANUP_SECONDS = 60


def asset_key(plan: Plan, *path: str) -> dg.AssetKey:
    """The key of an asset that every plan has: Dagster knows one asset by each, on all hosts."""
    return dg.AssetKey([plan.host, *path] if plan.host else list(path))


def run_tags(specs: Sequence[DrillSpec]) -> dict[str, str]:
    """The tags of a run over these drills."""
    controls = specs[0].controls
    most_seconds = controls.timeout * len(specs) + _START_AND_CLEANUP_SECONDS
    tags = {
        "dagster/max_runtime": str(most_seconds),
        "dagster/max_retries": str(controls.retry_attempts),
        "dagster/retry_strategy": "ALL_STEPS",
        RETRY_TAG: "true",
    }
    plan = specs[0].plan
    if not controls.parallel_tests:
        tags[DRILL_TAG] = f"one at a time on {plan.host}" if plan.host else "one at a time"
    if len({spec.target_name for spec in specs}) == 1 and not specs[0].shard:
        tags[TARGET_TAG] = asset_key(plan, specs[0].target_name).to_user_string()
    return tags


def pool_of(plan: Plan) -> str | None:
    """The pool of everything that must not run beside a drill; None if it may."""
    if plan.test_framework.test_execution.execution_controls.parallel_tests:
        return None
    return f"{POOL}_{plan.host}" if plan.host else POOL


def apply_controls(context: dg.AssetExecutionContext, spec: DrillSpec) -> None:
    """Give the run the tags that it lacks: not every way to launch one carries the job's tags."""
    missing = {
        name: value for name, value in run_tags([spec]).items() if name not in context.run.tags
    }
    context.instance.add_run_tags(context.run_id, missing)


def forbid_retry(context: dg.AssetExecutionContext) -> None:
    """A finding is not run again: a retry that passes would hide it."""
    context.instance.add_run_tags(context.run_id, {RETRY_TAG: "false"})
