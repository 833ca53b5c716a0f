"""The hot store: what was measured since the last rollup, in SQLite.

Every look of a collector (a tick) is one transaction, so a kill loses at most the tick that is
being written. Read it with pandas through `history`.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from recovery_pipelines.monitoring.sample import Outcome, Sample

FOLDER = "monitoring"
_BUSY_SECONDS = 10.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tick (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again, so that a day is never read twice
    section TEXT NOT NULL,
    slot REAL NOT NULL,                    -- when it was due, seconds since 1970 (UTC)
    at REAL NOT NULL,                      -- when it was measured
    seconds REAL NOT NULL                  -- how long that took
);
CREATE INDEX IF NOT EXISTS tick_at ON tick (section, at);
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY,
    metric TEXT NOT NULL,
    entity TEXT NOT NULL,
    UNIQUE (metric, entity)
);
CREATE TABLE IF NOT EXISTS sample (
    tick INTEGER NOT NULL,
    series INTEGER NOT NULL,
    value REAL,                            -- NULL: missing
    sketch TEXT,
    PRIMARY KEY (tick, series)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcome (
    tick INTEGER NOT NULL,
    at REAL NOT NULL,
    section TEXT NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    seconds REAL,
    detail TEXT NOT NULL,
    PRIMARY KEY (tick, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clock_jump (
    at REAL NOT NULL,
    seconds REAL NOT NULL,
    accepted_by TEXT
);
"""


@dataclass(frozen=True)
class Tick:
    """One look: when it was due, when it happened (seconds since 1970), how long it took."""

    section: str
    slot: float
    at: float
    seconds: float


def store_path(home: Path) -> Path:
    return home / FOLDER / "hot.sqlite"


@contextmanager
def connect(home: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the store of a data home, which is made if it is not there."""
    path = store_path(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
        yield connection


class Writer:
    """Appends ticks. One per thread: a SQLite connection belongs to the thread that made it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._series: dict[tuple[str, str], int] = {}

    def append(self, tick: Tick, samples: Iterable[Sample], outcomes: Iterable[Outcome]) -> None:
        """Store one tick, whole or not at all."""
        try:
            self._append(tick, samples, outcomes)
        except sqlite3.Error:
            self._series.clear()
            raise

    def _append(self, tick: Tick, samples: Iterable[Sample], outcomes: Iterable[Outcome]) -> None:
        with self._connection as transaction:
            cursor = transaction.execute(
                "INSERT INTO tick (section, slot, at, seconds) VALUES (?, ?, ?, ?)",
                (tick.section, tick.slot, tick.at, tick.seconds),
            )
            number = cursor.lastrowid
            transaction.executemany(
                "INSERT INTO sample VALUES (?, ?, ?, ?)",
                [
                    (
                        number,
                        self._series_of(sample),
                        sample.value,
                        None if sample.sketch is None else json.dumps(sample.sketch),
                    )
                    for sample in samples
                ],
            )
            transaction.executemany(
                "INSERT INTO outcome VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        number,
                        tick.at,
                        tick.section,
                        outcome.name,
                        outcome.state,
                        outcome.seconds,
                        outcome.detail,
                    )
                    for outcome in outcomes
                ],
            )

    def note_clock_jump(self, at: float, seconds: float) -> None:
        """Remember that the clock was set; see `retention`."""
        with self._connection as transaction:
            transaction.execute("INSERT INTO clock_jump VALUES (?, ?, NULL)", (at, seconds))

    def _series_of(self, sample: Sample) -> int:
        key = (sample.metric, sample.entity)
        if key not in self._series:
            self._connection.execute(
                "INSERT INTO series (metric, entity) VALUES (?, ?) ON CONFLICT DO NOTHING", key
            )
            found = self._connection.execute(
                "SELECT id FROM series WHERE metric = ? AND entity = ?", key
            )
            self._series[key] = found.fetchone()[0]
        return self._series[key]
