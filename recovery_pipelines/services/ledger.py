"""Clients that write numbered rows and log every acknowledgement, and what became of the rows.

A client runs inside a machine as `python -m recovery_pipelines.services.ledger KIND HOST PORT`.
The log lies outside the fault: one line per request, written after the answer came.
"""

import argparse
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import redis

_TABLE = "create table if not exists recovery_ledger (number bigint primary key, payload text)"
_ANSWER_TIMEOUT_SECONDS = 2.0
_READ_TIMEOUT_SECONDS = 10.0
_PAUSE_SECONDS = {"postgres": 0.001, "redis": 0.001, "http": 0.02}
_RETRY_SECONDS = 0.02
_PREFIX = "recovery:ledger:"
COLUMNS = ("number", "began", "ended", "error")


def payload(number: int) -> str:
    """What row `number` must hold."""
    return hashlib.md5(f"recovery {number}".encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Comparison:
    """What became of the acknowledged rows of one store."""

    acknowledged: int
    lost: int
    wrong: int
    """Rows that are there with another payload than was written."""
    holes: int
    """Lost rows that are older than some acknowledged row that came back."""
    lost_seconds: float
    """From the acknowledgement of the first lost row to the cut."""
    first_lost_at: float | None


def compare(acknowledged: dict[int, float], found: dict[int, str], cut_at: float) -> Comparison:
    """Compare rows acknowledged before `cut_at` (by number: monotonic time) with those found."""
    due = {number: at for number, at in acknowledged.items() if at <= cut_at}
    lost = sorted(number for number in due if number not in found)
    newest = max((number for number in due if number in found), default=-1)
    first = min((due[number] for number in lost), default=None)
    return Comparison(
        acknowledged=len(due),
        lost=len(lost),
        wrong=sum(found[number] != payload(number) for number in found),
        holes=sum(number < newest for number in lost),
        lost_seconds=0.0 if first is None else cut_at - first,
        first_lost_at=first,
    )


def write(kind: str, host: str, port: int, log: TextIO, first: int, path: str = "/health") -> None:
    """Send requests until killed; the numbers go up from `first`."""
    numbers = itertools.count(first)
    while True:
        try:
            send = _SENDERS[kind](host, port, path)
        except Exception as error:  # whatever the client's library raises, the client goes on
            now = time.monotonic()
            _note(log, -1, now, now, error)
            time.sleep(_RETRY_SECONDS)
            continue
        for number in numbers:
            began = time.monotonic()
            try:
                send(number)
            except Exception as error:
                _note(log, number, began, time.monotonic(), error)
                time.sleep(_RETRY_SECONDS)
                break
            _note(log, number, began, time.monotonic(), None)
            time.sleep(_PAUSE_SECONDS[kind])


def read(kind: str, host: str, port: int) -> Iterator[tuple[int, str]]:
    """Every row of the store, as number and payload."""
    if kind == "postgres":
        import psycopg

        with psycopg.connect(_address(host, port)) as connection:
            connection.execute("set enable_indexonlyscan = off")
            yield from connection.execute("select number, payload from recovery_ledger")
    else:
        with _redis(host, port, _READ_TIMEOUT_SECONDS) as client:
            keys = list(client.scan_iter(f"{_PREFIX}*", count=1000))
            for batch in (keys[at : at + 1000] for at in range(0, len(keys), 1000)):
                for key, value in zip(batch, client.mget(batch), strict=True):
                    yield int(key.removeprefix(_PREFIX)), str(value)


@dataclass
class Log:
    """A client's log, which grows while it is read: each line is read once."""

    path: Path
    _rows: list[tuple[int, float, float, str]] = field(default_factory=list)
    _read_bytes: int = 0

    def rows(self) -> list[tuple[int, float, float, str]]:
        """The finished lines: number, began, ended, error (empty: acknowledged)."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if line.endswith(b"\n"):
                    number, began, ended, error = line.decode().rstrip("\n").split("\t")
                    self._rows.append((int(number), float(began), float(ended), error))
                    self._read_bytes += len(line)
        return self._rows


def _note(log: TextIO, number: int, began: float, ended: float, error: Exception | None) -> None:
    words = f"{type(error).__name__}: {error}" if error else ""
    cleaned = " ".join(words.split())[:200]
    log.write(f"{number}\t{began:.6f}\t{ended:.6f}\t{cleaned}\n")
    log.flush()


def _address(host: str, port: int) -> str:
    return f"host={host} port={port} user=postgres dbname=postgres connect_timeout=2"


def _redis(host: str, port: int, timeout_seconds: float) -> "redis.Redis":
    """A client that does not try again by itself: that would hide what a user sees."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis(
        host=host,
        port=port,
        decode_responses=True,
        socket_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
    )


def _send_postgres(host: str, port: int, path: str) -> Callable[[int], None]:
    import psycopg

    connection = psycopg.connect(_address(host, port), autocommit=True)
    connection.execute(_TABLE)

    def send(number: int) -> None:
        connection.execute("insert into recovery_ledger values (%s, %s)", (number, payload(number)))

    return send


def _send_redis(host: str, port: int, path: str) -> Callable[[int], None]:
    client = _redis(host, port, _ANSWER_TIMEOUT_SECONDS)
    client.ping()

    def send(number: int) -> None:
        client.set(f"{_PREFIX}{number}", payload(number))

    return send


def _send_http(host: str, port: int, path: str) -> Callable[[int], None]:
    import requests

    session = requests.Session()

    def send(number: int) -> None:
        url = f"http://{host}:{port}{path}"
        session.get(url, timeout=_ANSWER_TIMEOUT_SECONDS).raise_for_status()

    return send


_SENDERS = {"postgres": _send_postgres, "redis": _send_redis, "http": _send_http}


def main() -> None:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=sorted(_SENDERS))
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--path", default="/health")
    options = parser.parse_args()
    with options.log.open("a", encoding="utf-8") as log:
        write(options.kind, options.host, options.port, log, options.first, options.path)


if __name__ == "__main__":
    main()
