"""`python -m campaigns.hosts`: drills of three hosts on one Dagster, and one host dies. As root.

Each host is a network and a process namespace of its own, with its own folder at the same path, its
own plan and code server; a fourth one, the office, has PostgreSQL, the web server and the daemon.
It uses `deploy/hosts/` as it is shipped. With a quarter of the drills done, one host's network is
cut and everything on it is killed; later it is started again. Exit 1 if a drill was lost or
doubled, a limit was broken, a drill that was killed did not fail or was not taken up again, or
anything was left behind.
"""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click
import dagster as dg
import pandas as pd
import psutil
import requests
import yaml
from dagster._core.storage.dagster_run import RunRecord

from recovery_pipelines.drills.record import DrillRecord, read_record
from recovery_pipelines.evidence import verify
from recovery_pipelines.evidence.chain import FOLDER_NAME
from recovery_pipelines.evidence.keys import PUBLIC_NAME, read_public
from recovery_pipelines.namespaces import as_user, in_namespaces, mount
from recovery_pipelines.network.database import Node, Place
from recovery_pipelines.network.hosts import build_network, cut, heal
from recovery_pipelines.orchestration.controls import run_tags
from recovery_pipelines.plan import DrillSpec, load_plan
from recovery_pipelines.verdict import Verdict

MONTH = "2026-11-01"
HOSTS = ("alpha", "beta", "gamma")
VICTIM = "beta"
OFFICE = "office"
SHIPPED = Path(__file__).parent.parent / "deploy/hosts"
_INSIDE = "RECOVERY_CAMPAIGN_INSIDE"
_HERE = Path("/mnt")
"""Where each host sees its own folder."""
_CODE_PORT, _WEB_PORT = 4266, 3000
_PATIENCE_SECONDS = 3600.0
_LAUNCH = """
mutation ($job: String!, $location: String!, $tags: [ExecutionTag!]) {
  launchRun(executionParams: {
    selector: {repositoryLocationName: $location, repositoryName: "__repository__", jobName: $job}
    executionMetadata: {tags: $tags}
  }) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}
"""
_LOCATIONS = """
{ workspaceOrError { ... on Workspace { locationEntries {
  name locationOrLoadError { __typename } } } } }
"""
Interval = tuple[float, float]


