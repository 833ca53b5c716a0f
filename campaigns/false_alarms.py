"""How often the analysis cries wolf, and what it finds: `python -m campaigns.false_alarms`.

Simulated drills with twelve metrics go through the code that makes the table of anomalies. A drill
is observed for 24 months, of which the first six are its first history.
"""

from collections.abc import Iterator, Mapping

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from recovery_pipelines.analysis.drills import anomalies
from recovery_pipelines.analysis.history import METRICS

MONTHS = 24
FIRST = 6
YEARS = (MONTHS - FIRST) / 12
NOISE = ("lognormal", "log-t5", "correlated .5", "AR .3", "lognormal, sigma .5")
AFFECTED = METRICS.index("recovery_seconds")

Array = NDArray[np.float64]


def noise(kind: str, rng: np.random.Generator) -> Array:
    """Months × metrics around 100; the standard deviations of the logarithms are .1 to .3."""
    shape = (MONTHS, len(METRICS))
    sigma = rng.uniform(0.1, 0.3, shape[1])
    standard = rng.standard_normal(shape)
    if kind == "log-t5":
        standard = rng.standard_t(5, shape) / np.sqrt(5 / 3)
    elif kind == "correlated .5":
        common = rng.standard_normal((MONTHS, 1))
        standard = np.sqrt(0.5) * common + np.sqrt(0.5) * standard
    elif kind == "AR .3":
        for month in range(1, MONTHS):
            standard[month] = 0.3 * standard[month - 1] + np.sqrt(1 - 0.3**2) * standard[month]
    elif kind == "lognormal, sigma .5":
        sigma = np.full(shape[1], 0.5)
    values: Array = 100 * np.exp(sigma * standard)
    return values


def events(values: Array) -> pd.DataFrame:
    """The anomalies of a drill with these values; `at` is the position of their first month."""
    months = [f"{2026 + at // 12}-{at % 12 + 1:02}-01" for at in range(len(values))]
    table = pd.DataFrame(values, columns=list(METRICS)).assign(drill="simulated", month=months)
    found = anomalies(table)
    return found.assign(at=[months.index(month) for month in found["first_month"]])


def false_alarms(kind: str, drills: int, seed: int) -> list[int]:
    """For each simulated drill without any change: the months in which an event began."""
    rng = np.random.default_rng([seed, NOISE.index(kind)])
    counts = []
    for _ in range(drills):
        found = events(noise(kind, rng))
        counts.append(found[found["at"] >= FIRST]["at"].nunique())
    return counts


CHANGES: Mapping[str, NDArray[np.floating]] = {
    "spike x2": np.where(np.arange(MONTHS) == 12, 2.0, 1.0),
    "spike x3": np.where(np.arange(MONTHS) == 12, 3.0, 1.0),
    "shift x1.5": np.where(np.arange(MONTHS) >= 12, 1.5, 1.0),
    "shift x2": np.where(np.arange(MONTHS) >= 12, 2.0, 1.0),
    "growth 10 % a month": 1.1 ** np.clip(np.arange(MONTHS) - 11, 0, None),
    "growth 5 % a month": 1.05 ** np.arange(MONTHS),
}


def detections(change: str, drills: int, seed: int) -> pd.DataFrame:
    """For each simulated drill with one affected metric (sigma .2): whether it was found in the
    month of the change, within six months and by the end, and by how many events."""
    rng = np.random.default_rng([seed, 100])
    rows = []
    for _ in range(drills):
        values = noise("lognormal", rng)
        calm = 100 * np.exp(0.2 * rng.standard_normal(MONTHS))
        values[:, AFFECTED] = calm * CHANGES[change]
        found = events(values)
        found = found[(found["metric"] == METRICS[AFFECTED]) & (found["last_month"] >= "2027")]
        first = found["at"].min() if len(found) else MONTHS
        rows.append(
            {
                "at_once": first <= 12,
                "within_6": first <= 17,
                "by_the_end": len(found) > 0,
                "one_event": len(found) == 1,
            }
        )
    return pd.DataFrame(rows)


def power_of_repeats(repeats: int, between: float, drills: int, seed: int) -> float:
    """How often a recovery 1.5 times as slow after 12 drills is found in that month, if the median
    of so many repeats counts. `between` is the share of the variance (deviation .2 in all) that
    lies between the months, and that repeats do not lessen."""
    rng = np.random.default_rng([seed, 200])
    found = 0
    for _ in range(drills):
        values = noise("lognormal", rng)[:13]
        months = np.sqrt(between) * rng.standard_normal((13, 1))
        within = np.sqrt(1 - between) * rng.standard_normal((13, repeats))
        values[:, AFFECTED] = 100 * np.exp(0.2 * np.median(months + within, axis=1))
        values[12, AFFECTED] *= 1.5
        seen = events(values)
        found += bool(((seen["metric"] == METRICS[AFFECTED]) & (seen["at"] == 12)).any())
    return found / drills


def _rates(drills: int, seed: int) -> Iterator[dict[str, object]]:
    for kind in NOISE:
        counts = false_alarms(kind, drills, seed)
        years = drills * YEARS
        low = stats.chi2.ppf(0.025, 2 * sum(counts)) / 2 if sum(counts) else 0.0
        high = stats.chi2.ppf(0.975, 2 * sum(counts) + 2) / 2
        yield {
            "noise": kind,
            "drill-years": years,
            "months with a false alarm, a year": round(sum(counts) / years, 2),
            "95 % interval": f"{low / years:.2f} to {high / years:.2f}",
        }


@click.command()
@click.option("--drills", default=1000, show_default=True, help="Simulated drills for each line.")
@click.option("--seed", default=1, show_default=True)
def main(drills: int, seed: int) -> None:
    """Print the tables of docs/analysis.md."""
    click.echo(pd.DataFrame(_rates(drills, seed)).to_markdown(index=False))
    shares = {change: detections(change, drills, seed).mean().round(2) for change in CHANGES}
    click.echo("\n" + pd.DataFrame(shares).T.to_markdown())
    power = [
        {
            "repeats": repeats,
            **{
                f"{between:.0%} of the variance between months": power_of_repeats(
                    repeats, between, drills, seed
                )
                for between in (0.0, 0.25, 0.5)
            },
        }
        for repeats in (1, 3, 5)
    ]
    click.echo("\n" + pd.DataFrame(power).round(2).to_markdown(index=False))


if __name__ == "__main__":
    main()
