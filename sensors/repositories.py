"""Looks into the audited repositories: what they hold, and how old the newest backup is."""

from collections.abc import Sequence

import dagster as dg

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.orchestration.repositories import look_into, repository_key
from recovery_pipelines.plan import DrillSpec


def build(specs: Sequence[DrillSpec]) -> dg.SensorDefinition:
    """The sensor `recovery_repositories`: one observation per repository and hour."""

    @dg.sensor(
        name="recovery_repositories",
        minimum_interval_seconds=3600,
        description="Observes what the audited repositories hold.",
    )
    def recovery_repositories(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        observed = []
        for spec in specs:
            try:
                found = look_into(spec)
            except RecoveryError as error:
                context.log.error("%s: %s", spec.target_name, error)
                found = {"error": str(error)}
            observed.append(dg.AssetObservation(repository_key(spec), metadata=found))
        return dg.SensorResult(asset_events=observed)

    return recovery_repositories
