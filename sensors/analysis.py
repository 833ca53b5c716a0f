"""Makes the tables of the analysis anew when a drill has ended."""

from collections.abc import Sequence

import dagster as dg


def build(assets: Sequence[dg.AssetsDefinition]) -> dg.AutomationConditionSensorDefinition:
    """The sensor `recovery_analysis`, which evaluates the conditions of `assets`."""
    return dg.AutomationConditionSensorDefinition(
        "recovery_analysis",
        target=dg.AssetSelection.assets(*(asset.key for asset in assets)),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description="Makes the tables of the analysis anew when a drill has ended.",
    )
