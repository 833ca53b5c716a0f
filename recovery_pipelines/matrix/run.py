"""Carrying out a detection matrix, and where its rows are kept."""

import hashlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.files import replacing
from recovery_pipelines.matrix.bench import Bench, open_bench
from recovery_pipelines.matrix.databases import open_database_bench
from recovery_pipelines.matrix.trials import as_table, clean_trials, copy_trials, repository_trials
from recovery_pipelines.plan import Plan
from recovery_pipelines.plan.databases import KIND_OF
from recovery_pipelines.plan.matrix import DetectionMatrix
from recovery_pipelines.sandbox import exclusive

log = logging.getLogger("recovery_pipelines")


def carry_out_matrix(plan: Plan, wanted: DetectionMatrix, month: str) -> tuple[Path, pd.DataFrame]:
    """All trials of a month, one row each, and the Parquet file where they are kept.

    Waits for a drill that is running, whose times it would spoil. Another month plants its faults
    elsewhere, in other data.
    """
    timeout_seconds = plan.test_framework.test_execution.execution_controls.timeout

    def wait(holder: str) -> None:
        log.info("the detection matrix waits for %s to end", holder)

    with exclusive(plan.data_home, "drills", timeout_seconds, on_wait=wait):
        tables = [
            trials(plan.data_home, engine, _seed(month, number), int(wanted.size))
            for engine in wanted.engines
            for number in range(wanted.trials)
        ]
    rows = pd.concat(tables, ignore_index=True)
    path = _path(plan.data_home, month)
    keep_rows(path, rows)
    return path, rows


def trials(
    home: Path,
    engine: str,
    seed: int,
    size_bytes: int,
    progress: Callable[[str], None] = log.info,
    faults: bool = True,
) -> pd.DataFrame:
    """Every kind of fault once, in a repository made for it, and the clean trials beside them;
    without `faults` only these."""
    opened: Callable[..., AbstractContextManager[Bench]] = (
        open_database_bench if engine in KIND_OF else open_bench
    )
    with opened(home, engine, seed, size_bytes) as bench:
        version = bench.engine.version()
        rows = list(clean_trials(bench))
        if faults:
            rows += [*repository_trials(bench), *copy_trials(bench)]
    progress(f"detection matrix: {engine}, seed {seed}: {len(rows)} trials")
    return as_table(rows).assign(version=version)


def keep_rows(path: Path, rows: pd.DataFrame) -> None:
    """Write rows of trials, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, many_writers=True) as unfinished:
        rows.to_parquet(unfinished, index=False)


def newest_rows(home: Path, month: str) -> tuple[str, pd.DataFrame]:
    """The newest matrix up to `month`, and its month. Raises RecoveryError if there is none."""
    known = sorted(path.stem for path in _path(home, month).parent.glob("????-??-01.parquet"))
    until = [each for each in known if each <= month]
    if not until:
        raise RecoveryError(
            "no detection matrix has been measured: launch the job detection_matrix "
            "(its settings are the plan's `detection_matrix`)"
        )
    return until[-1], pd.read_parquet(_path(home, until[-1]))


def _path(home: Path, month: str) -> Path:
    return home / "detection_matrix" / f"{month}.parquet"


def _seed(month: str, number: int) -> int:
    digest = hashlib.sha256(f"detection_matrix|{month}|{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
