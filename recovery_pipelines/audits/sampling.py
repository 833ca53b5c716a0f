"""How many files to verify for a statement about all of them, which ones, and what it proves.

Sampling is without replacement and the bounds are exact (hypergeometric). Which files are chosen
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
    bad = max(1, math.ceil(round(bad_share * population, 9)))
    low, high = 1, population - bad + 1
    while low < high:
        middle = (low + high) // 2
        if _log_all_good(population, bad, middle) <= math.log1p(-confidence) + 1e-12:
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
    _require_shares(bad_share, confidence)
    total_bytes = int(sizes_bytes.sum())
    if total_bytes == 0:
        raise RecoveryError("the files hold no bytes: nothing can be said about a share of them")
    strength = -math.log1p(-confidence) / bad_share
    chances = np.minimum(1.0, strength * sizes_bytes / total_bytes)
    return [
        path
        for path, chance in zip(paths, chances.tolist(), strict=True)
        if _draw(seed, path) < chance * 2**64
    ]


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
