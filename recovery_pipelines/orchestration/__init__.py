"""Dagster's side of the plan: partitions, resources, jobs, controls."""

import warnings

import dagster as dg

# Checks of a partitioned asset that have no partitions show nothing per month; the argument that
# gives them some is still called a preview, and Dagster is pinned.
warnings.filterwarnings(
    "ignore",
    "Specifying a partitions_def on an AssetCheckSpec",
    dg.PreviewWarning,
    r"recovery_pipelines\.",
)
