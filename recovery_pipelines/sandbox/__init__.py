"""The sandbox: where a drill may destroy, and how what it made is always removed."""

from recovery_pipelines.sandbox.lease import Lease, exclusive, is_alive
from recovery_pipelines.sandbox.sandbox import Sandbox, reap
from recovery_pipelines.sandbox.tree import Tree

__all__ = ["Lease", "Sandbox", "Tree", "exclusive", "is_alive", "reap"]
