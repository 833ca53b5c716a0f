"""How a Dagster run holds the drills it carries out: one process, one drill after the other."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import dagster as dg

from recovery_pipelines.drills.lifecycle import open_drill
from recovery_pipelines.drills.run import DrillRun, stages_of
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.plan import DrillSpec

_SCHEDULED_TAG = ".dagster/scheduled_execution_time"
COMMAND_TAG = {"recovery/command": "drill"}
"""Of the runs of `recovery drill`."""
_INITIATOR_TAGS = {
    **dict.fromkeys(COMMAND_TAG, "recovery"),
    "dagster/schedule_name": "schedule",
    "dagster/sensor_name": "sensor",
    "dagster/backfill": "backfill",
    "user": "user",
}


def initiator(tags: Mapping[str, str]) -> str:
    """What launched a run with these tags, as far as Dagster knows."""
    found = [f"{what} {tags[tag]}" for tag, what in _INITIATOR_TAGS.items() if tag in tags]
    return ", ".join(found) or "Dagster, by hand"


class OpenDrills:
    """The drill that a run has in hand. Opening the next one closes the one before."""

    def __init__(self, run_id: str, initiator: str = "code", scheduled_at: str = "") -> None:
        self._run_id = run_id
        self._initiator = initiator
        self._scheduled_at = scheduled_at
        self._stack = ExitStack()
        self._open: DrillRun | None = None
        self._stopped_after: str | None = None

    def stage(self, spec: DrillSpec, month: str, stage: str) -> DrillRun:
        """The drill that `stage` belongs to; the first stage opens it.

        Raises RecoveryError for a stage whose drill is not open in this process, and for a drill
        that must not start because an earlier one in this run failed.
        """
        if self._open and self._open.spec.name == spec.name and stage != stages_of(spec)[0]:
            return self._open
        if stage != stages_of(spec)[0]:
            raise RecoveryError(
                f"{spec.name}/{stage} works in the sandbox of a drill that is not open: a drill is "
                f"one run in one process. Launch the job {spec.name}, or materialize all its "
                "stages in one run with executor=in_process_executor in your Definitions"
            )
        self.close()
        if self._stopped_after and spec.controls.failure_handling == "stop_and_notify":
            raise RecoveryError(
                f"{spec.name} was not started: {self._stopped_after} failed, "
                "and failure_handling is stop_and_notify"
            )
        self._open = self._stack.enter_context(
            open_drill(spec, month, self._run_id, self._initiator, self._scheduled_at)
        )
        return self._open

    def close(self) -> None:
        """End the open drill: record, clean up, notify."""
        run, self._open = self._open, None
        self._stack.close()
        if run and (run.errors or run.verdict.is_finding):
            self._stopped_after = f"{run.spec.name} ({run.verdict})"


class DrillsResource(dg.ConfigurableResource[OpenDrills]):
    """Gives assets the run's open drill; whatever is still open is closed with the run."""

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[OpenDrills]:
        tags = context.run.tags if context.run else {}
        scheduled_at = tags.get(_SCHEDULED_TAG, "")
        drills = OpenDrills(context.run_id or "unknown", initiator(tags), scheduled_at)
        try:
            yield drills
        finally:
            drills.close()
