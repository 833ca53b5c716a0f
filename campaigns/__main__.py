"""`python -m campaigns`: run all parts, or those named; exit 1 if anything was missed or left."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import pandas as pd

from campaigns.clean_runs import awkward_runs, clean_runs
from campaigns.fuzz import fuzz
from campaigns.history import open_history
from campaigns.hostile import hostile
from campaigns.injections import Row, source_injections
from campaigns.io_errors import io_errors
from campaigns.kills import kills, service_kills
from campaigns.problems import HELD_OUT_SEEDS, problem_histories
from campaigns.soak import soak
from campaigns.story import stories
from campaigns.summary import PARTS, failures, summary
from recovery_pipelines.matrix.run import keep_rows
from recovery_pipelines.plan import find_plan, load_plan

INJECTION_SEEDS = {"tar": range(1, 6), "restic": range(11, 16)}
"""Different ones, so that no damage is counted twice."""
CLEAN_SEEDS = {"tar": range(101, 141), "restic": range(201, 212)}
SELF_TEST_EVERY = 10
STORY_SEEDS = range(101, 121)
RANDOM_KILLS = 60
SERVICE_KILLS = 120
KILL_SEED = 1
_KEEP_EVERY_SECONDS = 10
FUZZ_ROUNDS = 2000
IO_ERRORS = 400
SOAK_MONTHS = 120


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: load_plan(find_plan()).data_home / "campaign",
    help="Folder for the tables and the sandboxes; default: campaign/ in the data home.",
)
def main(parts: tuple[str, ...], output: Path) -> None:
    """Injections, clean runs and kills; each part has its rows in <output>/<part>.parquet."""
    logging.getLogger("recovery_pipelines").setLevel(logging.ERROR)
    output = output.absolute()
    producers: dict[str, Callable[[Path], Iterator[Row]]] = {
        "injections": _injections,
        "clean_runs": _clean_runs,
        "kills": _kills,
        "service_kills": _service_kills,
        "hostile": hostile,
        "fuzz": _fuzz,
        "io_errors": _io_errors,
        "soak": _soak,
        "recommendations": _recommendations,
        "story": _story,
    }
    for part in parts or PARTS:
        _keep(producers[part](output / "home"), output / f"{part}.parquet")
    tables = {
        part: pd.read_parquet(output / f"{part}.parquet")
        for part in PARTS
        if (output / f"{part}.parquet").exists()
    }
    text = summary(tables)
    (output / "summary.md").write_text(text, encoding="utf-8")
    click.echo(f"{text}\nresults in {output}")
    found = failures(tables)
    for line in found:
        click.echo(f"FAIL: {line}", err=True)
    sys.exit(1 if found else 0)


def _injections(home: Path) -> Iterator[Row]:
    for engine, seeds in INJECTION_SEEDS.items():
        for seed in seeds:
            with open_history(home, engine, seed) as history:
                yield from source_injections(history, seed)


def _clean_runs(home: Path) -> Iterator[Row]:
    for engine, seeds in CLEAN_SEEDS.items():
        yield from awkward_runs(home, engine)
        for seed in seeds:
            with open_history(home, engine, seed) as history:
                yield from clean_runs(history, seed, with_self_test=seed % SELF_TEST_EVERY == 1)


def _kills(home: Path) -> Iterator[Row]:
    return kills(home, KILL_SEED, RANDOM_KILLS)


def _service_kills(home: Path) -> Iterator[Row]:
    """Goes on where it stopped: the first rows are those of earlier calls."""
    path = home.parent / "service_kills.parquet"
    earlier: list[Any] = pd.read_parquet(path).to_dict("records") if path.exists() else []
    yield from earlier
    yield from service_kills(home / "services", range(len(earlier), SERVICE_KILLS))


def _fuzz(home: Path) -> Iterator[Row]:
    folder = home / "fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    return fuzz(folder, KILL_SEED, FUZZ_ROUNDS)


def _io_errors(home: Path) -> Iterator[Row]:
    return io_errors(home / "io_errors", range(IO_ERRORS))


def _soak(home: Path) -> Iterator[Row]:
    return soak(home / "soak", KILL_SEED, SOAK_MONTHS)


def _recommendations(_home: Path) -> Iterator[Row]:
    return problem_histories(HELD_OUT_SEEDS)


def _story(_home: Path) -> Iterator[Row]:
    return stories(STORY_SEEDS)


def _keep(rows: Iterable[Row], path: Path) -> None:
    """Write the rows so far now and then, so that a campaign that is stopped leaves them."""
    kept: list[Row] = []
    kept_at = time.monotonic()
    for row in rows:
        kept.append(row)
        shown = (
            "engine",
            "seed",
            "layer",
            "kind",
            "generation",
            "drill",
            "by",
            "reached",
            "route",
            "archive",
            "call",
            "error",
            "when",
            "parser",
            "month",
            "rss_bytes",
            "descriptors",
            "data_bytes",
            "verdict",
            "wrong",
            "rule",
            "said",
        )
        words = [str(row[key]) for key in shown if key in row]
        click.echo(f"{len(kept):4} {' '.join(words)} {row['seconds']:.1f} s")
        if time.monotonic() > kept_at + _KEEP_EVERY_SECONDS:
            keep_rows(path, pd.DataFrame(kept))
            kept_at = time.monotonic()
    keep_rows(path, pd.DataFrame(kept))


if __name__ == "__main__":
    main()
