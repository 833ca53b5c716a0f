"""A Dagster in a process of its own (`orchestration.home`), which has a storage open."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recovery_pipelines.databases.base import Contents
from recovery_pipelines.errors import DatabaseError

ONE_RUN_CHANGED = (
    "update runs set status = 'CANCELED' "
    "where id = (select max(id) from runs where status <> 'CANCELED')"
)
ONE_ASSET_FORGOTTEN = "delete from asset_keys where id = (select min(id) from asset_keys)"
SCHEDULES_STOPPED = "update instigators set status = 'STOPPED' where status <> 'STOPPED'"
EVENTS_EMPTIED = "delete from event_logs"


class DagsterProcess:
    """Answers what is asked of it; see `orchestration.home`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, do: str, **words: Any) -> Any:
        """Raises DatabaseError, with what Dagster said, if it cannot do it."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"do": do, **words}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and says nothing
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "Dagster has ended"}
        if "error" in answer:
            raise DatabaseError(f"Dagster cannot {do} it: {answer['error']}")
        return answer["said"]

    def readable(self) -> Contents:
        """What Dagster reads from the storage: runs, the history of assets, schedules, sensors."""
        return {f"readable {name}": what for name, what in self.ask("describe").items()}

    def located(self, home: Path, wanted: str, engine: str) -> str:
        """Where the home's `dagster.yaml` keeps its storage: a folder for `sqlite`, an address for
        `postgres`. DatabaseError if that is not the kind `wanted`, which `engine` backs up."""
        kind, place = self.ask("locate", home=str(home))
        if kind != wanted:
            engines = {"sqlite": "tar, restic, borg or rsync", "postgres": "pgbackrest"}
            raise DatabaseError(
                f"the storage of {home} is in {kind} ({home / 'dagster.yaml'}), and {engine} backs "
                f"up another: give the target `engines` of {kind}, such as {engines[kind]}"
            )
        return str(place)


@contextmanager
def start_dagster(place: Path | str, cwd: Path | None = None) -> Iterator[DagsterProcess]:
    """A Dagster on the storage at `place`: a folder, or the address of a PostgreSQL database.

    It obeys no `dagster.yaml`, which may lead to the live storage.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "recovery_pipelines.orchestration.home", str(place)],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield DagsterProcess(process)
    finally:
        process.kill()
        process.communicate()
