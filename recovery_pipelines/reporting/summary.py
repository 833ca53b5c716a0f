"""The executive summary: a report boiled down to a verdict, a sentence and at most ten figures.

Names of drills and checks, but nothing that a check found: a summary goes to more people than a
detailed report.
"""

from collections.abc import Iterable
from typing import Literal, TypeVar

from recovery_pipelines.analysis.control import MINIMUM_DRILLS
from recovery_pipelines.analysis.drills import success_bound
from recovery_pipelines.analysis.rules import RELIABLE_SUCCESS
from recovery_pipelines.reporting.model import (
    Drill,
    Figure,
    MonthVerdict,
    Objective,
    Recoverability,
    Report,
    Summary,
    Unavailable,
)
from recovery_pipelines.reporting.words import count, month_name, percent, seconds
from recovery_pipelines.verdict import Verdict, worst

_MONTHS = 12
_URGENT = ("critical", "high")
_NEEDS = f"a baseline needs {MINIMUM_DRILLS} drills"

Row = TypeVar("Row")


def summarize(report: Report) -> Summary:
    """The summary of a report; nothing in it that the report does not say."""
    return Summary(
        month=report.month,
        made_from=report.made_from,
        verdict=report.verdict,
        headline=_headline(report),
        attention=tuple(_attention(report)),
        figures=tuple(_figures(report)),
        months=_months(report),
        evidence=evidence_in_words(report),
    )


def known(rows: "tuple[Row, ...] | Unavailable") -> "tuple[Row, ...]":
    """The rows of a part of the report; none if the part has no data."""
    return () if isinstance(rows, Unavailable) else rows


def evidence_in_words(report: Report) -> str:
    """The head of the chain, or why there is none."""
    evidence = report.evidence
    if evidence.state == "broken":
        return f"broken: {evidence.message}"
    if evidence.head is None:
        return "none: no drill is sealed"
    return f"{evidence.head.seq} {evidence.head.digest}"


def _headline(report: Report) -> str:
    planned = len(report.drills) + len(report.missing_drills)
    proven = [drill for drill in report.drills if drill.proven]
    if not report.drills:
        return f"No drill ran in {month_name(report.month)}: nothing is proven."
    if len(proven) == planned:
        every = "The drill" if planned == 1 else f"All {planned} drills"
        missed = len(_missed(report))
        objectives = f", but {count(missed, 'recovery objective was', 'recovery objectives were')}"
        return f"{every} recovered the data, and every check passed" + (
            f"{objectives} missed." if missed else "."
        )
    return f"{planned - len(proven)} of {count(planned, 'drill')} did not prove that data recovers."


def _attention(report: Report) -> Iterable[str]:
    unproven = [drill for drill in report.drills if not drill.proven]
    order = list(Verdict)
    for drill in sorted(unproven, key=lambda each: -order.index(each.verdict)):
        yield f"{drill.name} is {drill.verdict}: {_why(drill, report)}."
    for name in report.missing_drills:
        yield f"{name} did not run in {month_name(report.month)}."
    for drill, objective in _missed(report):
        yield (
            f"{drill.name} missed its {objective.name}: {seconds(objective.measured_seconds)}, "
            f"at most {seconds(objective.limit_seconds)} allowed."
        )
    for event in known(report.anomalies):
        if event.state == "open" and event.metric == "recovery_seconds":
            yield (
                f"Recovery of {event.drill} is slower than usual since "
                f"{month_name(event.first_month)} ({event.found_by})."
            )
    missed = {drill.name for drill, objective in _missed(report) if objective.name == "RTO"}
    for trend in known(report.trends):
        if trend.broken_from and trend.drill not in missed:
            yield (
                f"At its present growth {trend.drill} breaks its RTO in "
                f"{month_name(trend.broken_from)}."
            )
    if not isinstance(report.detection_matrix, Unavailable):
        for check in report.detection_matrix.checks:
            if check.verdict is Verdict.FAIL:
                yield f"The detection matrix says {check.name} is FAIL: {check.found}."
    if report.evidence.state == "broken":
        yield "The chain of evidence is broken: what it says can no longer be relied on."
    if lost := report.failed_messages:
        yield f"{count(len(lost), 'notification')} did not arrive."


def _why(drill: Drill, report: Report) -> str:
    """The checks that did not pass; without any, what else keeps it from being proven."""
    if drill.verdict is Verdict.PASS:
        return drill.reason
    failed = [check.name for check in drill.checks if check.verdict is not Verdict.PASS]
    manual = [each for each in known(report.manual_verification) if each.drill == drill.name]
    failed += [each.check for each in manual if each.verdict is Verdict.FAIL]
    waiting = [each.check for each in manual if each.verdict is Verdict.UNVERIFIED]
    if waiting and not failed:
        return f"waits for the sign-off of {', '.join(waiting)}"
    return ", ".join(failed) or drill.verdict.explanation


def _missed(report: Report) -> list[tuple[Drill, Objective]]:
    return [
        (drill, objective)
        for drill in report.drills
        for objective in drill.objectives
        if objective.verdict is Verdict.FAIL
    ]


# --- figures ------------------------------------------------------------------------------


def _figures(report: Report) -> Iterable[Figure]:
    """At most ten."""
    yield _proven(report)
    yield _success_rate(report)
    yield _objective(report, "RTO", "Slowest recovery")
    yield _objective(report, "RPO", "Longest loss of writes")
    yield _next_month(report)
    yield _caught(report)
    yield _damage(report)
    yield _count("Missed months", len(report.missed_months), "none allowed since the first drill")
    yield _open_anomalies(report)
    if not isinstance(report.recommendations, Unavailable):
        still = [each for each in report.recommendations if each.state == "open"]
        urgent = [each for each in still if each.priority in _URGENT]
        yield _count(
            "Urgent recommendations", len(urgent), f"critical or high, of {len(still)} open"
        )


