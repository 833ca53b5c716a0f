"""Prove that backups restore.

The engine lives in this package and never imports Dagster; `definitions`, `build`,
`components`, `orchestration`, `assets` and `sensors` put Dagster on top of it.
"""
