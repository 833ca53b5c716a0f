"""The stages of the data-recovery scenarios: on file trees, and on databases."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from recovery_pipelines.drills import data_recovery, database_recovery
from recovery_pipelines.drills.lifecycle import open_drill
from recovery_pipelines.drills.record import DrillRecord, read_record, results_of
from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.plan.databases import DatabaseTarget


@dataclass(frozen=True)
class Recovery:
    """What the stages do, in order. Their texts say what each returns."""

    create_test_dataset: Callable[[DrillRun], Path]
    create_incremental_backups: Callable[[DrillRun], pd.DataFrame]
    simulate_damage: Callable[[DrillRun], pd.DataFrame]
    recover: Callable[[DrillRun, pd.DataFrame], pd.DataFrame]
    validate: Callable[[DrillRun, pd.DataFrame], pd.DataFrame]


_OF_TREES, _OF_DATABASES = (
    Recovery(
        module.create_test_dataset,
        module.create_incremental_backups,
        module.simulate_damage,
        module.recover,
        module.validate,
    )
    for module in (data_recovery, database_recovery)
)


def recovery_of(spec: DrillSpec) -> Recovery:
    """How the drill is carried out."""
    return _OF_DATABASES if isinstance(spec.target, DatabaseTarget) else _OF_TREES


def carry_out(spec: DrillSpec, month: str, run_id: str) -> DrillRecord:
    """All stages of one drill without Dagster; errors of a stage end up in the record."""
    how = recovery_of(spec)
    with suppress(RecoveryError), open_drill(spec, month, run_id) as run:
        how.create_test_dataset(run)
        snapshots = how.create_incremental_backups(run)
        if not run.verdict.is_finding:
            faults = how.simulate_damage(run)
            how.recover(run, snapshots)
            how.validate(run, faults)
            data_recovery.measure(run)
    return read_record(results_of(spec, month, run_id))
