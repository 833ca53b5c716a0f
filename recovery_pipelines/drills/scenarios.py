"""Which functions carry out the scenarios whose stages are the seed's own steps."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import pandas as pd

from recovery_pipelines.drills import (
    merged_audit,
    network_recovery,
    partial_failure,
    repository_audit,
    system_failure,
    volume_destroyed,
)
from recovery_pipelines.drills.data_recovery import measure
from recovery_pipelines.drills.lifecycle import open_drill
from recovery_pipelines.drills.record import DrillRecord, read_record, results_of
from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.plan.model import VOLUME_DESTROYED
from recovery_pipelines.plan.repositories import RepositoryTarget


@dataclass(frozen=True)
class SteppedScenario:
    """A scenario: its steps in order, and the checks that it makes beside the plan's criteria."""

    steps: Mapping[str, Callable[[DrillRun], pd.DataFrame]]
    checks: tuple[str, ...]


SCENARIOS = {
    "complete_system_failure": SteppedScenario(system_failure.STEPS, system_failure.CHECKS),
    "partial_failure": SteppedScenario(partial_failure.STEPS, partial_failure.CHECKS),
    "network_isolation": SteppedScenario(network_recovery.STEPS, network_recovery.CHECKS),
}
_VOLUME_DESTROYED = SteppedScenario(volume_destroyed.STEPS, volume_destroyed.CHECKS)


def scenario_of(spec: DrillSpec) -> SteppedScenario:
    """How a drill is carried out."""
    if spec.shards:
        return SteppedScenario(merged_audit.STEPS, repository_audit.checks_of(spec))
    if isinstance(spec.target, RepositoryTarget):
        return SteppedScenario(repository_audit.STEPS, repository_audit.checks_of(spec))
    return _VOLUME_DESTROYED if spec.engine == VOLUME_DESTROYED else SCENARIOS[spec.scenario.name]


def carry_out_steps(spec: DrillSpec, month: str, run_id: str) -> DrillRecord:
    """All steps of one drill without Dagster; errors of a step end up in the record."""
    with suppress(RecoveryError), open_drill(spec, month, run_id) as run:
        for step in scenario_of(spec).steps.values():
            step(run)
        measure(run)
    return read_record(results_of(spec, month, run_id))
