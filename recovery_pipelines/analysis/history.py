"""The drills that a data home has seen: every attempt, and the one that counts for each month."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from recovery_pipelines.drills.record import read_record
from recovery_pipelines.errors import EvidenceError, MissingRecord, RecoveryError
from recovery_pipelines.evidence.signoff import standings
from recovery_pipelines.files import replacing
from recovery_pipelines.sandbox import is_alive
from recovery_pipelines.verdict import Verdict

log = logging.getLogger("recovery_pipelines")

METRICS = (
    "recovery_seconds",
    "detect_seconds",
    "fetch_seconds",
    "verify_seconds",
    "publish_seconds",
    "resolution_seconds",
    "cpu_seconds",
    "peak_memory_bytes",
    "read_operations",
    "write_operations",
    "read_bytes",
    "write_bytes",
)
"""Columns of the metrics row that are compared over the months; more is worse in each."""

_ALWAYS = ("drill", "month", "run_id", "started_at", "verdict", "problem", "folder")
_NO_TIMES = (Verdict.ERROR, Verdict.FAIL, Verdict.INVALID)


def load_history(home: Path) -> pd.DataFrame:
    """One row for each attempt below `home`/drills, by drill, month and start.

    Columns: drill, month (`YYYY-MM-01`), run_id, started_at (UTC), verdict, problem, folder, and
    those of the metrics row. The verdict of a sealed drill is the effective one: as it was signed,
    with the sign-offs since. An attempt whose record is damaged or absent has the verdict ERROR and
    says why in `problem`; only a drill that is running now is left out.
    """
    sealed = _sealed_verdicts(home)
    rows = [
        row | _effective(row, sealed)
        for drill in sorted((home / "drills").glob("*"))
        for row in _attempts(home, drill.name, sorted(drill.glob("????-??-01/*")))
    ]
    others = (name for row in rows for name in row if name not in METRICS)
    history = pd.DataFrame(rows, columns=list(dict.fromkeys([*_ALWAYS, *METRICS, *others])))
    history["started_at"] = pd.to_datetime(history["started_at"], utc=True)
    history[list(METRICS)] = history[list(METRICS)].apply(pd.to_numeric, errors="coerce")
    return history.sort_values(["drill", "month", "started_at", "run_id"], ignore_index=True)


def monthly(history: pd.DataFrame) -> pd.DataFrame:
    """The drill of each month: the last attempt, with the number of `attempts` and `proven`.

    `proven` is true if it passed and no attempt of the month was a finding (FAIL, INVALID): a
    second try does not undo what the first one found. Drills that ended in ERROR or with a finding
    did not do the same work, so they keep no metrics.
    """
    months = history.groupby(["drill", "month"], sort=True)
    last = months.tail(1).set_index(["drill", "month"])
    last["attempts"] = months.size()
    found = history["verdict"].isin([str(v) for v in Verdict if v.is_finding])
    findings = found.groupby([history["drill"], history["month"]]).any()
    last["proven"] = (last["verdict"] == str(Verdict.PASS)) & ~findings
    last.loc[last["verdict"].isin([str(v) for v in _NO_TIMES]), list(METRICS)] = float("nan")
    return last.reset_index()


def missed_months(history: pd.DataFrame) -> pd.DataFrame:
    """Drill and month of each gap: months without any attempt since the drill's first."""
    if history.empty:
        return pd.DataFrame(columns=["drill", "month"])
    newest = history["month"].max()
    gaps = [
        {"drill": drill, "month": month}
        for drill, group in history.groupby("drill")
        for month in pd.date_range(group["month"].min(), newest, freq="MS").strftime("%Y-%m-%d")
        if month not in set(group["month"])
    ]
    return pd.DataFrame(gaps, columns=["drill", "month"])


def keep_table(home: Path, name: str, table: pd.DataFrame) -> Path:
    """Keep a table of the analysis as `home`/analysis/`name`.parquet, whole or not at all."""
    path = _table_path(home, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, many_writers=True) as unfinished:
        table.to_parquet(unfinished, index=False)
    return path


def read_table(home: Path, name: str) -> pd.DataFrame:
    """A table that `keep_table` wrote. Raises RecoveryError if there is none."""
    path = _table_path(home, name)
    if not path.is_file():
        raise RecoveryError(f"{path} is not there: materialize {name} first")
    return pd.read_parquet(path)


def _table_path(home: Path, name: str) -> Path:
    return home / "analysis" / f"{name}.parquet"


def _sealed_verdicts(home: Path) -> dict[str, Verdict]:
    """Effective verdict by folder; none from a broken chain, which gives no drill a better one."""
    try:
        return {str(home / str(s.drill.folder)): s.verdict for s in standings(home)}
    except (OSError, EvidenceError) as error:
        log.warning("the evidence cannot be read, so sign-offs do not count: %s", error)
        return {}


def _effective(row: dict[str, object], sealed: dict[str, Verdict]) -> dict[str, object]:
    verdict = sealed.get(str(row["folder"]))
    if verdict is None or "problem" in row:
        return {}
    success = {"success": verdict is Verdict.PASS} if "success" in row else {}
    return {"verdict": str(verdict), **success}


def _attempts(home: Path, drill: str, folders: list[Path]) -> list[dict[str, object]]:
    rows = [_attempt(drill, folder) for folder in folders if folder.is_dir()]
    unrecorded = [row for row in rows if not (Path(str(row["folder"])) / "record.json").exists()]
    if unrecorded and is_alive(home, drill):
        newest = max(unrecorded, key=lambda row: str(row["started_at"]))
        rows.remove(newest)
    return rows


def _attempt(drill: str, folder: Path) -> dict[str, object]:
    row: dict[str, object] = {
        "drill": drill,
        "month": folder.parent.name,
        "run_id": folder.name,
        "folder": str(folder),
    }
    try:
        record = read_record(folder)
        started_at = datetime.fromisoformat(record.metrics["started_at"])
        if (record.drill, record.month) != (drill, folder.parent.name):
            raise ValueError(f"it is the record of {record.drill} {record.month}")
        return {**record.metrics, **row, "started_at": started_at, "verdict": str(record.verdict)}
    except MissingRecord:
        problem = "no record: the drill was killed"
    except (RecoveryError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"the record is damaged: {type(error).__name__}: {error}"
    written_at = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
    return {**row, "started_at": written_at, "verdict": str(Verdict.ERROR), "problem": problem}
