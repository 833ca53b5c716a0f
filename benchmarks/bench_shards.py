"""An audit in one piece beside the same audit in shards: seconds and memory of each worker.

Each worker is a process of its own, one after the other. `python` is the worker itself, `restic`
the largest that it started.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import psutil
import trees
from race import console
from rich.table import Table

from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.manifest import capture
from recovery_pipelines.plan import load_plan

_MONTH = "2026-11-01"
_PASSWORD = {"RESTIC_PASSWORD": "of the benchmark", "TEAM_PASSWORD": "of the benchmark"}


@click.command()
@click.option("--entries", default=[50_000, 200_000], multiple=True)
@click.option("--shards", default=8)
@click.option("--place", type=click.Path(path_type=Path), help="A folder with room.")
@click.option("--worker", nargs=2, hidden=True, help="Plan, and number of the shard; 0: all.")
def main(
    entries: tuple[int, ...], shards: int, place: Path | None, worker: tuple[str, str] | None
) -> None:
    if worker:
        _work(Path(worker[0]), int(worker[1]))
        return
    os.environ.update(_PASSWORD)
    table = Table(title=f"audits of a restic repository, in one piece and in {shards} shards")
    for heading in ("entries", "work", "seconds", "python MiB", "restic MiB", "verdict"):
        table.add_column(heading, justify="right")
    for count in entries:
        with tempfile.TemporaryDirectory(prefix="bench-shards-", dir=place) as temporary:
            for row in _measured(Path(temporary), count, shards):
                table.add_row(f"{count:,}", *row)
    console.print(table)


def _measured(folder: Path, entries: int, shards: int) -> list[tuple[str, ...]]:
    tree = trees.build(trees.tiny(entries), folder)
    _prepare(folder, tree)
    whole = _run(_plan(folder, "null"), 0)
    in_shards = _plan(folder, str(shards))
    parts = [_run(in_shards, number) for number in range(1, shards + 1)]
    merge = _run(in_shards, 0)
    return [
        _row("in one piece", whole),
        _row("shard, median", sorted(parts, key=lambda part: part["seconds"])[shards // 2]),
        _row("shard, greatest", {k: max(part[k] for part in parts) for k in parts[0]}),
        ("all shards", f"{sum(part['seconds'] for part in parts):.1f}", "", "", ""),
        _row("merge", merge),
    ]


def _row(what: str, found: dict[str, Any]) -> tuple[str, ...]:
    sizes = (f"{found[name] / (1 << 20):.0f}" for name in ("python", "restic"))
    return (what, f"{found['seconds']:.1f}", *sizes, str(found["verdict"]))


def _prepare(folder: Path, tree: Path) -> None:
    """Back up, capture what should come back, and remove the tree."""
    restic = ("restic", "--quiet", "--no-cache", "-r", str(folder / "repository"))
    subprocess.run([*restic, "init"], check=True)
    subprocess.run([*restic, "backup", str(tree)], check=True)
    said = subprocess.run([*restic, "snapshots", "--json"], check=True, capture_output=True).stdout
    (folder / "manifests").mkdir()
    capture(tree, folder / "manifests" / f"{json.loads(said)[0]['short_id']}.parquet")
    shutil.rmtree(tree)


def _plan(folder: Path, shards: str) -> Path:
    plan = folder / f"plan-{shards}.yaml"
    plan.write_text(
        f"""
data_home: home-{shards}
targets:
  large:
    repository: {{restic: repository, password: env:TEAM_PASSWORD}}
    verify_against: {{manifests: manifests}}
    shards: {shards}
test_framework:
  test_execution:
    execution_controls: {{timeout: 86400}}
"""
    )
    return plan


def _run(plan: Path, number: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", str(plan), str(number)]
    said = subprocess.run(command, check=True, capture_output=True).stdout
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    console.print(plan.name, number, found)
    return found


def _work(plan: Path, number: int) -> None:
    (spec,) = load_plan(plan).drills()
    restic_bytes, ended = [0], threading.Event()
    watch = threading.Thread(target=_watch, args=(restic_bytes, ended))
    watch.start()
    began = time.perf_counter()
    record = carry_out_steps(spec.shards[number - 1] if number else spec, _MONTH, f"run-{number}")
    seconds = time.perf_counter() - began
    ended.set()
    watch.join()
    found = {
        "seconds": seconds,
        "python": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        "restic": restic_bytes[0],
        "verdict": record.verdict,
    }
    click.echo(json.dumps(found))


def _watch(greatest: list[int], ended: threading.Event) -> None:
    """Note the greatest resident size of any restic that this process has started."""
    while not ended.wait(0.1):
        for process in psutil.Process().children(recursive=True):
            try:
                if process.name() == "restic":
                    text = Path(f"/proc/{process.pid}/status").read_text()
                    size = int(text.partition("VmHWM:")[2].split()[0]) << 10
                    greatest[0] = max(greatest[0], size)
            except (psutil.NoSuchProcess, OSError, IndexError):
                continue


if __name__ == "__main__":
    main()
