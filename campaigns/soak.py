"""Ten years of monthly drills in one process: memory, descriptors and disk must not grow.

Each month is one run of a real drill through Dagster, on the month's own date, then the retention
that the plan asks for. Dagster's own history and the chain of evidence are measured apart: both
are kept.
"""

import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import dagster as dg
import psutil
import time_machine
import yaml

from campaigns.history import plan_text
from recovery_pipelines.build import build_definitions
from recovery_pipelines.drills.record import result_folders
from recovery_pipelines.evidence.clock import Clock
from recovery_pipelines.evidence.retention import prune
from recovery_pipelines.notifications.outbox import forget
from recovery_pipelines.plan import load_plan

Row = dict[str, Any]
START = datetime(2027, 1, 1, 3, tzinfo=UTC)
"""After the present, as the backup tool goes by the real clock."""
DRILL = "corruption_recovery_tar"
KEPT_DAYS = 365.0
KEPT = f"{KEPT_DAYS:.0f}d"
_CRITERIA = {"data_integrity": ["all_files_recovered"]}
_MOST_GROWTH = 1.05
"""From the third quarter of the months to the last: memory, and disk per month that is kept."""


def soak(home: Path, seed: int, months: int) -> Iterator[Row]:
    """One row a month: what it took then, and `wrong`, what must not be."""
    home.mkdir(parents=True, exist_ok=True)
    plan_path = home / "recovery.yaml"
    content = yaml.safe_load(plan_text(home / "data", "tar", seed, **_CRITERIA))
    results = content["test_framework"]["reporting"]["documentation"]["test_results"]
    results["retention"] = KEPT
    content["evidence"] = {"retention": KEPT}
    plan_path.write_text(yaml.safe_dump(content), encoding="utf-8")
    plan = load_plan(plan_path)
    (home / "dagster").mkdir(exist_ok=True)
    evidence = home / "data" / "evidence"
    rows: list[Row] = []
    with dg.DagsterInstance.local_temp(str(home / "dagster")) as instance:
        job = build_definitions(plan_path).get_job_def(DRILL)
        for number in range(months):
            month = f"{START.year + number // 12}-{number % 12 + 1:02}-01"
            at = datetime.fromisoformat(month).replace(tzinfo=UTC) + timedelta(days=1, hours=3)
            began = time.monotonic()
            with time_machine.travel(at, tick=True):
                done = job.execute_in_process(
                    instance=instance, partition_key=month, raise_on_error=False
                )
                since_boot = (at - START).total_seconds() + 1
                removal = prune(plan, now=Clock("soak", since_boot, datetime.now(UTC)))
                forget(plan.data_home, KEPT_DAYS)
            rows.append(
                {
                    "month": month,
                    "rss_bytes": psutil.Process().memory_info().rss,
                    "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
                    "data_bytes": _size_bytes(home / "data") - _size_bytes(evidence),
                    "evidence_bytes": _size_bytes(evidence),
                    "dagster_bytes": _size_bytes(home / "dagster"),
                    "results": len(result_folders(plan.data_home)),
                    "removed": removal.files,
                    "seconds": time.monotonic() - began,
                    "wrong": "" if done.success else "the drill did not pass",
                }
            )
            if removal.refused:
                rows[-1]["wrong"] += f" retention: {removal.refused}"
            if number == months - 1:
                rows[-1]["wrong"] += growth(rows)
            yield rows[-1]


def growth(rows: Sequence[Row]) -> str:
    """What grew between the third and the fourth quarter of the months; empty: nothing."""
    quarter = len(rows) // 4
    before, after = rows[2 * quarter : 3 * quarter], rows[3 * quarter :]
    grown = []
    for name in ("rss_bytes", "descriptors", "data_bytes"):
        early, late = (median(row[name] for row in part) for part in (before, after))
        if late > early * _MOST_GROWTH:
            grown.append(f"{name} grew from {early:,.0f} to {late:,.0f}")
    return "; ".join(grown)


def _size_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
