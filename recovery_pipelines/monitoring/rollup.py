"""Finished days: raw samples as Parquet, 5-minute aggregates, and what is thrown away when.

`home`/monitoring/raw/<day>.parquet holds every sample of a day (columns of `history.read_day`),
`aggregated/<day>.parquet` the aggregates; when a month's raw data is gone, its aggregates become
one file, `aggregated/<month>.parquet`. Rows leave the hot store only when both files are on the
disk and have been read back.
"""

import calendar
import json
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.files import replacing, sync
from recovery_pipelines.monitoring.history import bounds, day_of, raw_path, read_day, sketch_from
from recovery_pipelines.monitoring.sketch import (
    RELATIVE_ERROR,
    Sketch,
    bucket,
    quantile,
    value_of,
)
from recovery_pipelines.monitoring.store import FOLDER, connect
from recovery_pipelines.plan.monitoring import Retention

STEP_SECONDS = 300
_SETTLED_SECONDS = 600
"""How long after midnight a day is taken to be complete: no look takes that long."""
_CLOCK_JUMP_SECONDS = 3600.0
"""Smaller corrections of the clock do not endanger whole days."""
_DAILY, _MONTHLY = "????-??-??.parquet", "????-??.parquet"
_DAYS_KEY = b"days"
_MONTH_DAYS = 31
"""Aggregates can stay so much longer than the plan says: a month leaves as a whole."""
_KEY = ["metric", "entity", "at"]
_SCHEMA = pa.schema(
    [
        ("metric", pa.string()),
        ("entity", pa.string()),
        ("at", pa.float64()),
        ("count", pa.float64()),
        ("missing", pa.int64()),
        ("sum", pa.float64()),
        ("min", pa.float64()),
        ("max", pa.float64()),
        ("buckets", pa.list_(pa.int16())),
        ("counts", pa.list_(pa.float64())),
    ]
)


def aggregated_path(home: Path, day: date) -> Path:
    return home / FOLDER / "aggregated" / f"{day}.parquet"


def finished_days(home: Path, now: float) -> list[date]:
    """Days of the hot store that are over and can be rolled up, oldest first."""
    with connect(home) as connection:
        found = connection.execute("SELECT DISTINCT CAST(at / 86400 AS INTEGER) FROM tick")
        days = sorted(day_of(number * 86400.0) for (number,) in found)
    return [day for day in days if bounds(day)[1] + _SETTLED_SECONDS <= now]


def roll_up(home: Path, day: date, now: float) -> pd.DataFrame:
    """Write a finished day's two files, and take it out of the hot store. May be repeated.

    Returns the aggregates: metric, entity, at (begin of the 5 minutes, seconds since 1970), count,
    missing, sum, min, max (NaN if nothing was there), buckets, counts. Of a distribution, count
    and sum are those of the requests, and min and max right within the sketch's error.
    Raises RecoveryError.
    """
    if bounds(day)[1] + _SETTLED_SECONDS > now:
        raise RecoveryError(f"{day} is not over yet: roll it up 10 minutes after midnight UTC")
    raw = read_day(home, day)
    path = aggregated_path(home, day)
    if not len(raw):
        raise RecoveryError(f"nothing was measured on {day}: there is nothing to roll up")
    if ("aggregated", day) in kept_days(home) and not raw_path(home, day).exists():
        raise RecoveryError(
            f"{day} was rolled up and its raw data is gone, yet there are new samples of it: "
            "was the clock set back? The aggregates stay as they are"
        )
    table = pa.Table.from_pandas(raw, preserve_index=False)
    _write(table, raw_path(home, day))
    _write(aggregate(raw), path)
    if not pq.read_table(raw_path(home, day)).equals(table):
        raise RecoveryError(f"{raw_path(home, day)} reads back differently: is the disk failing?")
    problems = differences(home, day)
    if problems:
        raise RecoveryError(f"{path} does not match the raw data: {problems[0]}")
    with connect(home) as connection, connection as transaction:
        numbers = [(int(tick),) for tick in raw["tick"].unique()]
        transaction.executemany("DELETE FROM sample WHERE tick = ?", numbers)
        transaction.executemany("DELETE FROM tick WHERE id = ?", numbers)
        # Looks that had nothing to measure.
        transaction.execute(
            "DELETE FROM tick WHERE at >= ? AND at < ? "
            "AND NOT EXISTS (SELECT 1 FROM sample WHERE tick = tick.id)",
            bounds(day),
        )
    return _frame(pq.read_table(path))


