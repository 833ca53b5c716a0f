"""The plan: `recovery.yaml`, validated. It mirrors the seed's dictionaries key for key."""

from recovery_pipelines.plan.load import find_plan, load_plan, parse_plan
from recovery_pipelines.plan.model import DrillSpec, Plan
from recovery_pipelines.plan.scenarios import Scenario
from recovery_pipelines.plan.targets import Target

__all__ = ["DrillSpec", "Plan", "Scenario", "Target", "find_plan", "load_plan", "parse_plan"]
