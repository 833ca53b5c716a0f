"""Who notices a backup that is wrong, at what cost: the tools' own checks, borgmatic, our audit.

The same damage is put before all of them, in repositories that the plain tools made. Two kinds:
the repository is damaged after the backup; or it is sound, but what was backed up is not the data
(a job that reads the wrong files, or leaves some out). Each command runs as on a new machine: no
cache, no memory of the repository.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import click
import pandas as pd
import trees
import yaml
from race import console

from recovery_pipelines import manifest
from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.faults.base import Layer
from recovery_pipelines.faults.catalogue import inject, repository_faults
from recovery_pipelines.matrix.bench import refill
from recovery_pipelines.matrix.truth import look
from recovery_pipelines.plan import parse_plan
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.verdict import Verdict

MONTH = "2026-11-01"
SECRET = "benchmark"
BACKUP_HOURS_AGO = (50, 26, 2)
"""A daily job, whose recovery point must be within 25 hours."""
RPO_SECONDS = 90_000
SPOT_CHECK = {"count_tolerance_percentage": 10, "data_sample_percentage": 1}
"""borgmatic's documented example has a data tolerance of 0.5 with it."""
SPOT_CHECKS = {
    "borgmatic spot check, as documented": SPOT_CHECK | {"data_tolerance_percentage": 0.5},
    "borgmatic spot check, no tolerance": {
        **SPOT_CHECK,
        "count_tolerance_percentage": 0.1,  # its own configuration is a file of each archive
        "data_tolerance_percentage": 0,
    },
}
AUDITS: dict[str, dict[str, float] | None] = {
    "ours: audit of a sample (less than 1 % wrong, 99 % sure)": {
        "bad_share": 0.01,
        "confidence": 0.99,
    },
    "ours: audit of everything": None,
}
RESTORE = "restore of the newest"


@dataclass(frozen=True)
class Tool:
    """Commands with `{live}`, `{when}` (UTC), and `{configuration}` of borgmatic."""

    needs: tuple[str, ...]
    init: str
    backup: str
    newest: str
    """Prints the id or the name of the newest snapshot."""
    restore: str
    checks: dict[str, str]


BORGMATIC = "borgmatic --verbosity -1 --config {configuration}"
TOOLS = {
    "restic": Tool(
        needs=("restic", "jq"),
        init="restic init",
        backup="restic --no-cache backup --pack-size 4 --time '{when:%Y-%m-%d %H:%M:%S}' {live}",
        newest="restic --no-cache snapshots --json | jq -r 'max_by(.time).id'",
        restore="restic --no-cache restore latest --target .",
        checks={
            f"restic {name}": f"restic --no-cache {name}"
            for name in ("check", "check --read-data-subset=10%", "check --read-data")
        },
    ),
    "borg": Tool(
        needs=("borg", "borgmatic", "xxh64sum"),
        init="borg init -e repokey-blake2",
        backup=BORGMATIC + " --override extra_borg_options.create='--timestamp "
        "{when:%Y-%m-%dT%H:%M:%S}' create",
        newest="borg list --short --last 1",
        restore="borg extract --numeric-ids ::$(borg list --short --last 1)",
        checks={f"borg {name}": f"borg {name}" for name in ("check", "check --verify-data")}
        | {
            name: f"borgmatic --verbosity -1 --config {{spot_{number}}} check --only spot --force"
            for number, name in enumerate(SPOT_CHECKS)
        },
    ),
}


# --- backups of something else than the data --------------------------------------------


def _some(tree: Path, share: float, rng: Random) -> list[Path]:
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    return rng.sample(files, max(1, round(share * len(files))))


def _other_content(share: float) -> Callable[[Path, Random], None]:
    def damage(tree: Path, rng: Random) -> None:
        for path in _some(tree, share, rng):
            status = path.stat()
            path.write_bytes(rng.randbytes(status.st_size))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    return damage


def _missing(share: float) -> Callable[[Path, Random], None]:
    def damage(tree: Path, rng: Random) -> None:
        for path in _some(tree, share, rng):
            status = path.parent.stat()
            path.unlink()
            os.utime(path.parent, ns=(status.st_atime_ns, status.st_mtime_ns))

    return damage


def _folders_missing(tree: Path, rng: Random) -> None:
    for folder in sorted(tree.glob("*/*"))[::5]:
        shutil.rmtree(folder)


def _modes(tree: Path, rng: Random) -> None:
    for path in _some(tree, 0.01, rng):
        path.chmod(0o666)


def _times(tree: Path, rng: Random) -> None:
    for path in _some(tree, 1.0, rng):
        os.utime(path)


WRONG: dict[str, Callable[[Path, Random], None]] = {
    "nothing is wrong": lambda tree, rng: None,
    "content of one file": _other_content(0.0),
    "content of 1 % of the files": _other_content(0.01),
    "content of 10 % of the files": _other_content(0.1),
    "content of 60 % of the files": _other_content(0.6),
    "1 % of the files missing": _missing(0.01),
    "5 % of the files missing": _missing(0.05),
    "a fifth of the folders missing": _folders_missing,
    "modes of 1 % of the files": _modes,
    "times of all files": _times,
}


