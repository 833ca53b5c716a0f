"""Telling a group's teams that a drill failed for good."""

from collections.abc import Sequence

from recovery_pipelines.notifications import notify
from recovery_pipelines.plan import DrillSpec


def tell_failure(
    spec: DrillSpec, month: str, run_id: str, reason: str, stopped: Sequence[str]
) -> None:
    """One message to the teams of the group's `automation.notification`."""
    subject = f"recovery drill {spec.name} {month}: failed"
    if stopped:
        subject += f"; stopped: {', '.join(stopped)}"
    details = {
        "drill": spec.name,
        "month": month,
        "run_id": run_id,
        "reason": reason,
        "stopped": list(stopped),
    }
    notify(spec.plan, spec.automation.notification, subject, details)
