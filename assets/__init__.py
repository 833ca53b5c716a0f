"""Dagster assets, one module per stage. A module holds one builder per asset and no logic: what
a stage does is in `recovery_pipelines.drills`."""
