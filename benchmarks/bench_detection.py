"""Who notices damage in a repository: the tools' own checks by their own commands, and ours.

The same damage is put before all of them, in repositories that the plain tools made, without our
engines. Each command runs as on a new machine: no cache, no memory of the repository. Ours restores
the snapshot by its recorded id and compares it with the manifest taken at backup time.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
from race import console
from rich.table import Table

from recovery_pipelines import manifest
from recovery_pipelines.dataset import build_dataset, change_dataset
from recovery_pipelines.faults.base import Layer
from recovery_pipelines.faults.catalogue import inject, repository_faults
from recovery_pipelines.matrix.bench import refill
from recovery_pipelines.matrix.truth import Truth, look
from recovery_pipelines.sandbox import Sandbox

BACKUPS = 3
OURS = "ours: restore by recorded id, manifest"


@dataclass(frozen=True)
class Tool:
    """Commands in `{repository}`; `{id}` is the newest snapshot's recorded one."""

    init: str
    backup: str
    identify: str
    restore_newest: str
    restore: str
    checks: dict[str, str]


TOOLS = {
    "restic": Tool(
        init="restic init",
        backup="restic --no-cache backup live",
        identify="restic --no-cache snapshots --json | tail -n 1",
        restore_newest="restic --no-cache restore latest --target .",
        restore="restic --no-cache restore {id} --target .",
        checks={
            name: f"restic --no-cache {name}"
            for name in ("check", "check --read-data-subset=10%", "check --read-data")
        },
    ),
    "borg": Tool(
        init="borg init -e repokey-blake2",
        backup="borg create --numeric-ids ::backup-$RANDOM$RANDOM live",
        identify="borg list --json",
        restore_newest="borg extract --numeric-ids ::$(borg list --short --last 1)",
        restore="borg list --json | grep -q {id} && borg extract --numeric-ids ::{name}",
        checks={name: f"borg {name}" for name in ("check", "check --verify-data")},
    ),
}


@dataclass
class Score:
    """What one way of checking noticed."""

    harmful: int = 0
    harmless: int = 0
    unnoticed: set[str] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)


def run(command: str, repository: Path, folder: Path) -> tuple[int, str]:
    """Exit code and output, by a client that never saw the repository."""
    with tempfile.TemporaryDirectory() as client:
        secrets = {"RESTIC_PASSWORD": "benchmark", "BORG_PASSPHRASE": "benchmark"}
        places = {"RESTIC_REPOSITORY": str(repository), "BORG_REPO": str(repository)}
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=os.environ | secrets | places | {"BORG_BASE_DIR": client},
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=300,
        )
    return done.returncode, done.stdout


def must(command: str, repository: Path, folder: Path) -> str:
    code, output = run(command, repository, folder)
    if code:
        raise click.ClickException(f"{command}: exit code {code}")
    return output


def newest(tool: str, listing: str) -> dict[str, str]:
    """The recorded `id` and `name` of the newest snapshot."""
    found = json.loads(listing)
    last = found[-1] if tool == "restic" else found["archives"][-1]
    return {"id": last["id"], "name": last.get("name", "")}


def measure(name: str, home: Path, seed: int, scores: dict[str, Score]) -> int:
    """Each damage once; returns how many made what `restore` brings back wrong or impossible."""
    tool, wrong = TOOLS[name], 0
    with Sandbox.create(home, f"bench-{name}") as sandbox:
        live, sound = sandbox.tree("live"), sandbox.tree("sound")
        repository, restored = sandbox.tree("repository"), sandbox.tree("restored")
        expected, found = (sandbox.tree("manifests").path / each for each in ("a", "b"))
        build_dataset(live, size_bytes=1_000_000, seed=seed)
        must(tool.init, sound.path, live.path)
        for number in range(BACKUPS):
            if number:
                change_dataset(live, seed=1000 * seed + number)
            must(tool.backup, sound.path, sandbox.path)
        recorded = newest(name, must(tool.identify, sound.path, live.path))
        manifest.capture(live.path, expected)
        truth: Truth = look(live.path)
        copy = restored.path / "live"
        must(tool.restore.format(**recorded), sound.path, restored.path)
        if look(copy) != truth:
            raise click.ClickException(f"{name} does not restore the undamaged data, seed {seed}")
        for kind, fault in repository_faults().items():
            refill(repository, sound)
            if not inject([fault], repository, Layer.REPOSITORY, seed):
                continue
            noticed: dict[str, bool] = {}
            for label, command in tool.checks.items():
                began = time.monotonic()
                noticed[label] = run(command, repository.path, live.path)[0] != 0
                scores[label].seconds.append(time.monotonic() - began)
            restored.clear()
            began = time.monotonic()
            code, _ = run(tool.restore_newest, repository.path, restored.path)
            noticed["restore of the newest"] = code != 0
            scores["restore of the newest"].seconds.append(time.monotonic() - began)
            harmful = code != 0 or not copy.exists() or look(copy) != truth
            restored.clear()
            began = time.monotonic()
            code, _ = run(tool.restore.format(**recorded), repository.path, restored.path)
            copy.mkdir(exist_ok=True)
            manifest.capture(copy, found)
            differs = not manifest.compare(expected, found).identical
            noticed[OURS] = code != 0 or differs
            scores[OURS].seconds.append(time.monotonic() - began)
            wrong += harmful
            for label, was_noticed in noticed.items():
                scores[label].harmful += harmful and was_noticed
                scores[label].harmless += not harmful and was_noticed
                if harmful and not was_noticed:
                    scores[label].unnoticed.add(kind)
    return wrong


@click.command()
@click.option("--seeds", default=3, help="Data sets; each damage once in each.")
@click.option("--tool", "names", multiple=True, default=tuple(TOOLS), help="Can be repeated.")
def main(seeds: int, names: tuple[str, ...]) -> None:
    """One table for each tool that is installed."""
    for name in names:
        tool = TOOLS[name]
        if not shutil.which(name):
            console.print(f"{name} is not installed")
            continue
        scores = {label: Score() for label in (*tool.checks, "restore of the newest", OURS)}
        with tempfile.TemporaryDirectory() as folder:
            wrong = sum(measure(name, Path(folder), seed, scores) for seed in range(1, seeds + 1))
        injected = len(scores[OURS].seconds)
        load = os.getloadavg()[0]
        table = Table(title=f"{name}: {injected} damages, {wrong} harmful (load {load:.1f})")
        for heading in ("", "harmful, noticed", "harmless, noticed", "mean s", "not noticed"):
            table.add_column(heading)
        for label, score in scores.items():
            table.add_row(
                label,
                f"{score.harmful} of {wrong}",
                f"{score.harmless} of {injected - wrong}",
                f"{sum(score.seconds) / injected:.2f}",
                ", ".join(sorted(score.unnoticed)),
            )
        console.print(table)


if __name__ == "__main__":
    main()
