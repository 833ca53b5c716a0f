"""What a drill costs beside the bare tool, and what Dagster adds to it."""

import shutil
import signal
import sys
import tempfile
import uuid
from pathlib import Path

import click
import trees
import yaml
from race import RECOVERY, Competitor, measure, shell

from recovery_pipelines.drills.recoveries import carry_out
from recovery_pipelines.engines.base import engine_class
from recovery_pipelines.plan import parse_plan
from recovery_pipelines.verdict import Verdict

MONTH = "2026-11-01"
BARE = {
    "tar": (
        "mkdir -p repo out && tar --create --use-compress-program='zstd -T0' --acls --xattrs "
        "--sparse --format=posix --listed-incremental=snar --file=repo/a.tar.zst -C {tree} . && "
        "tar --extract --use-compress-program=zstd --acls --xattrs --preserve-permissions "
        "--listed-incremental=/dev/null --file=repo/a.tar.zst -C out"
    ),
    "restic": (
        "export RESTIC_PASSWORD=bench RESTIC_REPOSITORY=repo && restic init && cd {tree} && "
        "restic -r {work}/repo --no-cache backup . && cd {work} && "
        "restic --no-cache restore latest --target out"
    ),
}


def tool_race(engine: str, tree: Path, work: Path, rounds: int) -> None:
    """A full backup and its restore: through our adapter, and by the bare tool."""

    def through_adapter() -> None:
        repository, state, staging = (work / name for name in ("repo", "state", "out"))
        for folder in (repository, state, staging):
            folder.mkdir()
        adapter = engine_class(engine)(repository, state, timeout_seconds=600)
        adapter.init()
        adapter.restore(adapter.backup(tree, None), staging)

    def clear() -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()

    bare = BARE[engine].format(tree=tree, work=work)
    measure(
        f"full backup and restore with {engine}",
        "through our adapter",
        [
            Competitor("through our adapter", through_adapter),
            Competitor(f"bare {engine}", f"cd '{work}' && {bare}", (engine,)),
        ],
        clear,
        rounds,
    )


def drill_race(engine: str, size: str, home: Path, rounds: int) -> None:
    """A whole corruption_recovery: four backups, faults, detection, restores, checks, self-test."""
    content = {
        "data_home": str(home / "data"),
        "targets": {"test_dataset": {"dataset": {"size": size}, "engines": [engine]}},
    }
    plan_file = home / "recovery.yaml"
    plan_file.write_text(yaml.safe_dump(content))
    plan = parse_plan(plan_file.read_text(), name=plan_file.name, folder=home)
    spec = next(each for each in plan.drills() if each.scenario.name == "corruption_recovery")

    def without_dagster() -> None:
        if carry_out(spec, MONTH, str(uuid.uuid4())).verdict is not Verdict.PASS:
            raise SystemExit("the drill did not pass: nothing to measure")

    command = shell(
        *RECOVERY, "drill", "--plan", plan_file, "--scenario", spec.scenario.name, "--month", MONTH
    )
    measure(
        f"{spec.name} on {size}",
        "without Dagster",
        [
            Competitor("without Dagster", without_dagster),
            Competitor("recovery drill, report included", command),
        ],
        lambda: None,
        rounds,
    )


@click.command()
@click.option("--size", default="256MB", help="Of the test data.")
@click.option("--files", default=20_000, help="Of the tree for the bare tools, 1 to 16 KiB each.")
@click.option("--engine", "engines", multiple=True, default=tuple(BARE))
@click.option("--rounds", default=3)
def main(size: str, files: int, engines: tuple[str, ...], rounds: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that scratch space is freed
    with tempfile.TemporaryDirectory(prefix="bench-drill-") as temporary:
        scratch = Path(temporary)
        tree = trees.build(trees.small(files), scratch)
        for engine in engines:
            tool_race(engine, tree, scratch / "work", rounds)
            drill_race(engine, size, scratch, rounds)


if __name__ == "__main__":
    main()