@click.command()
@click.option("--drills", default=64, help="In all; two for each target.")
@click.option("--limit", default=6, help="Drills at a time, on all hosts together.")
@click.option("--dead-seconds", default=60.0, help="How long the host stays dead.")
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="An empty or new folder."
)
def main(drills: int, limit: int, dead_seconds: float, output: Path) -> None:
    if _INSIDE not in os.environ:
        inside = [*in_namespaces(), sys.executable, "-m", "campaigns.hosts", *sys.argv[1:]]
        sys.exit(subprocess.run(inside, env=os.environ | {_INSIDE: "1"}, check=False).returncode)
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with Site(output, limit) as site:
        for number, name in enumerate(HOSTS):
            site.add(name, range(number, drills // 2, len(HOSTS)))
        site.open_office()
        _say(f"{len(HOSTS)} hosts and the office are up after {time.monotonic() - began:.0f} s")
        for of_all in zip_longest(*([(name, spec) for spec in site.specs(name)] for name in HOSTS)):
            for name, spec in filter(None, of_all):
                site.launch(name, spec)
        _say(f"{drills} drills are queued, at most {limit} at a time")
        _await(lambda: site.passes() >= drills // 4 and site.at_work(VICTIM), "drills at work")
        killed_at, killed = site.kill(VICTIM)
        _say(f"{VICTIM} is dead; {len(killed)} runs died, {site.passes()} drills had passed")
        time.sleep(dead_seconds)
        passed_meanwhile = sum(
            _instant(record, "ended_at") > killed_at for record in site.records()
        )
        site.revive(VICTIM)
        _say(f"{VICTIM} is started again; the others ended {passed_meanwhile} drills meanwhile")
        _await(site.is_over, "every drill to pass")
        wrong = site.judge(killed, killed_at)
    _say(f"done in {time.monotonic() - began:.0f} s, load {os.getloadavg()[2]:.0f}")
    for line in wrong:
        click.echo(f"FAIL: {line}", err=True)
    sys.exit(1 if wrong else 0)


class Site:
    """The hosts and the office, in this process's own network."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._stack = ExitStack()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Site":
        self.hosts = build_network((*HOSTS, OFFICE))
        self._start_database()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
        self._stack.close()

    # --- setting up ---------------------------------------------------------------------

    def _start_database(self) -> None:
        """PostgreSQL, as its own user."""
        room = Path("/dev/shm")
        mount("-t", "tmpfs", "-o", "mode=755,size=1g", "tmpfs", room)
        database = room / "database"
        database.mkdir(mode=0o700)
        shutil.chown(database, "postgres", "postgres")
        tools = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        place = Place(
            self.hosts[OFFICE],
            database,
            self.folder,
            lambda command: as_user("postgres", command, ordinary_user=False),
        )
        node = Node(place, lambda tool: str(tools / tool))
        node.create()
        node.start()
        node.ask("alter system set max_connections = 200")
        node.stop("fast")
        node.start()
        node.ask("create database dagster")
        self._stack.callback(node.stop, "fast")

    def add(self, name: str, numbers: Sequence[int]) -> None:
        """A host with these targets, and its code server."""
        self._equip(name)
        for number in numbers:
            _make_tree(self.folder / name / _target(number))
        plan = yaml.safe_dump(_plan(name, numbers), sort_keys=False)
        (self.folder / name / "recovery.yaml").write_text(plan)
        self.revive(name)

    def _equip(self, name: str) -> None:
        home = self.folder / name / "dagster"
        home.mkdir(parents=True)
        settings = yaml.safe_load((SHIPPED / "dagster.yaml").read_text())
        settings["concurrency"]["runs"]["max_concurrent_runs"] = self.limit
        (home / "dagster.yaml").write_text(yaml.safe_dump(settings))

    def open_office(self) -> None:
        """The daemon and the web server; returns when every code server is known."""
        self._equip(OFFICE)
        text = (SHIPPED / "workspace.yaml").read_text()
        for name in HOSTS:
            text = text.replace(f"{name}.example.org", self.hosts[name].address)
        (self.folder / OFFICE / "workspace.yaml").write_text(text)
        workspace = ["-w", str(_HERE / "workspace.yaml")]
        where = ["-h", "0.0.0.0", "-p", str(_WEB_PORT)]
        self._start(OFFICE, "web", ["dagster-webserver", *workspace, *where])
        _await(self._all_loaded, "the code servers to be known")
        self._start(OFFICE, "daemon", ["dagster-daemon", "run", *workspace])

    def _start(self, host: str, what: str, argv: Sequence[str]) -> None:
        """A machine's process: it sees its own folder at the path that every host uses."""
        environment = os.environ | {
            "DAGSTER_HOME": str(_HERE / "dagster"),
            "RECOVERY_PLAN": str(_HERE / "recovery.yaml"),
            "DAGSTER_GRPC_TIMEOUT_SECONDS": "300",
            **self._login(),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        own = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc"]
        enter = f'mount --bind {self.folder / host} {_HERE} && cd {_HERE} && exec "$@"'
        command = [*own, "--", "sh", "-c", enter, "sh", *argv]
        with (self.folder / f"{host}-{what}.log").open("ab") as log:
            self._processes[f"{host} {what}"] = subprocess.Popen(
                self.hosts[host].command(command), env=environment, stdout=log, stderr=log
            )

    def _login(self) -> dict[str, str]:
        address = self.hosts[OFFICE].address
        login = {"HOST": address, "USER": "postgres", "PASSWORD": "trusted"}
        return {f"DAGSTER_DATABASE_{name}": value for name, value in login.items()}

    # --- what happens -------------------------------------------------------------------

    def kill(self, name: str) -> tuple[float, list[dg.DagsterRun]]:
        """As a power failure: the network is gone, then every process. Returns when, and the runs
        that were at work."""
        cut("link_down", self.hosts[name], [])
        outer = self._processes[f"{name} code"]
        tree = psutil.Process(outer.pid).children(recursive=True)
        tree[0].kill()  # the first process of the host's namespace: the kernel ends all others
        killed_at = time.time()
        psutil.wait_procs(tree, timeout=30)
        outer.wait()
        return killed_at, self._in_progress(name)

    def revive(self, name: str) -> None:
        heal(self.hosts[name])
        server = ["dagster", "code-server", "start", "-m", "recovery_pipelines.definitions"]
        where = ["--host", "0.0.0.0", "--port", str(_CODE_PORT), "--location-name", name]
        self._start(name, "code", [*server, *where])

    def launch(self, name: str, spec: DrillSpec) -> None:
        """As Dagster's page does it: with the tags of the job."""
        pairs = {"dagster/partition": MONTH, **run_tags([spec])}
        tags = [{"key": key, "value": value} for key, value in pairs.items()]
        answer = self._ask(_LAUNCH, job=spec.name, location=name, tags=tags)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer

    # --- what is seen -------------------------------------------------------------------

    def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        body = {"query": query, "variables": variables}
        url = f"http://127.0.0.1:{_WEB_PORT}/graphql"
        answer = self.hosts[OFFICE].call(lambda: requests.post(url, json=body, timeout=300).json())
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def _all_loaded(self) -> bool:
        try:
            entries = self._ask(_LOCATIONS)["workspaceOrError"]["locationEntries"]
        except requests.ConnectionError:
            return False
        loaded = [(entry["locationOrLoadError"] or {}).get("__typename") for entry in entries]
        return loaded == ["RepositoryLocation"] * len(HOSTS)

    def _home(self, name: str) -> Path:
        return load_plan(self.folder / name / "recovery.yaml").data_home

    def specs(self, name: str) -> list[DrillSpec]:
        return load_plan(self.folder / name / "recovery.yaml").drills()

    def drills(self, name: str) -> list[str]:
        return [spec.name for spec in self.specs(name)]

    def _runs(self) -> list[RunRecord]:
        """The runs of drills, and of nothing else, by the database of the office."""
        os.environ.update(self._login())
        jobs = {drill for name in HOSTS for drill in self.drills(name)}

        def look() -> list[RunRecord]:
            home = self.folder / OFFICE / "dagster"
            with dg.DagsterInstance.from_config(str(home)) as instance:
                return list(instance.get_run_records())

        records = self.hosts[OFFICE].call(look)
        return [record for record in records if record.dagster_run.job_name in jobs]

    def _in_progress(self, name: str) -> list[dg.DagsterRun]:
        """Started, or starting."""
        runs = [record.dagster_run for record in self._runs()]
        on = {dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING}
        return [run for run in runs if run.status in on and run.job_name in self.drills(name)]

    def at_work(self, name: str) -> bool:
        """Whether two drills of this host are really in the middle: their sandboxes are there."""
        return len(list((self._home(name) / "sandboxes").glob("[!.]*"))) >= 2

    def _left_behind(self, name: str) -> list[Path]:
        home = self._home(name)
        return [path for what in ("sandboxes", "leases") for path in (home / what).glob("[!.]*")]

    def records(self) -> list[DrillRecord]:
        """Of every drill that came to its end, on every host."""
        homes = [self._home(name) for name in HOSTS]
        paths = [path for home in homes for path in home.glob("drills/*/*/*/record.json")]
        return [read_record(path.parent) for path in sorted(paths)]

    def passes(self) -> int:
        return sum(record.verdict is Verdict.PASS for record in self.records())

    def is_over(self) -> bool:
        """Every drill has a run that succeeded, and no run goes on."""
        runs = [record.dagster_run for record in self._runs()]
        succeeded = {run.job_name for run in runs if run.is_success}
        planned = {drill for name in HOSTS for drill in self.drills(name)}
        return succeeded >= planned and all(run.is_finished for run in runs)

    def judge(self, killed: Sequence[dg.DagsterRun], killed_at: float) -> list[str]:
        """Show the table of the campaign; returns what should not be."""
        wrong: list[str] = []
        runs, records = self._runs(), self.records()
        passed = Counter(record.drill for record in records if record.verdict is Verdict.PASS)
        rows = []
        for name in HOSTS:
            drills = self.drills(name)
            wrong += [
                f"{drill} passed {passed[drill]} times" for drill in drills if passed[drill] != 1
            ]
            wrong += [f"{name}: {path} was left behind" for path in self._left_behind(name)]
            home = self._home(name)
            report = verify(home, read_public(home / FOLDER_NAME / PUBLIC_NAME))
            own = [record for record in records if record.drill in drills]
            if not report.is_verified or len(report.verified) != len(own):
                wrong.append(f"{name}: evidence {len(report.verified)}, records {len(own)}")
            of_host = [run.dagster_run for run in runs if run.dagster_run.job_name in drills]
            rows.append(
                {
                    "host": name,
                    "drills": len(drills),
                    "runs": len(of_host),
                    "succeeded": sum(run.is_success for run in of_host),
                    "failed": sum(run.is_failure for run in of_host),
                    "killed": sum(run.job_name in drills for run in killed),
                    "records": len(own),
                    "PASS": sum(passed[drill] for drill in drills),
                    "sealed": len(report.verified),
                }
            )
        click.echo(pd.DataFrame(rows).to_markdown(index=False))
        wrong += _of_killed([run.dagster_run for run in runs], killed)
        wrong += self._of_limits(runs, records, killed, killed_at)
        return wrong

    def _of_limits(
        self,
        runs: Sequence[RunRecord],
        records: Sequence[DrillRecord],
        killed: Sequence[dg.DagsterRun],
        killed_at: float,
    ) -> list[str]:
        """By the drills' own times; a killed one has none but its run's, and its death."""
        target_of = {spec.name: spec.target_name for name in HOSTS for spec in self.specs(name)}
        times = [
            (record.drill, (_instant(record, "started_at"), _instant(record, "ended_at")))
            for record in records
        ]
        times += [
            (run.dagster_run.job_name, (run.start_time, killed_at))
            for run in runs
            if run.dagster_run.run_id in {run.run_id for run in killed} and run.start_time
        ]
        most = _most_at_once([interval for _, interval in times])
        by_target = {
            target: _most_at_once([when for drill, when in times if target_of[drill] == target])
            for target in set(target_of.values())
        }
        click.echo(
            f"at once: {most} of {self.limit} on all hosts, "
            f"{max(by_target.values())} of 1 by target"
        )
        broken = [
            f"{count} drills of {name} at once" for name, count in by_target.items() if count > 1
        ]
        return broken + ([f"{most} drills at once"] if most > self.limit else [])


def _target(number: int) -> str:
    return f"target_{number}"


def _make_tree(folder: Path) -> None:
    for number in range(12):
        path = folder / f"folder_{number % 3}" / f"file_{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(3000))


def _plan(host: str, numbers: Sequence[int]) -> dict[str, Any]:
    """Two drills for each target, with one criterion, as the number of drills is the point."""
    criteria = {"data_integrity": ["all_files_recovered"], "structure": [], "accessibility": []}
    scenarios = ("corruption_recovery", "incremental_recovery")
    off = dict.fromkeys(("trend_analysis", "comparison_with_baseline", "anomaly_detection"), False)
    controls = {"parallel_tests": True, "failure_handling": "continue_and_notify"}
    return {
        "host": host,
        "targets": {
            _target(number): {"path": _target(number), "engines": ["tar"], "faults": {"count": 3}}
            for number in numbers
        },
        "test_framework": {
            "test_scenarios": {
                "data_recovery": {
                    "scenarios": [
                        {"name": name, "validation_criteria": criteria} for name in scenarios
                    ]
                }
            },
            "test_execution": {"execution_controls": controls},
            "reporting": {
                "metrics": {"analysis": off},
                "documentation": {"test_results": {"format": []}},
            },
        },
    }


def _of_killed(runs: Sequence[dg.DagsterRun], killed: Sequence[dg.DagsterRun]) -> list[str]:
    """What is wrong with the killed runs: each fails and has one retry, and no other run fails.

    A run that was only starting may also wait in the queue again.
    """
    wrong = []
    for run in killed:
        chain = [each for each in runs if run.run_id in (each.run_id, each.parent_run_id)]
        outcome = [
            each.status.value for each in sorted(chain, key=lambda each: not each.is_failure)
        ]
        click.echo(f"killed while {run.status.value}: {run.job_name}: {', then '.join(outcome)}")
        requeued = run.status is dg.DagsterRunStatus.STARTING and outcome == ["SUCCESS"]
        if outcome != ["FAILURE", "SUCCESS"] and not requeued:
            wrong.append(f"the killed run of {run.job_name}: {outcome}")
    known = {run.run_id for run in killed}
    others = [run.job_name for run in runs if run.is_failure and run.run_id not in known]
    return [*wrong, *(f"{name} failed, though nobody killed it" for name in others)]


def _instant(record: DrillRecord, name: str) -> float:
    return datetime.fromisoformat(record.content[name]).timestamp()


def _most_at_once(intervals: Iterable[Interval]) -> int:
    # What ends and what begins in the same instant do not overlap.
    edges = sorted(edge for begin, end in intervals for edge in ((begin, 1), (end, -1)))
    now = most = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {_PATIENCE_SECONDS:.0f} s in vain for {what}")
        time.sleep(3)


def _say(text: str) -> None:
    click.echo(f"{datetime.now(UTC):%H:%M:%S} {text}")


if __name__ == "__main__":
    main()
