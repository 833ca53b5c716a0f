"""Sample sizes and bounds are exact, and what is chosen follows from the seed alone."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from campaigns.sampling import DAMAGE, METHODS, found_in, simulate
from recovery_pipelines.audits.sampling import (
    allocate,
    choose,
    choose_by_size,
    log_worst_miss,
    sample_size,
    upper_limit,
)
from recovery_pipelines.audits.verification import Outcome, bounds, draw
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.plan.repositories import Sample


def missed(population: int, bad: int, sampled: int) -> Fraction:
    """The exact probability that no bad file is in the sample."""
    return Fraction(math.comb(population - bad, sampled), math.comb(population, sampled))


def at_most(found: int, population: int, bad: int, sampled: int) -> Fraction:
    ways = sum(
        math.comb(bad, each) * math.comb(population - bad, sampled - each)
        for each in range(found + 1)
        if each <= sampled
    )
    return Fraction(ways, math.comb(population, sampled))


@pytest.mark.parametrize(
    ("population", "share", "sizes"),
    [
        (100, 0.05, (45, 59)),
        (1_000, 0.01, (258, 368)),
        (10_000, 0.001, (2_588, 3_689)),
        (10_000, 0.0001, (9_500, 9_900)),
        (1_000_000, 0.001, (2_990, 4_593)),
        (1_000_000, 0.0001, (29_512, 45_006)),
    ],
)
def test_published_sizes(population: int, share: float, sizes: tuple[int, int]) -> None:
    assert (sample_size(population, share, 0.95), sample_size(population, share, 0.99)) == sizes


@settings(max_examples=200, deadline=None)
@given(
    population=st.integers(1, 2_000),
    percent=st.integers(1, 99),
    confidence=st.sampled_from([90, 95, 99]),
)
def test_the_size_is_enough_and_no_smaller_one_is(
    population: int, percent: int, confidence: int
) -> None:
    bad = max(1, -(-percent * population // 100))
    allowed = 1 - Fraction(confidence, 100)
    size = sample_size(population, percent / 100, confidence / 100)
    assert missed(population, bad, size) <= allowed
    assert size == 1 or missed(population, bad, size - 1) > allowed


@pytest.mark.parametrize(("found", "limit"), [(0, 97), (1, 155), (2, 206), (3, 254)])
def test_published_limits(found: int, limit: int) -> None:
    assert upper_limit(10_000, 300, found, 0.95) == limit


def test_the_limit_covers_the_truth_as_often_as_it_says_for_every_truth() -> None:
    population, sampled = 60, 20
    limits = [upper_limit(population, sampled, found, 0.95) for found in range(sampled + 1)]
    assert limits == sorted(limits)
    for bad in range(population + 1):
        below = [found for found, limit in enumerate(limits) if limit < bad]
        if below:
            assert at_most(max(below), population, bad, sampled) <= Fraction(5, 100)


def test_a_complete_sample_leaves_nothing_open() -> None:
    assert upper_limit(50, 50, 0, 0.95) == 0
    assert upper_limit(50, 50, 7, 0.95) == 7


def test_the_choice_follows_from_the_seed_and_not_from_the_order() -> None:
    paths = [b"file-%d" % number for number in range(500)]
    chosen = choose(paths, 60, b"head")
    assert chosen == choose(paths[::-1], 60, b"head")
    assert len(set(chosen)) == 60
    assert set(chosen) != set(choose(paths, 60, b"another head"))


def test_by_size_a_share_of_the_bytes_escapes_as_seldom_as_promised() -> None:
    """One large and 300 small files: 5 % of the bytes in the small ones, and in the large one."""
    paths = [b"%d" % number for number in range(300)]
    sizes = np.full(300, 1_000, dtype=np.int64)
    bad = set(paths[:15])
    seeds = [b"%d" % number for number in range(2_000)]
    escaped = sum(not bad & set(choose_by_size(paths, sizes, 0.05, 0.95, seed)) for seed in seeds)
    assert escaped / len(seeds) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(seeds))
    sizes[7] = 1_000_000
    assert all(b"7" in choose_by_size(paths, sizes, 0.05, 0.95, seed) for seed in seeds[:50])


@pytest.mark.parametrize(
    "impossible",
    [
        lambda: sample_size(0, 0.1, 0.95),
        lambda: sample_size(10, 0.0, 0.95),
        lambda: sample_size(10, 0.1, 1.0),
        lambda: upper_limit(10, 11, 0, 0.95),
        lambda: upper_limit(10, 5, 6, 0.95),
        lambda: choose_by_size([b"a"], np.zeros(1, dtype=np.int64), 0.1, 0.95, b""),
    ],
)
def test_what_says_nothing_is_refused(impossible: object) -> None:
    with pytest.raises(RecoveryError):
        impossible()  # type: ignore[operator]


def worst_by_enumeration(strata: list[int], sampled: list[int], bad: int) -> Fraction:
    """The greatest chance that no bad file is seen, over every way to place them."""
    ways = product(*(range(min(bad, size) + 1) for size in strata))
    return max(
        math.prod(
            (
                missed(size, each, number)
                for size, each, number in zip(strata, way, sampled, strict=True)
            ),
            start=Fraction(1),
        )
        for way in ways
        if sum(way) == bad
    )


@pytest.mark.parametrize("strata", [[7, 3], [5, 5, 2], [9, 1, 1], [6]])
def test_the_worst_place_is_the_worst(strata: list[int]) -> None:
    for count in range(1, sum(strata)):
        sampled = allocate(strata, count)
        for bad in range(1, sum(strata) + 1):
            worst = worst_by_enumeration(strata, sampled, bad)
            assert math.isclose(math.exp(log_worst_miss(strata, sampled, bad)), worst, abs_tol=1e-9)


def test_boosting_small_strata_loses_the_bound() -> None:
    strata = [9_000, 900, 100]
    proportional, boosted = (
        math.exp(log_worst_miss(strata, sampled, 100)) for sampled in ([269, 27, 3], [200, 60, 39])
    )
    assert proportional == pytest.approx(0.047, abs=0.001)
    assert boosted == pytest.approx(0.104, abs=0.001)


@pytest.mark.parametrize("method", METHODS)
def test_no_bound_is_below_what_was_found_outside_the_draw(method: str) -> None:
    """Files whose last verification is longest ago are looked at besides."""
    paths = [b"%d" % number for number in range(1_000)]
    sizes = dict.fromkeys(paths, 10)
    drawn = draw(paths, [10] * 1_000, Sample(bad_share=0.05, by=method), b"seed")  # type: ignore[arg-type]
    bad = dict.fromkeys(sorted(set(paths) - set(drawn.drawn))[:800], "bad")
    outcome = Outcome(1_000, 10_000, 900, 9_000, bad, 0, drawn.drawn, 0, sizes)
    known = bounds(outcome, drawn)
    assert (known.bytes == 8_000) if method == "bytes" else (known.files == 800)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("method", METHODS)
def test_bounds_cover_the_truth_wherever_the_damage_is(method: str, damage: str) -> None:
    """A slice of `python -m campaigns.sampling`."""
    result = simulate(method, damage, audits=100, files=250, seed=5)
    assert result.covered >= stats.binom.ppf(0.001, result.audits, 0.95)
    assert result.bound < 0.5


def test_one_percent_of_100_000_files_is_found_by_reading_few() -> None:
    read, found = found_in(100_000, 1_000, audits=3, seed=1)
    assert read < 1_000 and found == 3
    assert missed(100_000, 1_000, read) <= Fraction(1, 100)
