"""`python -m campaigns.matrix`: the detection matrix over many seeds. Goes on where it stopped."""

import logging
import sys
from collections.abc import Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import pandas as pd

from recovery_pipelines.faults.base import Layer
from recovery_pipelines.matrix.cells import (
    cells,
    faults,
    interval,
    judge,
    silent_restores,
    summed,
    totals,
)
from recovery_pipelines.matrix.run import keep_rows, trials
from recovery_pipelines.plan import find_plan, load_plan
from recovery_pipelines.sandbox import reap
from recovery_pipelines.verdict import Verdict

ENGINES = (
    *("tar", "rsync", "restic", "borg", "sqlite", "redis_rdb", "redis_aof"),
    *("pgbackrest", "pg_basebackup"),
)
_SIZE_BYTES = 1_000_000


@click.command()
@click.option("--seeds", default=25, help="Data sets per engine; 25 to 51 injections in each.")
@click.option("--first", default=1, help="The first seed.")
@click.option("--engine", "engines", multiple=True, default=ENGINES, help="Can be repeated.")
@click.option("--clean-only", is_flag=True, help="Only restores without a fault.")
@click.option("--processes", default=2)
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for trees and repositories; a tmpfs is fast. Default: below the output.",
)
@click.option("--deadline", type=float, help="Begin nothing more after so many seconds.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=lambda: load_plan(find_plan()).data_home / "campaign" / "matrix",
    help="Folder for the rows; default: campaign/matrix in the data home.",
)
def main(
    seeds: int,
    first: int,
    engines: tuple[str, ...],
    clean_only: bool,
    processes: int,
    home: Path | None,
    deadline: float | None,
    output: Path,
) -> None:
    """Plant every kind of fault for each engine and seed; exit 1 if any damage was missed."""
    output = output.absolute()
    wanted = [(engine, seed) for seed in range(first, first + seeds) for engine in engines]
    missing = [each for each in wanted if not _path(output, *each).exists()]
    home = home or output / "home"
    home.mkdir(parents=True, exist_ok=True)
    reap(home)
    # Each process makes sandboxes of its own, which a forked copy of ours could not remove.
    with ProcessPoolExecutor(processes, get_context("spawn"), _be_quiet) as pool:
        running = [pool.submit(_measure, output, home, *each, not clean_only) for each in missing]
        try:
            for number, done in enumerate(as_completed(running, deadline), 1):
                click.echo(f"{number:4} of {len(missing)} {done.result()}")
        except TimeoutError:
            click.echo(f"{deadline:g} s are over")
            pool.shutdown(cancel_futures=True)
    rows = pd.concat(
        [pd.read_parquet(path) for path in sorted(output.glob("*.parquet"))], ignore_index=True
    )
    (output / "summary.md").write_text(summary(rows), encoding="utf-8")
    click.echo(f"{summary(rows)}\nrows and summary in {output}")
    wrong = [result for result in judge(rows) if result.verdict is not Verdict.PASS]
    for result in wrong:
        click.echo(f"{result.verdict}: {result.name}: {result.found}", err=True)
    sys.exit(1 if wrong else 0)


def summary(rows: pd.DataFrame) -> str:
    """The figures as Markdown."""
    wrong = int(faults(rows)["differs"].sum())
    lines = [f"{len(faults(rows))} injections, {wrong} of which left data wrong."]
    lines += [f"{result.name}: {result.verdict}, {result.found}." for result in judge(rows)]
    if faults(rows).empty:
        return "\n".join(lines) + "\n"
    counted = cells(rows)
    in_copies = counted[counted["layer"] == Layer.RESTORED_COPY]
    parts = [
        "\n".join(lines),
        _markdown(_with_interval(totals(rows))),
        "### Faults in the repository: detected of asked",
        *(
            f"{engine}:\n\n{_markdown(_pivot(of_engine))}"
            for engine, of_engine in counted[counted["layer"] == Layer.REPOSITORY].groupby(
                "engine", sort=False
            )
        ),
        "### Faults in a restored copy: detected of asked, all engines",
        _markdown(_pivot(summed(in_copies, "kind", "detector"))),
        "### Restores that reported success and brought wrong data",
        _markdown(silent_restores(rows)),
        "### Mean seconds per layer, 1 MB of data",
        _markdown(
            counted[counted["layer"] == Layer.REPOSITORY]
            .pivot_table("seconds", "engine", "detector", sort=False)
            .round(3)
            .reset_index()
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _be_quiet() -> None:
    logging.getLogger("recovery_pipelines").setLevel(logging.ERROR)


def _path(output: Path, engine: str, seed: int) -> Path:
    return output / f"{engine}-{seed:05}.parquet"


def _measure(output: Path, home: Path, engine: str, seed: int, faults: bool) -> str:
    rows = trials(home, engine, seed, _SIZE_BYTES, faults=faults)
    keep_rows(_path(output, engine, seed), rows)
    return f"{engine} {seed}: {len(rows)} trials"


def _with_interval(table: pd.DataFrame) -> pd.DataFrame:
    intervals = [
        "{:.2%} to {:.2%}".format(*interval(row["missed"], row["data_wrong"]))
        for row in table.to_dict("records")
    ]
    return table.assign(**{"miss rate, 95 %": intervals})


def _pivot(counted: pd.DataFrame) -> pd.DataFrame:
    """Kinds down, detectors across; with the exact interval where not all was detected."""
    texts = [_text(row) for row in counted.to_dict("records")]
    wide = counted.assign(text=texts).pivot(index="kind", columns="detector", values="text")
    order = [name for name in dict.fromkeys(counted["detector"]) if name in wide]
    return wide.loc[list(dict.fromkeys(counted["kind"])), order].fillna("-").reset_index()


def _text(cell: Mapping[Hashable, Any]) -> str:
    text = f"{cell['detected']}/{cell['total']}"
    all_detected = cell["detected"] == cell["total"]
    return text if all_detected else f"{text} ({cell['rate_low']:.0%}–{cell['rate_high']:.0%})"


def _markdown(table: pd.DataFrame) -> str:
    return str(table.to_markdown(index=False))


if __name__ == "__main__":
    main()
