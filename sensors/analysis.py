"""Makes the tables of the analysis and the reports anew when a drill has ended."""

from collections.abc import Sequence

import dagster as dg


def build(assets: Sequence[dg.AssetsDefinition]) -> dg.AutomationConditionSensorDefinition:
    """The sensor `recovery_analysis`, which evaluates the conditions of `assets`."""
    return dg.AutomationConditionSensorDefinition(
        "recovery_analysis",
        target=dg.AssetSelection.assets(*(key for asset in assets for key in asset.keys)),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=60,
        description="Makes the tables of the analysis and the reports anew when a drill has ended.",
    )
