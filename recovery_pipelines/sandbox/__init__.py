"""The sandbox: where a drill may destroy, and how what it made is always removed."""

from recovery_pipelines.sandbox.claim import claim_run, ended_runs, forget_run, is_claimed
from recovery_pipelines.sandbox.lease import Lease, exclusive, is_alive
from recovery_pipelines.sandbox.sandbox import CGROUPS, Sandbox, cgroup_name, reap
from recovery_pipelines.sandbox.tree import Tree

__all__ = [
    "CGROUPS",
    "Lease",
    "Sandbox",
    "Tree",
    "cgroup_name",
    "claim_run",
    "ended_runs",
    "exclusive",
    "forget_run",
    "is_alive",
    "is_claimed",
    "reap",
]
