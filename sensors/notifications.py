"""Sends what the outbox still holds, so that nothing waits for the next drill."""

import dagster as dg

from recovery_pipelines.notifications import send_pending
from recovery_pipelines.plan import Plan


def build(plan: Plan) -> dg.SensorDefinition:
    """The sensor `recovery_notifications`."""

    @dg.sensor(
        name="recovery_notifications",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Sends again what did not reach its recipients.",
    )
    def recovery_notifications() -> dg.SkipReason:
        tried = send_pending(plan)
        if not tried:
            return dg.SkipReason("nothing was due")
        outcomes = [
            f"{receipt.subject} to {receipt.recipient}: {receipt.state}" for receipt in tried
        ]
        return dg.SkipReason("; ".join(outcomes))

    return recovery_notifications
