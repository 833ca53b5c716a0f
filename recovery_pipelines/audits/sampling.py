"""How many files to verify for a statement about all of them, which ones, and what it proves.

Sampling is without replacement and the bounds hold for every population: exact (hypergeometric)
or conservative, as each function says. Which files are chosen
follows from a seed and their paths alone: with the previous head of the evidence chain as the
seed nobody can pick easy files, and an auditor can derive the list again.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy

from recovery_pipelines.errors import RecoveryError


def sample_size(population: int, bad_share: float, confidence: float) -> int:
    """Least n such that n good files of `population` prove "less than `bad_share` is bad".

    If at least ceil(bad_share * population) were bad, a sample of n would show one of them with
    probability `confidence` or more.
    """
    _require_shares(bad_share, confidence)
    if population < 1:
        raise RecoveryError("there is no file to sample: nothing can be said")
    bad = _bad_files(population, bad_share)
    low, high = 1, population - bad + 1
    while low < high:
        middle = (low + high) // 2
        if _log_all_good(population, bad, middle) <= _allowed(confidence):
            high = middle
        else:
            low = middle + 1
    return low


def upper_limit(population: int, sampled: int, bad_found: int, confidence: float) -> int:
    """Most bad files that `population` may hold, given `bad_found` among `sampled`.

    The greatest D with P(at most `bad_found` found | D) > 1 - confidence: the true number is
    above it in at most 1 - confidence of all samples.
    """
    _require_shares(0.5, confidence)
    if not 0 <= bad_found <= sampled <= population:
        raise RecoveryError(
            f"{bad_found} bad of {sampled} sampled of {population} is impossible: check the counts"
        )
    low, high = bad_found, population - (sampled - bad_found)
    while low < high:
        middle = (low + high + 1) // 2
        if scipy.stats.hypergeom.cdf(bad_found, population, middle, sampled) > 1 - confidence:
            low = middle
        else:
            high = middle - 1
    return low


def choose(paths: Sequence[bytes], count: int, seed: bytes) -> list[bytes]:
    """`count` of `paths`, each set of that size alike likely over seeds."""
    return sorted(paths, key=lambda path: _draw(seed, path))[:count]


def choose_by_size(
    paths: Sequence[bytes],
    sizes_bytes: npt.NDArray[np.int64],
    bad_share: float,
    confidence: float,
    seed: bytes,
) -> list[bytes]:
    """Paths such that, if all are good, less than `bad_share` of the bytes is bad.

    A file is chosen with probability min(1, c * size / total), c = ln(1 / (1 - confidence)) /
    bad_share, so any files that hold that share of the bytes all escape with a probability of at
    most 1 - confidence. Empty files are never chosen.
    """
    chances = _chances(sizes_bytes, bad_share, confidence)
    return [
        path
        for path, chance in zip(paths, chances.tolist(), strict=True)
        if _draw(seed, path) < chance * 2**64
    ]


def byte_limit(
    sizes_bytes: npt.NDArray[np.int64],
    bad_share: float,
    confidence: float,
    bad_sizes_bytes: Sequence[int],
) -> int:
    """Most bytes that bad files may hold, given the sizes of those that `choose_by_size` found bad.

    Files that were certain to be chosen are known. Of the others the number found is a sum of
    independent draws whose mean is c * bytes / total, so it is at most x with a probability of no
    more than a Poisson variable of that mean (Hoeffding 1956).
    """
    total_bytes = int(sizes_bytes.sum())
    rate = _strength(bad_share, confidence) / total_bytes
    certain = [size for size in bad_sizes_bytes if size * rate >= 1]
    lots = len(bad_sizes_bytes) - len(certain)
    most: int = math.ceil(scipy.special.gammaincinv(lots + 1, confidence) / rate)
    uncertain_bytes = int(sizes_bytes[sizes_bytes * rate < 1].sum())
    return sum(certain) + min(uncertain_bytes, most)


def allocate(strata: Sequence[int], count: int) -> list[int]:
    """How many of each stratum: their share of `count`, rounded up, so at least one of each."""
    population = sum(strata)
    return [min(size, -(-count * size // population)) for size in strata]


def stratified_size(strata: Sequence[int], bad_share: float, confidence: float) -> int:
    """Least count such that `allocate` proves "less than `bad_share` is bad", wherever it is.

    Unlike one sample of all, samples of strata depend on where the bad files are: the worst place
    counts.
    """
    _require_shares(bad_share, confidence)
    population = sum(strata)
    if population < 1:
        raise RecoveryError("there is no file to sample: nothing can be said")
    bad = _bad_files(population, bad_share)
    low, high = 1, population
    while low < high:
        middle = (low + high) // 2
        if log_worst_miss(strata, allocate(strata, middle), bad) <= _allowed(confidence):
            high = middle
        else:
            low = middle + 1
    return low


def log_worst_miss(strata: Sequence[int], sampled: Sequence[int], bad: int) -> float:
    """ln of the greatest chance, over all places of `bad` files, that none is in the sample.

    The chance is a product over the strata, and in each the next bad file lowers it by more than
    the one before: so the cheapest next places together are the worst.
    """
    costs = [
        np.log1p(-number / (size - np.arange(min(bad, size - number))))
        for size, number in zip(strata, sampled, strict=True)
        if size > number
    ]
    found = np.concatenate(costs) if costs else np.empty(0)
    if len(found) < bad:
        return -math.inf
    return float(-np.partition(-found, bad - 1)[:bad].sum()) if bad else 0.0


def stratified_limit(
    strata: Sequence[int], sampled: Sequence[int], bad_found: int, confidence: float
) -> int:
    """Most bad files that all strata together may hold, given `bad_found` in their samples.

    Exact for none found (the worst place). Else conservative: the number found is a sum of
    independent draws (a hypergeometric variable is one) with a mean of at least D * f, f the
    smallest share sampled of any stratum, so it is at most x with a probability of no more than a
    Poisson variable of that mean (Hoeffding 1956).
    """
    low, high = bad_found, sum(strata) - (sum(sampled) - bad_found)
    smallest = min(number / size for number, size in zip(sampled, strata, strict=True))

    def possible(bad: int) -> bool:
        if bad_found == 0:
            return log_worst_miss(strata, sampled, bad) > _allowed(confidence)
        return bool(scipy.special.pdtr(bad_found, bad * smallest) > 1 - confidence)

    while low < high:
        middle = (low + high + 1) // 2
        if possible(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _chances(
    sizes_bytes: npt.NDArray[np.int64], bad_share: float, confidence: float
) -> npt.NDArray[np.float64]:
    total_bytes = int(sizes_bytes.sum())
    if total_bytes == 0:
        raise RecoveryError("the files hold no bytes: nothing can be said about a share of them")
    return np.minimum(1.0, _strength(bad_share, confidence) * sizes_bytes / total_bytes)


def _strength(bad_share: float, confidence: float) -> float:
    _require_shares(bad_share, confidence)
    return -math.log1p(-confidence) / bad_share


def _bad_files(population: int, bad_share: float) -> int:
    """How many are too many."""
    return max(1, math.ceil(round(bad_share * population, 9)))


def _allowed(confidence: float) -> float:
    """ln of the chance of being wrong that is accepted."""
    return math.log1p(-confidence) + 1e-12


def _draw(seed: bytes, path: bytes) -> int:
    """Uniform over 0 … 2^64 - 1."""
    content = len(seed).to_bytes(4, "big") + seed + path
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def _log_all_good(population: int, bad: int, sampled: int) -> float:
    """ln of C(population - bad, sampled) / C(population, sampled)."""
    good = population - bad
    if sampled > good:
        return -math.inf
    # C(N-D, n) / C(N, n) = C(N-n, D) / C(N, D): exact as a product over the smaller of n and D
    few, rest = min(bad, sampled), max(bad, sampled)
    if few <= 100_000:
        steps = np.arange(few)
        return float(np.log1p(-rest / (population - steps)).sum())
    return float(
        scipy.special.gammaln(good + 1)
        - scipy.special.gammaln(good - sampled + 1)
        - scipy.special.gammaln(population + 1)
        + scipy.special.gammaln(population - sampled + 1)
    )


def _require_shares(bad_share: float, confidence: float) -> None:
    for name, share in (("bad_share", bad_share), ("confidence", confidence)):
        if not 0 < share < 1:
            raise RecoveryError(f"{name} is {share}: give a number between 0 and 1")
