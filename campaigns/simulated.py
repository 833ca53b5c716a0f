"""Simulated drills: months of record files as real drills leave them, with problems injected.

Times are lognormal; everything else is as the injection says. `tests/test_recommendations.py`
compares the keys of these records with those of a real drill's.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from recovery_pipelines.checks import CRITERIA
from recovery_pipelines.drills.preparation import room_for
from recovery_pipelines.drills.record import FILE_NAME, folder_of, write_record
from recovery_pipelines.plan import DrillSpec, Plan, parse_plan
from recovery_pipelines.verdict import Verdict, worst

CHECKS = ("backup_verification", *CRITERIA, "all_faults_detected", "self_test")
FIRST_MONTH = "2026-01"
TIMEOUT_SECONDS = 3600
TYPICAL_SECONDS = 100.0
"""Recovery time of a drill to which nothing happens."""
SIGMA = 0.1
"""Deviation of the logarithms, unless an injection says otherwise."""
_DATA_BYTES = 5_000_000_000
_PHASES = {"detect": 0.25, "fetch": 0.4, "verify": 0.25, "publish": 0.1}


@dataclass
class Month:
    """What happens to a drill in one month; as it stands here, nothing does."""

    times: float = 1.0
    """Factor on every time and cost."""
    sigma: float = SIGMA
    checks: dict[str, tuple[Verdict, str]] = field(default_factory=dict)
    """Checks that are not PASS, with what they found."""
    errors: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    not_tested: list[str] = field(default_factory=list)
    manual_checks: list[str] = field(default_factory=list)
    failed_attempts: int = 0
    """Attempts that ended in ERROR before the one that counts."""
    missed: bool = False
    killed: bool = False
    damaged_record: bool = False
    rpo_seconds: float = 0.0
    duration_seconds: float = 600.0
    data_bytes: int = _DATA_BYTES
    disk_free_bytes: int = 5 * room_for(_DATA_BYTES)
    engine_version: str = "tar 1.34"

    @property
    def automated_verdict(self) -> Verdict:
        unsealed = any(message.startswith("not sealed") for message in self.messages)
        return worst(
            [
                Verdict.PASS,
                *(verdict for verdict, _ in self.checks.values()),
                *([Verdict.ERROR] if self.errors else []),
                *([Verdict.UNVERIFIED] if unsealed else []),
            ]
        )

    @property
    def verdict(self) -> Verdict:
        waits = [Verdict.UNVERIFIED] if self.manual_checks else []
        return worst([self.automated_verdict, *waits])

    @property
    def proven(self) -> bool:
        bad = self.missed or self.killed or self.damaged_record
        return not bad and self.verdict is Verdict.PASS


def label(position: int) -> str:
    """The month so many months after the first, `YYYY-MM-01`."""
    return (pd.Period(FIRST_MONTH, "M") + position).strftime("%Y-%m-01")


def make_plan(home: Path, targets: Mapping[str, Mapping[str, Any]]) -> Plan:
    """A plan with one drill for each target, `corruption_recovery_<target>_tar`."""
    content = {
        "data_home": str(home),
        "targets": {
            name: {"dataset": {"size": "1MB"}, **settings} for name, settings in targets.items()
        },
        "test_framework": {
            "test_scenarios": {
                "data_recovery": {"scenarios": [{"name": "corruption_recovery"}]},
            },
            "test_execution": {"execution_controls": {"timeout": TIMEOUT_SECONDS}},
        },
    }
    return parse_plan(yaml.safe_dump(content), name="recovery.yaml", folder=home)


def leave_month(spec: DrillSpec, position: int, month: Month, rng: np.random.Generator) -> None:
    """Write the records of one drill's month. Always draws as many numbers."""
    draws = np.exp(month.sigma * rng.standard_normal(len(_PHASES) + 6)) * month.times
    if month.missed:
        return
    failed = Month(errors=["EngineError"], messages=["the repository is locked"])
    for attempt in range(month.failed_attempts):
        _leave(spec, position, failed, attempt, draws)
    folder = _leave(spec, position, month, month.failed_attempts, draws)
    if month.killed:
        (folder / FILE_NAME).unlink()
    elif month.damaged_record:
        text = (folder / FILE_NAME).read_text(encoding="utf-8")
        (folder / FILE_NAME).write_text(text[: len(text) // 2], encoding="utf-8")


def _leave(
    spec: DrillSpec, position: int, month: Month, attempt: int, draws: "np.ndarray[Any, Any]"
) -> Path:
    name, run_id = label(position), f"run-{position:02}-{attempt}"
    folder = folder_of(spec.plan.data_home, spec.name, name, run_id)
    folder.mkdir(parents=True)
    started_at = datetime.fromisoformat(f"{name}T03:{10 * attempt:02}:00").replace(tzinfo=UTC)
    checks = [
        {
            "name": check,
            "verdict": month.checks.get(check, (Verdict.PASS, ""))[0],
            "expected": "130 entries as they were",
            "found": month.checks.get(check, (Verdict.PASS, "130 of 130 entries"))[1],
        }
        for check in CHECKS
    ]
    identity = {
        "drill": spec.name,
        "scenario": spec.scenario.name,
        "target": spec.target_name,
        "engine": spec.engine,
        "month": name,
        "run_id": run_id,
    }
    failed = [check for check, (verdict, _) in month.checks.items() if verdict is not Verdict.PASS]
    content: dict[str, object] = {
        **identity,
        "started_at": started_at.isoformat(),
        "ended_at": (started_at + timedelta(seconds=month.duration_seconds)).isoformat(),
        "plan": {},
        "initiator": "simulation",
        "operator": "simulation",
        "code": {},
        "verdict": month.verdict,
        "automated_verdict": month.automated_verdict,
        "manual_verification": {"required_checks": month.manual_checks, "documentation": []},
        "snapshots": [],
        "faults": [],
        "sampling": [],
        "isolation": {},
        "checks": [] if month.errors else checks,
        "canaries": [],
        "errors": month.errors,
        "messages": month.messages,
        "not_tested": month.not_tested,
        "objectives": spec.target.objectives.model_dump(),
        "metrics": {
            **identity,
            "started_at": str(started_at),
            "verdict": str(month.verdict),
            "data_bytes": month.data_bytes,
            "success": month.verdict is Verdict.PASS,
            "failure_count": len(failed) + len(month.errors),
            "error_types": ", ".join([*failed, *month.errors]),
            **_measured(month, draws),
        },
        "system_snapshot": {
            "taken_at": started_at.isoformat(),
            "host": "drills-1",
            "system": "Linux",
            "python": "3.11",
            "user_id": 0,
            "libraries": {},
            "engine": spec.engine,
            "engine_version": month.engine_version,
            "processors": 2,
            "capabilities": {},
            "load_1m": 0.5,
            "memory_available_bytes": 4_000_000_000,
            "disk_free_bytes": month.disk_free_bytes,
        },
    }
    write_record(folder, json.loads(json.dumps(content, default=str)))
    return folder


def _measured(month: Month, draws: "np.ndarray[Any, Any]") -> dict[str, object]:
    phases = {
        f"{name}_seconds": TYPICAL_SECONDS * share * draw
        for (name, share), draw in zip(_PHASES.items(), draws, strict=False)
    }
    cost = draws[len(_PHASES) :]
    recovered = not month.errors
    seconds = sum(phases.values())
    return {
        "files": 88 if recovered else 0,
        "bytes": 1_000_000 if recovered else 0,
        "rpo_seconds": month.rpo_seconds if recovered else None,
        "lost_entries": 0 if recovered else None,
        "recovery_seconds": seconds if recovered else None,
        **phases,
        "resolution_seconds": seconds + TYPICAL_SECONDS * cost[0] if recovered else None,
        "cpu_seconds": 50 * cost[1],
        "peak_memory_bytes": 300_000_000 * cost[2],
        "read_operations": 10_000 * cost[3],
        "write_operations": 10_000 * cost[4],
        "read_bytes": 1e9 * cost[5],
        "write_bytes": 1e9 * cost[5],
    }