# --- one repository ---------------------------------------------------------------------


class Subject:
    """A team's data, its repository as its tool made it, and everybody who looks at it."""

    def __init__(self, name: str, sandbox: Sandbox, shape: trees.Shape, seed: int) -> None:
        self.tool, self.sandbox, self.seed = TOOLS[name], sandbox, seed
        self.live, self.manifests = sandbox.path / shape.name, sandbox.tree("manifests").path
        self.repository, self.sound = sandbox.tree("repository"), sandbox.tree("sound")
        self.restored = sandbox.tree("restored")
        self.audits = {
            label: parse_plan(
                yaml.safe_dump(self._plan(name, sample)), name=label, folder=sandbox.path
            )
            for label, sample in AUDITS.items()
        }
        self.configurations = {
            name: sandbox.path / f"{name}.yaml"
            for name in ("configuration", *(f"spot_{each}" for each in range(len(SPOT_CHECKS))))
        }
        spots = [[], *([{"name": "spot", **each}] for each in SPOT_CHECKS.values())]
        for file, checks in zip(self.configurations.values(), spots, strict=True):
            file.write_text(yaml.safe_dump(self._borgmatic(checks)))
        trees.build(shape, sandbox.path, seed)
        self.must(self.tool.init)
        for hours in BACKUP_HOURS_AGO:
            for path in _some(self.live, 0.02, Random(f"{seed} {hours}")):
                path.write_bytes(path.read_bytes() + b"changed")
            self.back_up(datetime.now(UTC) - timedelta(hours=hours))
        self.truth = look(self.live)
        refill(self.sound, self.repository)

    def back_up(self, when: datetime) -> None:
        """As the team's job does it, with the manifest of `live` as it should be."""
        self.must(self.tool.backup.format(when=when, **self._places()))
        manifest.capture(self.live, self.manifests / f"{self.must(self.tool.newest)}.parquet")

    def wrong_backup(self, damage: Callable[[Path, Random], None], kind: str) -> None:
        """A backup, now, of something that is not the data, by its path."""
        data, wrong = self.sandbox.path / "data", self.sandbox.path / "wrong"
        subprocess.run(["cp", "-a", self.live, wrong], check=True)
        damage(wrong, Random(f"{self.seed} {kind}"))
        self.live.rename(data)
        wrong.rename(self.live)
        self.must(self.tool.backup.format(when=datetime.now(UTC), **self._places()))
        self.live.rename(wrong)
        data.rename(self.live)
        shutil.rmtree(wrong)
        manifest.capture(self.live, self.manifests / f"{self.must(self.tool.newest)}.parquet")

    def rows(self, family: str, kind: str) -> Iterator[dict[str, Any]]:
        """What each way of checking says of the repository as it is now."""
        self.restored.clear()
        restored = self._measured(lambda: self._fails(self.tool.restore))
        copy = self.restored.path / str(self.live).lstrip("/")
        common = {
            "family": family,
            "kind": kind,
            "harmful": restored[0] or not copy.exists() or look(copy) != self.truth,
        }
        found = {RESTORE: restored}
        self.restored.clear()
        for label, command in self.tool.checks.items():
            ready = command.format(**self._places())
            found[label] = self._measured(partial(self._fails, ready))
        for label in AUDITS:
            found[label] = self._measured(partial(self._audit_objects, label))
        for label, (noticed, seconds, size_bytes) in found.items():
            costs = {"seconds": seconds, "bytes_read": size_bytes}
            yield common | {"way": label, "noticed": noticed} | costs

    def _fails(self, command: str) -> bool:
        return self.run(command)[0] != 0

    def _audit_objects(self, label: str) -> bool:
        (spec,) = self.audits[label].drills()
        record = carry_out_steps(spec, MONTH, f"run-{time.monotonic_ns()}")
        return record.verdict is not Verdict.PASS

    def _plan(self, name: str, sample: dict[str, float] | None) -> dict[str, Any]:
        repository = {name: str(self.repository.path), "password": "env:BENCHMARK_PASSWORD"}
        return {
            "data_home": str(self.sandbox.path / "home"),
            "targets": {
                "mine": {
                    "repository": repository | {"path": str(self.live)},
                    "verify_against": {"manifests": str(self.manifests)},
                    "objectives": {"rpo_seconds": RPO_SECONDS},
                    "generations": 0,
                    "sample": sample,
                }
            },
        }

    def _borgmatic(self, checks: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "source_directories": [str(self.live)],
            "repositories": [{"path": str(self.repository.path)}],
            "checks": checks,
        }

    def _places(self) -> dict[str, str]:
        places = {**self.configurations, "live": self.live}
        return {name: shlex.quote(str(place)) for name, place in places.items()}

    def must(self, command: str) -> str:
        code, output = self.run(command)
        if code:
            raise click.ClickException(f"{command}: exit code {code}")
        return output.strip()

    def run(self, command: str) -> tuple[int, str]:
        """Exit code and output, by a client that never saw the repository."""
        with tempfile.TemporaryDirectory() as client:
            place = str(self.repository.path)
            places = {"RESTIC_REPOSITORY": place, "BORG_REPO": place}
            secrets = {"RESTIC_PASSWORD": SECRET, "BORG_PASSPHRASE": SECRET}
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=self.restored.path,
                env=os.environ | secrets | places | {"HOME": client, "BORG_BASE_DIR": client},
                capture_output=True,
                text=True,
                errors="surrogateescape",
                timeout=3600,
            )
        return done.returncode, done.stdout

    @staticmethod
    def _measured(way: Callable[[], bool]) -> tuple[bool, float, int]:
        """What it says, in how many seconds, and what all its processes read."""
        before, began = _bytes_read(), time.monotonic()
        noticed = way()
        return noticed, time.monotonic() - began, _bytes_read() - before


