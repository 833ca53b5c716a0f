"""Do the bounds of sampled audits hold? Many simulated audits of data with known damage.

`python -m campaigns.sampling`: each audit draws with the audits' own functions, from a seed of its
own, and states its bound; the truth is known. A bound that is stated at 95 % must cover it in at
least 95 % of the audits, wherever the damage is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy import stats

from recovery_pipelines.audits.sampling import choose, sample_size
from recovery_pipelines.audits.verification import Outcome, Sampling, bounds, draw
from recovery_pipelines.plan.repositories import Sample

METHODS = ("files", "folders", "bytes")
_SHARES_BAD = (0.002, 0.01, 0.03, 0.05, 0.1)
_FOLDERS = (0.85, 0.1, 0.04, 0.01)
"""The share of the files that lies in each."""


@dataclass(frozen=True)
class Result:
    """How often the bound covered the truth."""

    method: str
    damage: str
    audits: int
    covered: int
    sampled: float
    """Files looked at, mean."""
    bound: float
    """Mean, of all files or bytes."""

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % interval of the coverage."""
        found = stats.binomtest(self.covered, self.audits).proportion_ci(0.95, "exact")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class _Population:
    paths: list[bytes]
    sizes: npt.NDArray[np.int64]
    folder: npt.NDArray[np.int64]


def population(files: int, rng: np.random.Generator) -> _Population:
    """Files in four folders of very unlike size, of log-normal sizes."""
    folder = np.repeat(np.arange(len(_FOLDERS)), np.ceil(np.array(_FOLDERS) * files).astype(int))
    paths = [b"folder%d/%06d" % (place, number) for number, place in enumerate(folder)]
    sizes = np.maximum(1, rng.lognormal(9, 2, len(paths))).astype(np.int64)
    return _Population(paths, sizes, folder)


def _anywhere(data: _Population, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return rng.permutation(len(data.paths))[:count]


def _in_small_folders(
    data: _Population, count: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    return np.argsort(-data.folder, kind="stable")[:count]


def _in_small_files(
    data: _Population, count: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    return np.argsort(data.sizes, kind="stable")[:count]


DAMAGE: dict[str, Callable[[_Population, int, np.random.Generator], npt.NDArray[np.int64]]] = {
    "anywhere": _anywhere,
    "in the smallest folders": _in_small_folders,
    "in the smallest files": _in_small_files,
}


def simulate(method: str, damage: str, audits: int, files: int, seed: int) -> Result:
    """Audits of populations with damage of that kind, shares in turn."""
    rng = np.random.default_rng(seed)
    data = population(files, rng)
    sample = Sample(bad_share=0.03, by=method)  # type: ignore[arg-type]
    total = data.sizes.sum() if method == "bytes" else len(data.paths)
    covered, sampled, stated = 0, 0, 0.0
    for number in range(audits):
        share = _SHARES_BAD[number % len(_SHARES_BAD)]
        places = DAMAGE[damage](data, max(1, round(share * len(data.paths))), rng)
        bad = {data.paths[place]: "bad" for place in places}
        drawn = draw(data.paths, data.sizes.tolist(), sample, b"audit %d %d" % (seed, number))
        known = bounds(_outcome(data, drawn, bad), drawn)
        bound = known.bytes if method == "bytes" else known.files
        truth = int(data.sizes[places].sum()) if method == "bytes" else len(bad)
        assert bound is not None
        covered += bound >= truth
        sampled += len(drawn.drawn)
        stated += bound / total
    return Result(method, damage, audits, covered, sampled / audits, stated / audits)


def _outcome(data: _Population, sampling: Sampling, bad: dict[bytes, str]) -> Outcome:
    good = [path for path in sampling.drawn if path not in bad]
    found = {path: bad[path] for path in sampling.drawn if path in bad}
    sizes = dict(zip(data.paths, data.sizes.tolist(), strict=True))
    size = int(data.sizes.sum())
    return Outcome(len(data.paths), size, len(sampling.drawn), 0, found, 0, good, 0, sizes)


def found_in(files: int, bad: int, audits: int, seed: int) -> tuple[int, int]:
    """Files read in each audit that must find 1 % of damage at 99 %, and audits that found any."""
    rng = np.random.default_rng(seed)
    paths = [b"%06d" % number for number in range(files)]
    count = sample_size(files, 0.01, 0.99)
    damaged = {paths[place] for place in rng.permutation(files)[:bad]}
    return count, sum(
        not damaged.isdisjoint(choose(paths, count, b"audit %d %d" % (seed, number)))
        for number in range(audits)
    )


def every(audits: int, files: int) -> Iterator[Result]:
    """Each method with each kind of damage, `audits` of each method in all."""
    for method in METHODS:
        for number, damage in enumerate(DAMAGE):
            yield simulate(method, damage, audits // len(DAMAGE), files, number)


@click.command()
@click.option("--audits", default=30_000, help="Of each method.")
@click.option("--files", default=1_000)
@click.option("--large", default=200, help="Audits of 100 000 files with 1 % damaged.")
def main(audits: int, files: int, large: int) -> None:
    """Print how often the bounds cover the truth, and how surely 1 % of damage is found."""
    console = Console()
    table = Table(title=f"Bounds at 95 %, {files:,} files")
    for heading in ("sample by", "damage", "audits", "covered", "95 % interval", "files", "bound"):
        table.add_column(heading)
    for result in every(audits, files):
        low, high = result.interval
        table.add_row(
            result.method,
            result.damage,
            f"{result.audits:,}",
            f"{result.covered / result.audits:.2%}",
            f"{low:.2%} – {high:.2%}",
            f"{result.sampled:.0f}",
            f"{result.bound:.2%}",
        )
    console.print(table)
    if large:
        count, found = found_in(100_000, 1_000, large, 1)
        console.print(f"1 % of 100 000 files: found in {found} of {large} audits of {count} files")


if __name__ == "__main__":
    main()
