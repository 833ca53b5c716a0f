"""Reading what was measured, as pandas tables."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pandas as pd

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.monitoring.sketch import Sketch
from recovery_pipelines.monitoring.store import FOLDER, connect

_SAMPLES = """
SELECT tick.id AS tick, tick.at, tick.section, series.metric, series.entity,
       sample.value, sample.sketch
FROM tick JOIN sample ON sample.tick = tick.id JOIN series ON series.id = sample.series
WHERE tick.at >= ? AND tick.at < ?
"""
_COLUMNS = ("tick", "at", "section", "metric", "entity", "value", "sketch")


def raw_path(home: Path, day: date) -> Path:
    """Where the samples of a finished day lie."""
    return home / FOLDER / "raw" / f"{day}.parquet"


def bounds(day: date) -> tuple[float, float]:
    """Begin and end of a UTC day in seconds since 1970."""
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return begin.timestamp(), (begin + timedelta(days=1)).timestamp()


def day_of(at: float) -> date:
    return datetime.fromtimestamp(at, UTC).date()


def read_day(home: Path, day: date) -> pd.DataFrame:
    """Every sample of one UTC day, from its Parquet file and the hot store, none of them twice.

    Columns: tick, at (seconds since 1970), section, metric, entity, value (NaN: missing),
    sketch (JSON text of bucket to count, or None).
    """
    with connect(home) as connection:
        frame = pd.read_sql_query(_SAMPLES, connection, params=bounds(day))
    path = raw_path(home, day)
    if path.exists():
        kept = pd.read_parquet(path)
        frame = pd.concat([part for part in (kept, frame) if len(part)] or [kept])
        frame = frame.drop_duplicates(["tick", "metric", "entity"])
    frame["value"] = frame["value"].astype("float64")
    return frame[list(_COLUMNS)].sort_values(["metric", "entity", "at"], ignore_index=True)


def samples(home: Path, since: float, until: float) -> pd.DataFrame:
    """Samples measured in [since, until), seconds since 1970; as long as raw data is kept.

    Columns: tick, at (UTC), section, metric, entity, value (NaN: missing), sketch (dict or None).
    """
    days, day = [], day_of(since)
    while bounds(day)[0] < until:
        days.append(read_day(home, day))
        day += timedelta(days=1)
    frame = pd.concat([found for found in days if len(found)] or days[:1], ignore_index=True)
    return _typed(frame[(frame["at"] >= since) & (frame["at"] < until)].copy())


def ticks(home: Path, since: float = 0.0) -> pd.DataFrame:
    """Ticks of the hot store: id, section, slot and at (seconds since 1970), seconds."""
    with connect(home) as connection:
        query = "SELECT * FROM tick WHERE at >= ? ORDER BY id"
        return pd.read_sql_query(query, connection, params=(since,))


def newest_ticks(home: Path) -> dict[str, float]:
    """When each section was measured last, in seconds since 1970."""
    with connect(home) as connection:
        return dict(connection.execute("SELECT section, max(at) FROM tick GROUP BY section"))


def newest_samples(home: Path) -> pd.DataFrame:
    """The newest tick of each section, as `samples`."""
    query = _SAMPLES + " AND tick.id IN (SELECT max(id) FROM tick GROUP BY section)"
    with connect(home) as connection:
        return _typed(pd.read_sql_query(query, connection, params=(0.0, float("inf"))))


def newest_outcomes(home: Path, looks: int = 1) -> pd.DataFrame:
    """The last `looks` outcomes of each health check, oldest first.

    Columns: at (UTC), section, name, state, seconds, detail.
    """
    query = """
        SELECT at, section, name, state, seconds, detail FROM (
            SELECT *, row_number() OVER (PARTITION BY section, name ORDER BY tick DESC) AS age
            FROM outcome
        ) WHERE age <= ? ORDER BY section, name, age DESC
    """
    with connect(home) as connection:
        frame = pd.read_sql_query(query, connection, params=(looks,))
    frame["at"] = pd.to_datetime(frame["at"], unit="s", utc=True)
    return frame


def sketch_from(text: object) -> Sketch | None:
    """A sketch from its JSON text. RecoveryError if it is none."""
    if not isinstance(text, str):
        return None
    try:
        return {int(key): float(count) for key, count in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RecoveryError(
            f"the measurements hold no sketch but {text[:50]!r} ({type(error).__name__})"
        ) from None


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    frame["at"] = pd.to_datetime(frame["at"], unit="s", utc=True)
    frame["value"] = frame["value"].astype("float64")
    frame["sketch"] = frame["sketch"].map(sketch_from)
    return frame
