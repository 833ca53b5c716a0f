"""Plans for tests: the shipped one, made small, with changes by dotted key."""

import copy
from pathlib import Path
from typing import Any

import yaml

from recovery_pipelines.plan import DrillSpec, Plan, parse_plan

SHIPPED = Path(__file__).parent.parent / "recovery.yaml"
PATRONI = SHIPPED.parent / ".venv" / "patroni" / "bin" / "patroni"
"""Made by `make test`."""
MONTH = "2026-11-01"


def content(**changes: Any) -> dict[str, Any]:
    """The shipped plan on 1 MB of data; `a__b__0__c=value` sets a.b[0].c, None removes it.

    The targets of other groups are in it only if a change is about them.
    """
    plan = yaml.safe_load(SHIPPED.read_text())
    plan["targets"]["test_dataset"]["dataset"]["size"] = "1MB"
    for target, group in (
        ("test_services", "system_failure"),
        ("test_replication", "network_recovery"),
    ):
        kept = plan["targets"].pop(target)
        if any(target in dotted or group in dotted for dotted in changes):
            plan["targets"][target] = kept
    for dotted, value in changes.items():
        at: Any = plan
        *parents, last = dotted.split("__")
        for key in parents:
            at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
        if value is None:
            del at[last]
        else:
            at[int(last) if isinstance(at, list) else last] = copy.deepcopy(value)
    return plan


def make_plan(folder: Path, **changes: Any) -> Plan:
    """The plan of `content`, with its data home in `folder`."""
    text = yaml.safe_dump(content(**changes), sort_keys=False)
    return parse_plan(text, name="recovery.yaml", folder=folder)


def make_spec(folder: Path, scenario: str = "corruption_recovery", **changes: Any) -> DrillSpec:
    """The first drill of `scenario` in that plan."""
    drills = make_plan(folder, **changes).drills()
    return next(drill for drill in drills if drill.scenario.name == scenario)
