"""The metrics row of a drill: the columns that the plan's `reporting.metrics.collection` names."""

from time import monotonic

from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.verdict import Verdict

RECOVERY_PHASES = ("detect", "fetch", "verify", "publish")


def metrics_row(run: DrillRun) -> dict[str, object]:
    """One row: what identifies the drill, its verdict, and the collected metrics.

    Times are seconds on the monotonic clock. `recovery_seconds` runs from the detection of the
    damage to the publication of verified data; it and `rpo_seconds` are None where nothing was
    recovered. `rpo_seconds` is measured from the recovered data: from the first write that it
    lacks to the damage, and 0 where it lacks none.
    """
    columns: dict[str, dict[str, object]] = {
        "recovery_time": _recovery_time(run),
        "success_rate": {"success": run.verdict is Verdict.PASS},
        **_resources(run),
        **_errors(run),
    }
    wanted = run.spec.plan.test_framework.reporting.metrics.collection.names
    row: dict[str, object] = {
        "drill": run.spec.name,
        "scenario": run.spec.scenario.name,
        "target": run.spec.target_name,
        "engine": run.spec.engine,
        "month": run.month,
        "run_id": run.run_id,
        "started_at": run.started_at,
        "verdict": str(run.verdict),
        "files": run.recovered_files,
        "bytes": run.recovered_bytes,
        "data_bytes": run.data_bytes,
        "rpo_seconds": _rpo_seconds(run),
        "lost_entries": run.lost_entries if run.published else None,
    }
    for name, values in columns.items():
        if name in wanted:
            row |= values
    return row | run.measured


def _recovery_time(run: DrillRun) -> dict[str, object]:
    phases = {f"{name}_seconds": run.phases.get(name) for name in RECOVERY_PHASES}
    seconds = sum(run.phases.get(name, 0.0) for name in RECOVERY_PHASES)
    return {"recovery_seconds": seconds if run.published else None, **phases}


def _rpo_seconds(run: DrillRun) -> float | None:
    if not run.published or run.damaged_at is None:
        return None
    if run.lost_entries and run.first_lost_write_at is not None:
        return run.damaged_at - run.first_lost_write_at
    return 0.0


def _resources(run: DrillRun) -> dict[str, dict[str, object]]:
    use = run.meter.use()
    return {
        "cpu_usage": {"cpu_seconds": use.cpu_seconds},
        "memory_usage": {"peak_memory_bytes": use.peak_memory_bytes},
        "io_operations": {
            "read_operations": use.read_operations,
            "write_operations": use.write_operations,
            "read_bytes": use.read_bytes,
            "write_bytes": use.write_bytes,
        },
    }


def _errors(run: DrillRun) -> dict[str, dict[str, object]]:
    failed = [check.name for check in run.checks if check.verdict is not Verdict.PASS]
    resolved = run.published and run.damaged_at is not None and not failed and not run.errors
    seconds = None
    if resolved and run.damaged_at is not None:
        seconds = monotonic() - run.damaged_at - run.repeats_seconds
    return {
        "failure_count": {"failure_count": len(failed) + len(run.errors)},
        "error_types": {"error_types": ", ".join([*failed, *run.errors])},
        "resolution_time": {"resolution_seconds": seconds},
    }
