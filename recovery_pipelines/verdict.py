"""Verdicts and check results: what a drill may claim, and what it must not."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The six verdicts, best first."""

    PASS = "PASS"
    STALE = "STALE"
    UNVERIFIED = "UNVERIFIED"
    ERROR = "ERROR"
    INVALID = "INVALID"
    FAIL = "FAIL"

    @property
    def explanation(self) -> str:
        return _EXPLANATIONS[self]

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self]

    @property
    def is_finding(self) -> bool:
        """A finding is about the backup (or the check), so a retry would only hide it."""
        return self in (Verdict.FAIL, Verdict.INVALID)


_EXPLANATIONS = {
    Verdict.PASS: "verified, and right",
    Verdict.STALE: "too old to count",
    Verdict.UNVERIFIED: "ran, nothing proven",
    Verdict.ERROR: "could not run",
    Verdict.INVALID: "a canary was missed: the check itself cannot be trusted",
    Verdict.FAIL: "verified, and wrong",
}

_EXIT_CODES = {
    Verdict.PASS: 0,
    Verdict.FAIL: 1,
    Verdict.INVALID: 1,
    Verdict.ERROR: 2,
    Verdict.UNVERIFIED: 3,
    Verdict.STALE: 3,
}


@dataclass(frozen=True)
class CheckResult:
    """One validation criterion with what was expected, what was found, and a verdict."""

    name: str
    verdict: Verdict
    expected: str
    found: str


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a whole from those of its parts. Nothing verified is UNVERIFIED, not PASS."""
    order = list(Verdict)
    return max(verdicts, key=order.index, default=Verdict.UNVERIFIED)
