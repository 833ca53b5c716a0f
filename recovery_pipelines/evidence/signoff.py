"""Manual verification: what named persons signed about a sealed drill, and what it then claims.

A drill whose plan asks for manual checks is UNVERIFIED until each has a sign-off. A sign-off is an
entry of the chain about the drill's own entry, so the sealed folder never changes. The effective
verdict is computed here and nowhere else.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.evidence import statement
from recovery_pipelines.evidence.chain import (
    CHAIN_NAME,
    FOLDER_NAME,
    Chain,
    Entry,
    append_about,
    read_chain,
)
from recovery_pipelines.verdict import CheckResult, Verdict, worst

Result = Literal["pass", "fail"]
Role = Literal["reviewer", "approver"]

_NAME = re.compile(r"[^\W_][^\x00-\x1f\x7f]{0,99}")
_TEXT_LIMIT = 10_000


@dataclass(frozen=True)
class SignOff:
    """What one person signed about one manual check of one drill."""

    check: str
    result: Result
    by: str
    role: Role
    documentation: Mapping[str, str]
    recorded_as: str
    """The account that recorded it."""
    at: str
    """UTC, ISO 8601."""
    entry: Entry


@dataclass(frozen=True)
class Standing:
    """A sealed drill with what people signed about it since."""

    drill: Entry
    sign_offs: Sequence[SignOff] = ()

    @property
    def required_checks(self) -> list[str]:
        return list(self._asked.get("required_checks", ()))

    @property
    def required_documentation(self) -> list[str]:
        return list(self._asked.get("documentation", ()))

    @property
    def _asked(self) -> Mapping[str, Any]:
        asked: Mapping[str, Any] = self.drill.predicate.get("manual_verification", {})
        return asked

    @property
    def automated_verdict(self) -> Verdict:
        """What the drill itself claims, as it was sealed."""
        predicate = self.drill.predicate
        return Verdict(predicate.get("automated_verdict", predicate["verdict"]))

    @property
    def checks(self) -> list[CheckResult]:
        """One result for each manual check that the plan asked for."""
        return [check_of(name, self.sign_offs) for name in self.required_checks]

    @property
    def waiting(self) -> list[str]:
        """The manual checks that nobody has signed yet."""
        return [check.name for check in self.checks if check.verdict is Verdict.UNVERIFIED]

    @property
    def before(self) -> "Standing":
        """As it was before the newest sign-off."""
        return Standing(self.drill, self.sign_offs[:-1])

    @property
    def verdict(self) -> Verdict:
        """The effective verdict: the worst of the automated one and the manual checks."""
        return worst([self.automated_verdict, *(check.verdict for check in self.checks)])


def check_of(name: str, sign_offs: Sequence[SignOff]) -> CheckResult:
    """How a manual check stands with these sign-offs: UNVERIFIED without one of its own."""
    signed = [sign_off for sign_off in sign_offs if sign_off.check == name]
    if not signed:
        verdict = Verdict.UNVERIFIED
    elif any(sign_off.result == "fail" for sign_off in signed):
        verdict = Verdict.FAIL
    else:
        verdict = Verdict.PASS
    found = "; ".join(f"{s.result} by {s.by} ({s.role}), {s.at[:19]}Z" for s in signed)
    return CheckResult(name, verdict, "signed off by a named person", found or "not signed")


def standings(home: Path) -> list[Standing]:
    """Every sealed drill with its sign-offs, in the order of their seals; none without a chain.

    Raises EvidenceError if the chain is broken.
    """
    if not (home / FOLDER_NAME / CHAIN_NAME).exists():
        return []
    return standings_of(read_chain(home))


def standings_of(chain: Chain) -> list[Standing]:
    signed: dict[int, list[SignOff]] = {entry.seq: [] for entry in chain.drills}
    for entry in chain.entries:
        if entry.kind == statement.SIGN_OFF_TYPE:
            signed[_drill_seq(entry, signed)].append(_read(entry))
    return [Standing(entry, tuple(signed[entry.seq])) for entry in chain.drills]


def sign_off(
    home: Path,
    drill: Entry,
    *,
    check: str,
    result: Result,
    by: str,
    role: Role,
    documentation: Mapping[str, str],
) -> Standing:
    """Sign one manual check of a sealed drill; returns how the drill stands with this signature.

    Raises EvidenceError for a check or documentation that the drill does not ask for or that
    lacks, for a person who holds the other role already (four eyes), and for a role that passed
    the check already. A `fail` can always be added, and nothing takes it back.
    """
    by = " ".join(by.split())
    if not _NAME.fullmatch(by):
        raise EvidenceError(f"{by!r} is not the name of a person")

    def choose(chain: Chain) -> tuple[Entry, Mapping[str, Any]]:
        standing = next(s for s in standings_of(chain) if s.drill.digest == drill.digest)
        _require_asked(standing, check, documentation)
        _require_four_eyes(standing, by, role)
        passed = [s for s in standing.sign_offs if s.check == check and s.role == role]
        if passed and result == "pass":
            raise EvidenceError(
                f"{check} was signed already: {passed[-1].result} by {passed[-1].by} as {role}"
            )
        return standing.drill, {
            "check": check,
            "result": result,
            "by": by,
            "role": role,
            "documentation": dict(documentation),
            "recorded_as": f"uid {os.geteuid()}",
        }

    entry = append_about(home, statement.SIGN_OFF_TYPE, choose)
    standing = next(s for s in standings(home) if s.drill.digest == drill.digest)
    return Standing(standing.drill, [s for s in standing.sign_offs if s.entry.seq <= entry.seq])


def _require_asked(standing: Standing, check: str, documentation: Mapping[str, str]) -> None:
    if check not in standing.required_checks:
        asked = ", ".join(standing.required_checks) or "none"
        raise EvidenceError(
            f"{standing.drill.folder} was sealed without the manual check {check!r}; it asks for: "
            f"{asked} (test_execution.validation.manual_verification.required_checks)"
        )
    empty = [name for name in standing.required_documentation if not documentation.get(name)]
    if empty:
        raise EvidenceError(f"write down {', '.join(empty)}: the plan asks for it")
    long = [name for name, text in documentation.items() if len(text) > _TEXT_LIMIT]
    if long:
        raise EvidenceError(f"{long[0]} is longer than {_TEXT_LIMIT:,} characters: refer to a file")


def _require_four_eyes(standing: Standing, by: str, role: Role) -> None:
    for signed in standing.sign_offs:
        if signed.role != role and signed.by.casefold() == by.casefold():
            raise EvidenceError(
                f"{by} signed this drill as {signed.role}: its {role} must be another person"
            )


def _drill_seq(entry: Entry, drills: Mapping[int, object]) -> int:
    seq: int = entry.predicate["about"]["seq"]
    if seq not in drills:
        raise EvidenceError(f"entry {entry.seq} of the chain: it signs what is not a drill")
    return seq


def _read(entry: Entry) -> SignOff:
    predicate = entry.predicate
    try:
        if predicate["result"] in get_args(Result) and predicate["role"] in get_args(Role):
            return SignOff(
                check=predicate["check"],
                result=predicate["result"],
                by=predicate["by"],
                role=predicate["role"],
                documentation=predicate["documentation"],
                recorded_as=predicate["recorded_as"],
                at=predicate["sealed_at"],
                entry=entry,
            )
    except KeyError:
        pass
    raise EvidenceError(f"entry {entry.seq} of the chain: no sign-off as we write it")
