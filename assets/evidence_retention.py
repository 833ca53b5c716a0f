"""Reporting: removing what is older than the plan keeps it."""

import dagster as dg

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.evidence.retention import Removal, prune
from recovery_pipelines.notifications import forget
from recovery_pipelines.orchestration.controls import asset_key
from recovery_pipelines.plan import Plan
from recovery_pipelines.plan.reporting import retention_days

NAME = "evidence_retention"
_CRON = "0 5 * * *"


def build(plan: Plan) -> tuple[dg.AssetsDefinition, dg.ScheduleDefinition]:
    """The asset `evidence_retention`, and the schedule that makes it every day."""

    @dg.asset(
        key=asset_key(plan, NAME),
        group_name="reporting",
        description="Removes what is older than the plan's retention; a signed tombstone names "
        "each sealed file first. Fails, and removes nothing, if the clock is in doubt.",
        code_version="1",
    )
    def evidence_retention() -> dg.MaterializeResult[None]:
        try:
            removal = prune(plan)
        except (OSError, RecoveryError) as error:
            raise dg.Failure(f"{type(error).__name__}: {error}") from None
        if removal.refused:
            raise dg.Failure(f"nothing was removed: {removal.refused}")
        lines = forget(plan.data_home, retention_days(plan.evidence.retention))
        return dg.MaterializeResult(metadata=_metadata(removal) | {"removed_receipts": lines})

    schedule = dg.ScheduleDefinition(
        name=f"{NAME}_schedule",
        target=[evidence_retention],
        cron_schedule=_CRON,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Removes what is older than the plan's retention, every day.",
    )
    return evidence_retention, schedule


def _metadata(removal: Removal) -> dict[str, int | str]:
    stone = removal.tombstone
    return {
        "removed_files": removal.files,
        "removed_bytes": removal.bytes,
        "tombstone": f"{stone.seq} {stone.digest}" if stone else "none needed",
        "kept_because_changed": "; ".join(removal.kept_wrong) or "none",
    }
