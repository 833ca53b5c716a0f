"""The validation criteria of a drill, and the self-test that shows that they can fail."""

from recovery_pipelines.checks.base import Check, RecoveredState, examine
from recovery_pipelines.checks.facts import capture_facts, read_facts
from recovery_pipelines.checks.registry import CRITERIA, check_named, run_checks
from recovery_pipelines.checks.self_test import UNDAMAGED, Canary, self_test, self_test_verdict

__all__ = [
    "CRITERIA",
    "UNDAMAGED",
    "Canary",
    "Check",
    "RecoveredState",
    "capture_facts",
    "check_named",
    "examine",
    "read_facts",
    "run_checks",
    "self_test",
    "self_test_verdict",
]
