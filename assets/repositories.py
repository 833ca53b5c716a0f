"""The repositories that audits read: external assets, and whether their newest backup is fresh."""

from collections.abc import Sequence

import dagster as dg

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.orchestration.repositories import AGE, look_into, repository_key
from recovery_pipelines.plan import DrillSpec

FRESH = "backup_is_fresh"


def build(specs: Sequence[DrillSpec]) -> list[dg.AssetSpec]:
    """One external asset per repository."""
    return [
        dg.AssetSpec(
            repository_key(spec),
            group_name=spec.group,
            description="Backups that others make. They are observed and audited, never written.",
            kinds={spec.engine},
        )
        for spec in specs
    ]


def checks(specs: Sequence[DrillSpec]) -> list[dg.AssetChecksDefinition]:
    """`backup_is_fresh` on each repository whose target has an rpo_seconds."""
    return [_check(spec) for spec in specs if spec.audited.objectives.rpo_seconds is not None]


def _check(spec: DrillSpec) -> dg.AssetChecksDefinition:
    limit = spec.audited.objectives.rpo_seconds
    assert limit is not None

    @dg.asset_check(
        asset=repository_key(spec), name=FRESH, description="The newest backup is young enough"
    )
    def backup_is_fresh() -> dg.AssetCheckResult:
        try:
            found = look_into(spec)
        except RecoveryError as error:
            raise dg.Failure(f"{type(error).__name__}: {error}") from None
        age = found.get(AGE)
        return dg.AssetCheckResult(
            passed=isinstance(age, float) and 0 <= age <= limit,
            metadata={"allowed_seconds": limit, **found},
        )

    return backup_is_fresh
