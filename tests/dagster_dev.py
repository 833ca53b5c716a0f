"""A real `recovery ui`: web server, daemon and code server on a plan of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import requests
import yaml

from tests.plans import MONTH, content

_START_SECONDS = 400
_LAUNCH = """
mutation ($job: String!, $location: String!, $month: String!) {
  launchRun(executionParams: {
    selector: {repositoryLocationName: $location, repositoryName: "__repository__", jobName: $job}
    executionMetadata: {tags: [{key: "dagster/partition", value: $month}]}
  }) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
_LOCATIONS = """
{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }
"""


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll until `condition` gives something true; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s in vain for {what}")


class DagsterDev:
    """A running Dagster on `folder`/recovery.yaml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home / "dagster"))

    def start(self) -> None:
        def default_interrupts() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)

        recovery = Path(sys.executable).with_name("recovery")
        log = (self.folder / "dagster-dev.log").open("ab")
        self.process = subprocess.Popen(
            [recovery, "ui", "--plan", self.folder / "recovery.yaml", "--port", str(self.port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"},
            start_new_session=True,
            preexec_fn=default_interrupts,
        )
        log.close()
        self.location = wait_for(self._location, _START_SECONDS, f"{self.url} to load our code")

    def _location(self) -> str | None:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "dagster-dev.log").read_text()[-3000:]
        try:
            nodes = self.ask(_LOCATIONS)["repositoriesOrError"].get("nodes")
        except requests.ConnectionError:
            return None
        return nodes[0]["location"]["name"] if nodes else None

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = {"query": query, "variables": variables}
        answer = requests.post(f"{self.url}/graphql", json=body, timeout=60).json()
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def launch(self, job: str, month: str = MONTH) -> str:
        """Launch a job as the UI does; returns the run's id."""
        result = self.ask(_LAUNCH, job=job, location=self.location, month=month)["launchRun"]
        assert result["__typename"] == "LaunchRunSuccess", result
        run_id: str = result["run"]["runId"]
        return run_id

    def finished(self, run_id: str, seconds: float = 300) -> dg.DagsterRun:
        """The run once it has ended."""

        def look() -> dg.DagsterRun | None:
            run = self.instance.get_run_by_id(run_id)
            return run if run and run.is_finished else None

        run: dg.DagsterRun = wait_for(look, seconds, f"run {run_id} to end")
        return run

    def tree(self) -> list[psutil.Process]:
        assert self.process is not None
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> list[psutil.Process]:
        """Interrupt it as Ctrl-C does; returns what had to be killed after a while."""
        assert self.process is not None
        processes = self.tree()
        for process in processes[:1]:
            process.send_signal(signal.SIGINT)
        alive: list[psutil.Process] = psutil.wait_procs(processes, timeout=20)[1]
        self._kill(alive)
        return alive

    def crash(self) -> None:
        """Kill everything at once, as a host crash would."""
        self._kill(self.tree())

    def _kill(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=20)


@contextmanager
def dagster_dev(folder: Path, **changes: Any) -> Iterator[DagsterDev]:
    """Dagster on the shipped plan, made small and changed as in `tests.plans.content`."""
    (folder / "recovery.yaml").write_text(yaml.safe_dump(content(**changes), sort_keys=False))
    settings = Path(__file__).parent.parent / "dagster.yaml"
    fast = settings.read_text().replace("poll_interval_seconds: 15", "poll_interval_seconds: 3")
    (folder / "dagster.yaml").write_text(fast)
    dev = DagsterDev(folder)
    try:
        dev.start()
        yield dev
    finally:
        dev.stop()
