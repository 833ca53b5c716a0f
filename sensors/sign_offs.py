"""Shows sign-offs in Dagster: the check `manual_verification` turns, reports are made anew."""

from collections.abc import Sequence

import dagster as dg

from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.orchestration.manual import evaluations
from recovery_pipelines.plan import DrillSpec, Plan


def build(
    plan: Plan,
    specs: Sequence[DrillSpec],
    history: Sequence[dg.AssetKey],
    reports: Sequence[dg.AssetKey],
) -> dg.SensorDefinition:
    """The sensor `recovery_sign_offs`.

    After a sign-off the assets `history` are made anew, and the month's `reports`.
    """
    refreshed = [*history, *reports]

    @dg.sensor(
        name="recovery_sign_offs",
        asset_selection=dg.AssetSelection.assets(*refreshed) if refreshed else None,
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Shows what people signed with `recovery signoff`.",
    )
    def recovery_sign_offs(
        context: dg.SensorEvaluationContext,
    ) -> dg.SensorResult | dg.SkipReason:
        try:
            found, seq = evaluations(plan.data_home, specs, int(context.cursor or 0))
        except EvidenceError as error:
            return dg.SkipReason(f"the evidence is broken: {error}")
        if not found:
            return dg.SkipReason("nothing was signed since")
        anew = []
        if history:
            anew.append(dg.RunRequest(run_key=f"sign-off {seq}", asset_selection=list(history)))
        if reports:
            anew += [
                dg.RunRequest(
                    run_key=f"sign-off {seq} {month}",
                    partition_key=month,
                    asset_selection=list(reports),
                )
                for month in sorted({str(each.partition) for each in found})
            ]
        return dg.SensorResult(asset_events=found, cursor=str(seq), run_requests=anew)

    return recovery_sign_offs
