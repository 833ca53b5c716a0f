"""What a report says, apart from how it looks: the published schema of `detailed_report.json`.

Times are UTC in ISO 8601, durations seconds, sizes bytes; names carry the unit. None means that
there is no such value: it was not measured, or the thing was never asked for.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from recovery_pipelines.tools import escaped
from recovery_pipelines.verdict import Verdict


def printable(value: object) -> object:
    """Text without what could break or disguise a report; see `escaped`."""
    if not isinstance(value, str) or isinstance(value, Verdict):
        return value
    return escaped(value, keep="\n")


Text = Annotated[str, BeforeValidator(printable)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Part):
    """One number of the executive summary, with its unit and its bound in words."""

    label: Text
    value: Text
    """With its unit."""
    bound: Text
    """What it is held against, or how sure it is."""
    state: Literal["good", "attention", "unknown"]


class Summary(_Part):
    """One page for a manager: the month's verdict, why, at most ten figures, what to decide."""

    schema_id: Literal["urn:recovery-pipelines:summary:v1"] = "urn:recovery-pipelines:summary:v1"
    month: Text
    """The partition, YYYY-MM-01."""
    made_from: Text | None
    verdict: Verdict
    headline: Text
    attention: tuple[Text, ...]
    """What is not as it must be, worst first; the detailed report says more."""
    figures: Annotated[tuple[Figure, ...], Field(max_length=10)]
    months: tuple["MonthVerdict", ...]
    """The worst verdict of each of the newest twelve months, oldest first."""
    evidence: Text


class Check(_Part):
    name: Text
    verdict: Verdict
    expected: Text
    found: Text


class Phase(_Part):
    name: Text
    seconds: float


class Objective(_Part):
    """A recovery objective as it stood when the drill ran, and what was measured."""

    name: Literal["RTO", "RPO"]
    verdict: Verdict | None
    """None: no limit is set."""
    limit_seconds: float | None
    measured_seconds: float | None


class Attempt(_Part):
    run_id: Text
    started_at: Text
    verdict: Verdict
    problem: Text | None


class Sealed(_Part):
    """The drill's entry in the chain of evidence."""

    seq: int
    digest: Text


class Drill(_Part):
    """One drill of the month: its last attempt, which counts."""

    name: Text
    scenario: Text
    target: Text
    engine: Text
    in_plan: bool
    verdict: Verdict
    proven: bool
    """It passed, and no attempt of the month was a finding."""
    reason: Text
    """Why it is not proven, in one line; empty if it is."""
    attempts: tuple[Attempt, ...]
    started_at: Text
    ended_at: Text | None
    folder: Text
    """Relative to the data home."""
    checks: tuple[Check, ...]
    messages: tuple[Text, ...]
    not_tested: tuple[Text, ...]
    recovery_seconds: float | None
    phases: tuple[Phase, ...]
    objectives: tuple[Objective, ...]
    recovered_files: int | None
    recovered_bytes: int | None
    lost_entries: int | None
    provenance: dict[Text, Text]
    """Who ran it, by which plan, with which code."""
    evidence: Sealed | None


class MonthVerdict(_Part):
    month: Text
    verdict: Verdict | None
    """None: no attempt in that month."""


class History(_Part):
    """The verdicts of one drill over the months, oldest first."""

    drill: Text
    months: tuple[MonthVerdict, ...]


class TrendPoint(_Part):
    """One month's recovery time, and the band that the months before it predicted."""

    month: Text
    seconds: float | None
    typical_seconds: float | None
    low_seconds: float | None
    high_seconds: float | None
    flagged: bool
    """Unusual, part of a level shift, or of a trend."""


class Trend(_Part):
    """The recovery time of one drill over the months."""

    drill: Text
    outcome: Text
    """Of the newest month: `as usual`, `unusual`, `no value` or `insufficient history`."""
    points: tuple[TrendPoint, ...]
    growth: Text
    """`growing`, `no trend proven` or `insufficient history`."""
    growth_percent: float | None
    """By month, with its 95 % interval."""
    growth_percent_low: float | None
    growth_percent_high: float | None
    forecast: Text
    """Whether the objective will hold."""
    next_low_seconds: float | None
    """With `next_high_seconds`, the 95 % prediction interval for the next month."""
    next_high_seconds: float | None
    at_risk_from: Text | None
    broken_from: Text | None
    rto_seconds: float | None
    """The plan's objective now."""


class Anomaly(_Part):
    drill: Text
    metric: Text
    found_by: Text
    first_month: Text
    last_month: Text
    times_typical: float | None
    state: Text
    acknowledged_by: Text | None
    reason: Text | None


