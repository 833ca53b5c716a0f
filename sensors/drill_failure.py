"""What happens when a drill's run fails: tell the teams, and stop the month's other drills."""

from collections.abc import Sequence

import dagster as dg

from recovery_pipelines.drills.failure import passed, tell_failure
from recovery_pipelines.orchestration.interrupted import is_last_attempt
from recovery_pipelines.orchestration.jobs import UNFINISHED, belongs_to
from recovery_pipelines.orchestration.partitions import MONTH_TAG, PARTITION_TAG, month_of
from recovery_pipelines.orchestration.shards import part_of
from recovery_pipelines.plan import DrillSpec


def build(specs: Sequence[DrillSpec], name: str) -> dg.SensorDefinition:
    """A sensor over all runs that hold a stage of `specs`.

    A run that will be retried is not yet a failure.
    """

    @dg.run_failure_sensor(
        name=name,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=10,
        description="Tells the plan's teams of a failed drill; stops the month's other drills.",
    )
    def drill_failure(context: dg.RunFailureSensorContext) -> None:
        run = context.dagster_run
        failed = [spec for spec in specs if belongs_to(run, spec)]
        if not failed or not is_last_attempt(context.instance, run):
            return
        month = month_of(run.tags) or "no month"
        stopped: list[str] = []
        if failed[0].controls.failure_handling == "stop_and_notify":
            others = [spec for spec in specs if spec not in failed or not spec.shards]
            stopped = _stop_others(context, others, month)
        for spec in [part_of(spec, run.tags) for spec in failed]:
            if len(failed) > 1 and passed(spec, month, run.run_id):
                continue
            tell_failure(spec, month, run.run_id, context.failure_event.message or "", stopped)

    return drill_failure


def _stop_others(
    context: dg.RunFailureSensorContext, specs: Sequence[DrillSpec], month: str
) -> list[str]:
    """Cancel every unfinished run of the same month's drills; returns the names of the drills.

    The other shards of an audit go on: all that is wrong with a backup is to be known.
    """
    stopped = []
    for run in [
        *_unfinished(context, PARTITION_TAG, month),
        *_unfinished(context, MONTH_TAG, month),
    ]:
        names = [spec.name for spec in specs if belongs_to(run, spec)]
        if names and context.instance.run_coordinator.cancel_run(run.run_id):
            context.log.info("stopped run %s: %s", run.run_id, ", ".join(names))
            stopped += names
    return stopped


def _unfinished(
    context: dg.RunFailureSensorContext, tag: str, month: str
) -> Sequence[dg.DagsterRun]:
    return context.instance.get_runs(dg.RunsFilter(tags={tag: month}, statuses=list(UNFINISHED)))