def aggregate(raw: pd.DataFrame) -> pa.Table:
    """5-minute aggregates of the samples of `history.read_day`."""
    frame = raw.assign(at=raw["at"] // STEP_SECONDS * STEP_SECONDS)
    parts = frame["sketch"].map(sketch_from)
    is_plain = parts.isna() & frame["value"].notna()
    plain = frame[is_plain]
    plain = plain.assign(bucket=_buckets(plain["value"].to_numpy()), weight=1.0)
    spread = [
        (*key, mean, number, weight)
        for *key, mean, sketch in zip(
            *(frame.loc[parts.notna(), name] for name in (*_KEY, "value")),
            parts[parts.notna()],
            strict=True,
        )
        for number, weight in sketch.items()
    ]
    columns = [*_KEY, "value", "bucket", "weight"]
    spreads = pd.DataFrame(spread, columns=columns)
    spreads["value"] = spreads["value"].fillna(np.nan).astype("float64")
    # Every part of a distribution counts with its mean, so that the sum is exact.
    total = pd.concat([part for part in (plain[columns], spreads) if len(part)] or [spreads])
    total["sum"] = total["value"] * total["weight"]
    total["shown"] = total["value"]
    of_sketch = total.index.size - len(spreads)
    if len(spreads):
        shown = total["shown"].to_numpy().copy()
        shown[of_sketch:] = [value_of(int(number)) for number in spreads["bucket"]]
        total["shown"] = shown
    grouped = total.groupby(_KEY, sort=True).agg(
        count=("weight", "sum"), sum=("sum", "sum"), min=("shown", "min"), max=("shown", "max")
    )
    by_bucket = total.groupby([*_KEY, "bucket"], sort=True)["weight"].sum().reset_index("bucket")
    sketches = by_bucket.groupby(level=_KEY, sort=True).agg(
        buckets=("bucket", list), counts=("weight", list)
    )
    missing = (
        (frame["value"].isna() & parts.isna())
        .groupby([frame[name] for name in _KEY])
        .sum()
        .rename("missing")
    )
    rows = missing.to_frame().join(grouped).join(sketches).reset_index()
    rows["count"] = rows["count"].fillna(0.0)
    for name in ("buckets", "counts"):
        rows[name] = rows[name].map(lambda cell: cell if isinstance(cell, list) else [])
    return pa.Table.from_pandas(rows[_SCHEMA.names], schema=_SCHEMA, preserve_index=False)


def _buckets(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> list[int]:
    return [bucket(float(value)) for value in values]


def differences(home: Path, day: date) -> list[str]:
    """Where a day's aggregates do not follow from its raw samples; computed another way."""
    raw = pd.read_parquet(raw_path(home, day))
    kept = _frame(pq.read_table(aggregated_path(home, day)))
    kept_by_key: dict[Hashable, Any] = {
        (row.metric, row.entity, row.at): row for row in kept.itertuples(index=False)
    }
    found = []
    steps = raw["at"] // STEP_SECONDS * STEP_SECONDS
    for key, group in raw.groupby([raw["metric"], raw["entity"], steps]):
        row = kept_by_key.pop(key, None)
        if row is None:
            found.append(f"{key}: not there")
            continue
        sketches = [sketch_from(text) for text in group["sketch"].dropna()]
        plain = group.loc[group["sketch"].isna(), "value"].dropna().sort_values().to_numpy()
        count = len(plain) + sum(sum(sketch.values()) for sketch in sketches if sketch)
        weights = [sum(sketch.values()) for sketch in sketches if sketch]
        means = group.loc[group["sketch"].notna(), "value"]
        total = plain.sum() + sum(
            mean * weight for mean, weight in zip(means, weights, strict=True)
        )
        sketch = dict(zip(row.buckets, row.counts, strict=True))
        wrong = {
            "missing": len(group) - len(plain) - len(sketches) != row.missing,
            "count": not np.isclose(count, row.count),
            "count of the sketch": not np.isclose(count, sum(sketch.values())),
            "sum": count > 0 and not np.isclose(total, row.sum, equal_nan=True),
        }
        if len(plain) and not sketches:
            middle = plain[int(0.5 * (len(plain) - 1))]
            wrong |= {
                "min": plain[0] != row.min,
                "max": plain[-1] != row.max,
                "median": not np.isclose(
                    quantile(sketch, 0.5) or 0.0, middle, rtol=1.01 * RELATIVE_ERROR, atol=1e-60
                ),
            }
        found += [f"{key}: {name}" for name, is_wrong in wrong.items() if is_wrong]
    return [*found, *(f"{key}: not in the raw data" for key in kept_by_key)]


def _write(table: pa.Table, path: Path) -> None:
    """Write a file whole or not at all, and through to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, many_writers=True) as unfinished:
        pq.write_table(table, unfinished, compression="zstd")
        sync(unfinished)
    sync(path.parent)


# --- reading aggregates -------------------------------------------------------------------


def aggregates(home: Path, metric: str, since: date, until: date) -> pd.DataFrame:
    """Aggregates of one metric, days since ≤ day ≤ until, by entity and time; see `roll_up`."""
    found = _read(home, since, until, ds.field("metric") == metric)
    return found.sort_values(["entity", "at"], ignore_index=True)


def mean_values(home: Path, since: date, until: date) -> pd.DataFrame:
    """Every series' 5-minute means of these days; see `with_means`."""
    return with_means(_read(home, since, until, None, ["metric", "entity", "at", "count", "sum"]))


def with_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Aggregates as metric, entity, at (seconds since 1970), mean (NaN: missing)."""
    mean = rows["sum"] / rows["count"].where(rows["count"] > 0)
    return rows[["metric", "entity", "at"]].assign(mean=mean)


def _read(
    home: Path,
    since: date,
    until: date,
    filtered: ds.Expression | None,
    columns: list[str] | None = None,
) -> pd.DataFrame:
    wanted = {since + timedelta(days=number) for number in range((until - since).days + 1)}
    paths = [str(path) for path, days in _aggregated_files(home) if wanted.intersection(days)]
    begin, end = bounds(since)[0], bounds(until)[1]
    in_time = (ds.field("at") >= begin) & (ds.field("at") < end)
    found = ds.dataset(paths, schema=_SCHEMA).to_table(
        columns=columns, filter=in_time if filtered is None else in_time & filtered
    )
    return _frame(found)


def _frame(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    return frame


def quantile_of(rows: pd.DataFrame, q: float) -> float | None:
    """The q-quantile over all rows of aggregates, within RELATIVE_ERROR."""
    return quantile(_merged(rows), q)


def _merged(rows: pd.DataFrame) -> Sketch:
    lists = [cell for cell in rows["buckets"] if len(cell)]
    if not lists:
        return {}
    numbers = np.concatenate(lists)
    weights = np.concatenate([cell for cell in rows["counts"] if len(cell)])
    unique, position = np.unique(numbers, return_inverse=True)
    return dict(zip(unique.tolist(), np.bincount(position, weights).tolist(), strict=True))


# --- retention ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Pruned:
    """What was thrown away, and why not more."""

    removed: list[str]
    stopped_by: str | None


def prune(home: Path, retention: Retention, now: float) -> Pruned:
    """Remove raw data and aggregates older than the plan keeps them.

    A day goes only if it is old by the calendar and as many newer days hold data: a clock that
    is wrong by years cannot make everything old at once. A clock that was set by more than an hour
    stops pruning until somebody says that it is right.
    """
    with connect(home) as connection:
        jumps = connection.execute(
            "SELECT at, seconds FROM clock_jump WHERE accepted_by IS NULL AND abs(seconds) > ?",
            (_CLOCK_JUMP_SECONDS,),
        ).fetchall()
    if jumps:
        at, seconds = jumps[-1]
        return Pruned(
            [],
            f"the clock was set by {seconds:+.0f} s on {day_of(at)}: if it is right now, "
            "`recovery monitor accept-clock --by NAME`",
        )
    today, removed = day_of(now), []
    files = {
        "raw": [(path, [_day(path)]) for path in (home / FOLDER / "raw").glob(_DAILY)],
        "aggregated": list(_aggregated_files(home)),
    }
    aggregated = {day for _, days in files["aggregated"] for day in days}
    for folder, kept in (("raw", retention.raw_data), ("aggregated", retention.aggregated)):
        every = sorted(day for _, days in files[folder] for day in days)
        for path, days in sorted(files[folder]):
            newer = sum(day > days[-1] for day in every)
            if not is_past(days[-1], today, kept, newer):
                continue
            if folder == "raw" and days[-1] not in aggregated:
                continue  # it would be lost without a trace
            path.unlink()
            removed.append(f"{folder}/{path.name}")
    with connect(home) as connection, connection as transaction:
        newest = transaction.execute("SELECT max(at) FROM outcome").fetchone()[0] or 0.0
        oldest = min(now, newest) - retention.raw_data.total_seconds()
        transaction.execute("DELETE FROM outcome WHERE at < ?", (oldest,))
    return Pruned(removed, None)


def compact(home: Path, now: float) -> list[str]:
    """Make one file of the aggregates of each past month whose raw data is gone; returns the
    months. May be repeated after it was broken off."""
    by_month: dict[str, list[date]] = {}
    for path in sorted((home / FOLDER / "aggregated").glob(_DAILY)):
        by_month.setdefault(path.stem[:7], []).append(_day(path))
    done = []
    for month, days in by_month.items():
        last = days[0].replace(day=calendar.monthrange(days[0].year, days[0].month)[1])
        has_raw = any(raw_path(home, day).exists() for day in days)
        if last < day_of(now) and not has_raw:
            _compact(home, home / FOLDER / "aggregated" / f"{month}.parquet")
            for day in days:
                aggregated_path(home, day).unlink()
            done.append(month)
    return done


def _compact(home: Path, path: Path) -> None:
    of_month = [
        (file, days) for file, days in _aggregated_files(home) if file.stem[:7] == path.stem
    ]
    table = ds.dataset([str(file) for file, _ in of_month], schema=_SCHEMA).to_table()
    table = table.sort_by([("metric", "ascending"), ("entity", "ascending"), ("at", "ascending")])
    days = [str(day) for _, days in of_month for day in days]
    table = table.replace_schema_metadata({_DAYS_KEY: json.dumps(sorted(days))})
    _write(table, path)
    if not pq.read_table(path).equals(table):
        raise RecoveryError(f"{path} reads back differently: is the disk failing?")


def _aggregated_files(home: Path) -> Iterator[tuple[Path, list[date]]]:
    """Every file that counts, and its days: those of a month's file are not read again."""
    folder, in_months = home / FOLDER / "aggregated", set()
    for path in sorted(folder.glob(_MONTHLY)):
        days = json.loads(pq.read_schema(path).metadata[_DAYS_KEY])
        yield path, [date.fromisoformat(day) for day in days]
        in_months.update(days)
    for path in sorted(folder.glob(_DAILY)):
        if path.stem not in in_months:
            yield path, [_day(path)]


def _day(path: Path) -> date:
    return date.fromisoformat(path.stem)


def kept_days(home: Path) -> set[tuple[str, date]]:
    """Every day that has raw data or aggregates, by folder."""
    raw = {("raw", _day(path)) for path in (home / FOLDER / "raw").glob(_DAILY)}
    return raw | {("aggregated", day) for _, days in _aggregated_files(home) for day in days}


def retention_problems(
    home: Path, retention: Retention, before: set[tuple[str, date]], now: float
) -> list[str]:
    """What was removed since `before` though the plan keeps it, and what is overdue."""
    after = kept_days(home)
    kept = {"raw": retention.raw_data, "aggregated": retention.aggregated}
    oldest = {folder: day_of(now) - days for folder, days in kept.items()}
    whole_months = {"raw": 0, "aggregated": _MONTH_DAYS}
    gone = sorted(before - after)
    early = [f"{folder}/{day} is gone too early" for folder, day in gone if day >= oldest[folder]]
    counts = {folder: sum(of == folder for of, _ in after) for folder in kept}
    overdue = [
        f"{folder}/{day} is kept too long"
        for folder, day in sorted(after)
        if day < oldest[folder] - timedelta(days=whole_months[folder])
        and counts[folder] > kept[folder].days + 1 + whole_months[folder]
    ]
    return early + overdue


def is_past(day: date, today: date, kept: timedelta, newer_days: int) -> bool:
    """Whether a day that ended may be removed: all of it is older than `kept`."""
    return day + timedelta(days=1) + kept <= today and newer_days >= kept.days


def accept_clock(home: Path, by: str) -> int:
    """Say that the clock is right as it is now; returns how many jumps that answers."""
    with connect(home) as connection, connection as transaction:
        return transaction.execute(
            "UPDATE clock_jump SET accepted_by = ? WHERE accepted_by IS NULL", (by,)
        ).rowcount