class Recoverability(_Part):
    """What the drills so far prove, with exact bounds at 95 %."""

    drill: Text
    drills: int
    proven: int
    success_at_least: float
    passes_to_90_percent: int
    passes_to_95_percent: int
    passes_to_99_percent: int


class Detection(_Part):
    """How often the self-tests of the month planted a kind of damage, and the check caught it."""

    check: Text
    kind: Text
    planted: int
    caught: int


class MatrixCell(_Part):
    """How many damages one detector noticed, with the exact 95 % interval of the rate."""

    engine: Text
    layer: Text
    """Where the damage was done: in the repository, or in a restored copy."""
    detector: Text
    detected: int
    total: int
    rate_low: float
    rate_high: float


class SilentRestores(_Part):
    """Restores that reported success and brought wrong data."""

    engine: Text
    kind: Text
    silent: int
    of: int
    caught: int
    """How many our verdict caught."""


class MatrixCheck(_Part):
    name: Text
    verdict: Verdict
    found: Text

    @property
    def is_blind(self) -> bool:
        """Wrong data passed: what the drills call PASS cannot be trusted."""
        return self.name == "every_damage_caught" and self.verdict is Verdict.FAIL


class DetectionMatrix(_Part):
    """The newest detection matrix: damage planted in generated data, and who noticed it."""

    month: Text
    engines: dict[Text, Text]
    """Name and version."""
    checks: tuple[MatrixCheck, ...]
    cells: tuple[MatrixCell, ...]
    silent_restores: tuple[SilentRestores, ...]


class FaultCoverage(_Part):
    """One family of faults: the kinds that are known here, and those of the month's drills."""

    family: Text
    known_kinds: tuple[Text, ...]
    injected_kinds: tuple[Text, ...]
    injected: int
    changed_data: int


class NotTested(_Part):
    what: Text
    drill: Text | None
    """None: it concerns the whole plan."""


class Recommendation(_Part):
    id: Text
    category: Text
    priority: Text
    title: Text
    evidence: Text
    action: Text
    gain: Text
    owner: Text | None
    due: Text | None
    state: Text


class SignOff(_Part):
    """What a named person signed."""

    by: Text
    role: Text
    result: Text
    at: Text
    documentation: dict[Text, Text]


class ManualCheck(_Part):
    """One manual check that a drill of the month asks for."""

    drill: Text
    check: Text
    verdict: Verdict
    sign_offs: tuple[SignOff, ...]


class FailedMessage(_Part):
    """A notification that did not arrive."""

    at: Text
    subject: Text
    channel: Text
    recipient: Text
    result: Text


class Environment(_Part):
    """The same facts for one or several drills: host, system, versions."""

    drills: tuple[Text, ...]
    facts: dict[Text, Text]


class Evidence(_Part):
    """The chain of evidence up to the newest entry about this month or an earlier one."""

    state: Literal["intact", "broken", "none"]
    message: Text
    """What is broken."""
    head: Sealed | None
    doubts: dict[Text, Text]
    """Result folders of the month that are not what was sealed, or not sealed at all, and why."""


class Unavailable(_Part):
    """A part of the report that has no data yet, and why."""

    why: Text


class Report(_Part):
    """Everything about one month. Lists are sorted; the same inputs give the same report."""

    schema_id: Literal["urn:recovery-pipelines:report:v1"] = "urn:recovery-pipelines:report:v1"
    month: Text
    """The partition, YYYY-MM-01."""
    made_from: Text | None
    """When the newest drill that the report rests on ended."""
    verdict: Verdict
    """The worst of the month's drills; UNVERIFIED at best if a drill of the plan is missing."""
    drills: tuple[Drill, ...]
    missing_drills: tuple[Text, ...]
    """Drills of the plan without any attempt in this month."""
    missed_months: tuple[tuple[Text, Text], ...]
    """Drill and month of every gap so far."""
    history: tuple[History, ...]
    recoverability: tuple[Recoverability, ...]
    trends: tuple[Trend, ...] | Unavailable
    anomalies: tuple[Anomaly, ...] | Unavailable
    detection: tuple[Detection, ...]
    detection_matrix: DetectionMatrix | Unavailable
    fault_coverage: tuple[FaultCoverage, ...]
    not_tested: tuple[NotTested, ...]
    recommendations: tuple[Recommendation, ...] | Unavailable
    manual_verification: tuple[ManualCheck, ...] | Unavailable
    failed_messages: tuple[FailedMessage, ...]
    environments: tuple[Environment, ...]
    evidence: Evidence
