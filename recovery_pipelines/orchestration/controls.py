"""The plan's execution controls as Dagster's own: timeout, retries, one drill at a time."""

from collections.abc import Sequence

import dagster as dg

from recovery_pipelines.plan import DrillSpec

POOL = "recovery_drill"
DRILL_TAG = "recovery/drill"
RETRY_TAG = "dagster/retry_on_asset_or_op_failure"

# The engine's own clock comes first: a run that Dagster stops may end as canceled, unretried.
_START_AND_CLEANUP_SECONDS = 60


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
    if not controls.parallel_tests:
        tags[DRILL_TAG] = "one at a time"
    return tags


def apply_controls(context: dg.AssetExecutionContext, spec: DrillSpec) -> None:
    """Give the run the tags that it lacks: not every way to launch one carries the job's tags."""
    missing = {
        name: value for name, value in run_tags([spec]).items() if name not in context.run.tags
    }
    context.instance.add_run_tags(context.run_id, missing)


def forbid_retry(context: dg.AssetExecutionContext) -> None:
    """A finding is not run again: a retry that passes would hide it."""
    context.instance.add_run_tags(context.run_id, {RETRY_TAG: "false"})