def _proven(report: Report) -> Figure:
    planned = len(report.drills) + len(report.missing_drills)
    proven = sum(drill.proven for drill in report.drills)
    return Figure(
        label="Drills proven",
        value=f"{proven} of {planned}",
        bound="all that the plan names",
        state="good" if planned and proven == planned else "attention",
    )


def _success_rate(report: Report) -> Figure:
    label = "Success proven so far"
    if not report.recoverability:
        return Figure(label=label, value="none", bound="no drill yet", state="unknown")
    weakest = min(report.recoverability, key=lambda each: (each.success_at_least, each.drill))
    return Figure(
        label=label,
        value=f"≥ {percent(weakest.success_at_least)}",
        bound=f"95 % bound from {weakest.proven} of {weakest.drills} months, weakest drill",
        state=_standing(weakest),
    )


def _standing(weakest: Recoverability) -> Literal["good", "attention", "unknown"]:
    """A spotless record is only good news once it is long enough to prove something."""
    if weakest.proven < weakest.drills:
        return "attention"
    return "good" if weakest.success_at_least >= RELIABLE_SUCCESS else "unknown"


def _objective(report: Report, name: str, label: str) -> Figure:
    """The drill that comes closest to its limit; without limits the largest value."""
    measured = [
        objective
        for drill in report.drills
        for objective in drill.objectives
        if objective.name == name and objective.measured_seconds is not None
    ]
    if not measured:
        return Figure(label=label, value="not measured", bound=f"{name}", state="unknown")

    def closeness(objective: Objective) -> tuple[bool, float]:
        value, limit = objective.measured_seconds or 0.0, objective.limit_seconds
        if limit is None:
            return False, value
        return True, value / limit if limit else (float("inf") if value else 0.0)

    closest = max(measured, key=closeness)
    limit = closest.limit_seconds
    states = {Verdict.PASS: "good", Verdict.FAIL: "attention"}
    return Figure.model_validate(
        {
            "label": label,
            "value": seconds(closest.measured_seconds),
            "bound": f"no {name} in the plan"
            if limit is None
            else f"{name}: at most {seconds(limit)}",
            "state": states.get(closest.verdict or Verdict.UNVERIFIED, "unknown"),
        }
    )


def _next_month(report: Report) -> Figure:
    label = "Recovery next month"
    ahead = [trend for trend in known(report.trends) if trend.next_high_seconds is not None]
    if not ahead:
        return Figure(label=label, value="not known yet", bound=_NEEDS, state="unknown")
    slowest = max(ahead, key=lambda trend: (trend.next_high_seconds or 0.0, trend.drill))
    risk = (
        slowest.rto_seconds is not None and (slowest.next_high_seconds or 0) > slowest.rto_seconds
    )
    return Figure(
        label=label,
        value=f"≤ {seconds(slowest.next_high_seconds)}",
        bound="end of the 95 % interval, slowest drill",
        state="attention" if risk else "good",
    )


def _open_anomalies(report: Report) -> Figure:
    label = "Open anomalies"
    judged = any(
        point.typical_seconds is not None
        for trend in known(report.trends)
        for point in trend.points
    )
    if not judged or isinstance(report.anomalies, Unavailable):
        return Figure(label=label, value="not known yet", bound=_NEEDS, state="unknown")
    still = [event for event in report.anomalies if event.state == "open"]
    return _count(label, len(still), "cost and time of every drill, against its baseline")


def _caught(report: Report) -> Figure:
    label = "Planted damage caught"
    planted = sum(each.planted for each in report.detection)
    caught = sum(each.caught for each in report.detection)
    if not planted:
        return Figure(label=label, value="none planted", bound="no self-test ran", state="unknown")
    return Figure(
        label=label,
        value=f"{caught} of {planted}",
        bound=f"95 % bound: ≥ {percent(success_bound(caught, planted))} of such damage",
        state="good" if caught == planted else "attention",
    )


def _damage(report: Report) -> Figure:
    kinds = sum(len(each.injected_kinds) for each in report.fault_coverage)
    known = {kind for each in report.fault_coverage for kind in each.known_kinds}
    known |= {kind for each in report.fault_coverage for kind in each.injected_kinds}
    injected = sum(each.injected for each in report.fault_coverage)
    return Figure(
        label="Damage done on purpose",
        value=count(injected, "fault"),
        bound=f"{kinds} of {len(known)} known kinds" if known else "no faults were injected",
        state="good" if injected else "unknown",
    )


def _count(label: str, number: int, bound: str) -> Figure:
    return Figure(
        label=label,
        value=f"{number:,}",
        bound=bound,
        state="attention" if number else "good",
    )


# --- months -------------------------------------------------------------------------------


def _months(report: Report) -> tuple[MonthVerdict, ...]:
    labels = [each.month for each in report.history[0].months] if report.history else []
    gaps = {month for _, month in report.missed_months}
    rows = []
    for at, label in enumerate(labels):
        known = [row.months[at].verdict for row in report.history]
        found = [verdict for verdict in known if verdict is not None]
        missing = [Verdict.UNVERIFIED] if label in gaps else []
        verdict = worst([*found, *missing]) if found else None
        rows.append(
            MonthVerdict(month=label, verdict=report.verdict if label == report.month else verdict)
        )
    return tuple(rows[-_MONTHS:])