def _bytes_read() -> int:
    """By this process and those that it has waited for, pipes included: /proc/PID/io's `rchar`."""
    return int(Path("/proc/self/io").read_text().split()[1])


def measure(
    name: str, home: Path, shape: trees.Shape, seed: int, kinds: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Each damage once: one row for each way of checking."""
    with Sandbox.create(home, f"bench-{name}") as sandbox:
        subject = Subject(name, sandbox, shape, seed)
        for kind, damage in WRONG.items():
            if not kinds or kind in kinds:
                refill(subject.repository, subject.sound)
                subject.wrong_backup(damage, kind)
                yield from subject.rows("backup of other data", kind)
        for kind, fault in repository_faults().items():
            refill(subject.repository, subject.sound)
            wanted = not kinds or kind in kinds
            if wanted and inject([fault], subject.repository, Layer.REPOSITORY, seed):
                yield from subject.rows("repository", kind)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One line for each way."""
    lines = []
    for way, found in rows.groupby("way", sort=False):
        line: dict[str, object] = {"way": way}
        for family, part in found.groupby("family", sort=False):
            harmful = part[part["harmful"]]
            line[f"{family}, noticed"] = f"{harmful['noticed'].sum()} of {len(harmful)}"
        harmless = found[~found["harmful"]]
        line["harmless, but noticed"] = f"{harmless['noticed'].sum()} of {len(harmless)}"
        line["seconds"] = f"{found['seconds'].mean():.1f}"
        line["MB read"] = f"{found['bytes_read'].mean() / 1e6:.0f}"
        lines.append(line)
    return pd.DataFrame(lines)


def by_kind(rows: pd.DataFrame) -> pd.DataFrame:
    """Noticed of asked for each kind of damage; in brackets what did no harm."""
    lines = []
    for kind, found in rows.groupby("kind", sort=False):
        line: dict[str, object] = {"kind": kind}
        harmless = not found["harmful"].any()
        for way, part in found.groupby("way", sort=False):
            cell = f"{part['noticed'].sum()}/{len(part)}"
            line[str(way)] = f"({cell})" if harmless else cell
        lines.append(line)
    return pd.DataFrame(lines)


@click.command()
@click.option("--seeds", default=1, help="Data sets; each damage once in each.")
@click.option("--tool", "names", multiple=True, default=tuple(TOOLS), help="Can be repeated.")
@click.option("--kind", "kinds", multiple=True, help="Only this damage; can be repeated.")
@click.option("--files", default=10_000, help="In a data set.")
@click.option("--most-bytes", default=16 * 1024, help="Of the largest file.")
@click.option("--to", type=click.Path(path_type=Path), help="Folder for all rows, as Parquet.")
def main(
    seeds: int,
    names: tuple[str, ...],
    kinds: tuple[str, ...],
    files: int,
    most_bytes: int,
    to: Path | None,
) -> None:
    """Two tables for each tool that is installed."""
    os.environ["BENCHMARK_PASSWORD"] = SECRET
    shape = trees.Shape(files, min(1024, most_bytes // 16), most_bytes)
    for name in names:
        if missing := [need for need in TOOLS[name].needs if not shutil.which(need)]:
            console.print(f"{name}: not installed: {', '.join(missing)}")
            continue
        found: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory(prefix="bench-detection-") as folder:
            for seed in range(1, seeds + 1):
                found += measure(name, Path(folder), shape, seed, kinds)
        rows = pd.DataFrame(found)
        if to:
            to.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(to / f"{name}.parquet", index=False)
        console.print(f"{name}: {shape.name}, {seeds} seeds, load {os.getloadavg()[0]:.1f}\n")
        for table in (summary(rows), by_kind(rows)):
            click.echo(table.to_markdown(index=False) + "\n")


if __name__ == "__main__":
    main()
