"""`python -m campaigns.monitored`: a real stack under load, monitored through `recovery ui` at the
seed's intervals for an hour; then each of its servers is killed, and the right check must go red,
and green again.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pandas as pd
import psutil
import yaml

from campaigns.servers import BUCKET, S3_KEYS, Server, servers
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.monitoring.history import newest_outcomes, ticks
from recovery_pipelines.monitoring.supervise import running
from recovery_pipelines.plan import Plan, load_plan
from recovery_pipelines.plan.monitoring import SECTIONS

NAMES = ("database", "database_replica", "cache", "cache_replica", "storage", "application")
TURNS_RED = {
    "storage": "storage connectivity",
    "cache_replica": "cache replication",
    "database_replica": "database replication",
    "cache": "cache connectivity",
    "database": "database connectivity",
    "application": "application http /health",
}
"""By killed server: the check that must notice. In the order of the killing."""
_START_SECONDS = 1200
_ROOT = Path(__file__).parent.parent


@click.command()
@click.option("--minutes", default=60.0, show_default=True, help="How long to measure.")
@click.option("--kills/--no-kills", default=True, help="Whether to kill the servers afterwards.")
@click.option("--port", default=3990, show_default=True, help="Of the Dagster page.")
@click.argument("output", type=click.Path(path_type=Path, file_okay=False))
def main(minutes: float, kills: bool, port: int, output: Path) -> None:
    """Write what was seen to OUTPUT/*.json; exit 1 if a slot was doubled or a kill not seen."""
    output = output.absolute()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with servers(*NAMES) as stack, _load(stack, output):
        plan = _write_plan(output, stack)
        with _dagster(output, port) as dagster:
            _await_ticks(plan.data_home)
            _measure(plan, dagster, minutes * 60, output / "hour.json")
            measured = json.loads((output / "hour.json").read_text())
            click.echo(json.dumps(measured, indent=1))
            seen = _kill_all(plan.data_home, stack) if kills else []
            (output / "kills.json").write_text(json.dumps(seen, indent=1))
            click.echo(json.dumps(seen, indent=1))
    good = measured["doubled"] == 0 and all(None not in row.values() for row in seen)
    sys.exit(0 if good else 1)


def _write_plan(output: Path, stack: Mapping[str, Server]) -> Plan:
    shipped = yaml.safe_load((_ROOT / "recovery.yaml").read_text())
    application = stack["application"]
    shipped["targets"] = {"test_dataset": shipped["targets"]["test_dataset"]}
    shipped["monitoring"] |= {
        "enabled": True,
        "services": {
            "application": {
                "service_port": application.port,
                "pid_file": str(application.folder / "application.pid"),
                "prometheus": {},
            }
        },
        "dependencies": {
            "database": {
                "address": f"postgresql://postgres@127.0.0.1:{stack['database'].port}/postgres",
                "replicas": 1,
            },
            "cache": {"address": f"redis://127.0.0.1:{stack['cache'].port}", "replicas": 1},
            "storage": {
                "address": f"s3://{BUCKET}/probes/",
                "endpoint": f"http://127.0.0.1:{stack['storage'].port}",
            },
        },
    }
    metrics = shipped["monitoring"]["metrics_collection"]
    metrics["system_metrics"]["latency_probe"] = f"127.0.0.1:{application.port}"
    path = output / "recovery.yaml"
    path.write_text(yaml.safe_dump(shipped, sort_keys=False))
    shutil.copy(_ROOT / "dagster.yaml", output / "dagster.yaml")
    return load_plan(path)


@contextmanager
def _load(stack: Mapping[str, Server], output: Path) -> Iterator[None]:
    """A client in a process of its own: about thirty requests per second."""
    where = ["http", "127.0.0.1", str(stack["application"].port)]
    module = "recovery_pipelines.services.ledger"
    log = ["--log", str(output / "load.answers")]
    client = subprocess.Popen([sys.executable, "-m", module, *where, *log])
    try:
        yield
        if client.poll() is not None:
            raise RecoveryError(
                "the client that makes the load has ended early: nothing was measured"
            )
    finally:
        client.kill()
        client.wait()


@contextmanager
def _dagster(output: Path, port: int) -> Iterator[psutil.Process]:
    """`recovery ui` on the plan; it and the collector are ended."""

    def default_interrupts() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    argv = [str(Path(sys.executable).with_name("recovery")), "ui", "--port", str(port)]
    with (output / "dagster.log").open("ab") as log:
        process = subprocess.Popen(
            [*argv, "--plan", str(output / "recovery.yaml")],
            stdout=log,
            stderr=log,
            env={key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
            | S3_KEYS,
            start_new_session=True,
            preexec_fn=default_interrupts,
        )
    root = psutil.Process(process.pid)
    try:
        yield root
    finally:
        tree = [root, *root.children(recursive=True)] if root.is_running() else []
        if tree:
            root.send_signal(signal.SIGINT)
        for member in psutil.wait_procs(tree, timeout=20)[1]:
            member.kill()
        collector = running(output / "data")
        if collector:
            os.kill(collector.pid, signal.SIGTERM)


def _await_ticks(home: Path) -> None:
    """Until every section was measured."""
    deadline = time.monotonic() + _START_SECONDS
    while ticks(home)["section"].nunique() < len(SECTIONS):
        if time.monotonic() > deadline:
            raise TimeoutError("not every section is measured")
        time.sleep(1)


# --- the hour -----------------------------------------------------------------------------


def _measure(plan: Plan, dagster: psutil.Process, seconds: float, path: Path) -> None:
    """Keep what was seen until now in `path`, anew each minute."""
    home = plan.data_home
    cpu, sizes, began = _cpu_seconds(home, dagster), _sizes(home), time.time()
    load = [os.getloadavg()[0]]
    while (left := began + seconds - time.time()) > 0:
        time.sleep(min(60.0, left))
        load.append(os.getloadavg()[0])
        path.write_text(json.dumps(_seen(plan, dagster, began, cpu, sizes, load), indent=1))


def _seen(
    plan: Plan,
    dagster: psutil.Process,
    began: float,
    cpu: Mapping[str, float],
    sizes: Mapping[str, int],
    load: Sequence[float],
) -> dict[str, Any]:
    home, ended = plan.data_home, time.time()
    cpu_after, sizes_after = _cpu_seconds(home, dagster), _sizes(home)
    collector = running(home)
    found = ticks(home, began)
    found = found[(found["slot"] > began) & (found["slot"] < ended)]
    return {
        "minutes": (ended - began) / 60,
        "load_average": {"mean": sum(load) / len(load), "max": max(load)},
        "sections": [
            _section(name, rows, plan, began, ended) for name, rows in found.groupby("section")
        ],
        "doubled": int(found.duplicated(["section", "slot"]).sum()),
        "cpu_percent_of_a_core": {
            name: 100 * (cpu_after[name] - spent) / (ended - began)
            for name, spent in cpu.items()
            if name in cpu_after
        },
        "collector_rss_bytes": psutil.Process(collector.pid).memory_info().rss if collector else 0,
        "bytes": {name: [size, sizes_after[name]] for name, size in sizes.items()},
    }


def _section(
    name: object, rows: pd.DataFrame, plan: Plan, began: float, ended: float
) -> dict[str, Any]:
    assert plan.monitoring
    interval = plan.monitoring.interval_seconds(str(name))
    late = rows["at"] - rows["slot"]
    return {
        "section": name,
        "interval_seconds": interval,
        "due": int(ended // interval - began // interval),
        "ticks": len(rows),
        "jitter_seconds": {"median": late.median(), "p99": late.quantile(0.99), "max": late.max()},
        "jitter_max_percent": 100 * late.max() / interval,
        "look_seconds": {"median": rows["seconds"].median(), "max": rows["seconds"].max()},
    }


def _cpu_seconds(home: Path, dagster: psutil.Process) -> dict[str, float]:
    """By process of Dagster, and the collector."""
    spent: dict[str, float] = {}
    for member in dagster.children(recursive=True):
        words = " ".join(member.cmdline())
        for mark, name in (
            ("dagster-daemon", "daemon"),
            ("dagster._daemon", "daemon"),
            ("dagster-webserver", "webserver"),
            ("dagster_webserver", "webserver"),
            ("api grpc", "code server"),
            ("code-server", "code server proxy"),
            ("dagster dev", "dagster dev"),
        ):
            if mark in words:
                times = member.cpu_times()
                spent[name] = spent.get(name, 0.0) + times.user + times.system
                break
    collector = running(home)
    if collector:
        times = psutil.Process(collector.pid).cpu_times()
        spent["collector"] = times.user + times.system
    return spent


def _sizes(home: Path) -> dict[str, int]:
    def below(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    return {"instance": below(home / "dagster"), "monitoring": below(home / "monitoring")}


# --- the kills ----------------------------------------------------------------------------


def _kill_all(home: Path, stack: Mapping[str, Server]) -> list[dict[str, Any]]:
    """Kill one server after the other; the next goes when the one before was seen red."""
    red, started, green = {}, {}, {}
    for name, check in TURNS_RED.items():
        stack[name].kill()
        killed = time.time()
        red[name] = _seconds_until(home, check, "failed", killed)
        stack[name].start()
        started[name] = time.time()
    for name, check in TURNS_RED.items():
        green[name] = _seconds_until(home, check, "ok", started[name])
    return [
        {"killed": name, "check": check, "red_seconds": red[name], "green_seconds": green[name]}
        for name, check in TURNS_RED.items()
    ]


def _seconds_until(home: Path, check: str, state: str, since: float) -> float | None:
    """From `since` to the first look that found the check in `state`; None if none did."""
    deadline = time.time() + 300
    while time.time() < deadline:
        outcomes = newest_outcomes(home, looks=200)
        at = outcomes["at"].map(pd.Timestamp.timestamp)
        seen = at[(outcomes["name"] == check) & (outcomes["state"] == state) & (at > since)]
        if len(seen):
            return float(seen.min()) - since
        time.sleep(1)
    return None


if __name__ == "__main__":
    main()
