"""What a drill practises on: seeded synthetic data, or a copy of a real tree; and its changes."""

from recovery_pipelines.dataset.changes import Changes, change_dataset
from recovery_pipelines.dataset.copies import copy_tree
from recovery_pipelines.dataset.synthetic import build_dataset

__all__ = ["Changes", "build_dataset", "change_dataset", "copy_tree"]
