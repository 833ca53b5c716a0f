"""Every criterion by name, ours and others', and how they are run."""

from collections.abc import Sequence
from importlib.metadata import entry_points

from recovery_pipelines.checks.applications import ApplicationsFunctional
from recovery_pipelines.checks.base import Check, RecoveredState, run_check
from recovery_pipelines.checks.criteria import (
    AllFilesRecovered,
    ChecksumsMatch,
    DirectoryStructureIntact,
    PermissionsCorrect,
)
from recovery_pipelines.checks.owner_access import FilesAccessible
from recovery_pipelines.errors import PlanError
from recovery_pipelines.verdict import CheckResult

ENTRY_POINT_GROUP = "recovery_pipelines.checks"

CRITERIA: dict[str, type[Check]] = {
    "all_files_recovered": AllFilesRecovered,
    "checksums_match": ChecksumsMatch,
    "directory_structure_intact": DirectoryStructureIntact,
    "permissions_correct": PermissionsCorrect,
    "files_accessible": FilesAccessible,
    "applications_functional": ApplicationsFunctional,
}
"""Our own criteria, in the order in which they are shown."""


def check_named(name: str) -> Check:
    """The check of this name, or a PlanError that lists the known ones."""
    if name in CRITERIA:
        return CRITERIA[name]()
    others = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in others:
        known = ", ".join([*CRITERIA, *sorted(others)])
        raise PlanError(f"unknown validation criterion {name!r}; known criteria: {known}")
    check: Check = others[name].load()()
    return check


def run_checks(names: Sequence[str], state: RecoveredState) -> list[CheckResult]:
    """Run the criteria of these names on a recovered state; one result each, in this order."""
    return [run_check(check, state) for check in map(check_named, names)]
