"""What to do about what the drills found: `rules` replayed over the months of a data home."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from recovery_pipelines.analysis.acknowledgements import Acknowledgement, read_acknowledgements
from recovery_pipelines.analysis.assignments import Assignment, keep_assignment, read_assignments
from recovery_pipelines.analysis.drills import Series, anomalies_of, forecast_of, series_of
from recovery_pipelines.analysis.history import load_history, monthly
from recovery_pipelines.analysis.objectives import recovery_time_objectives
from recovery_pipelines.analysis.rules import (
    RULES,
    WITHOUT_ATTEMPTS,
    Evidence,
    Finding,
    Rule,
    never_drilled,
)
from recovery_pipelines.drills.record import DrillRecord, read_record
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.plan import DrillSpec, Plan

LOOK_BACK_MONTHS = 24
COLUMNS = (
    "id",
    "category",
    "priority",
    "title",
    "evidence",
    "action",
    "gain",
    "owner",
    "due",
    "state",
    "opened",
    "closed",
)


def recommendations(
    home: Path,
    plan: Plan,
    today: date | None = None,
    look_back_months: int = LOOK_BACK_MONTHS,
    until: str | None = None,
    history: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per problem that the records of `home` show or showed, most urgent first.

    Columns: COLUMNS. `id` is the rule and what it is about, so it stays the same while the problem
    does. `state` is `open` or `closed`; `opened` is the first month (`YYYY-MM-01`) in which the
    evidence showed it without a break, `closed` the first in which it no longer did; the texts are
    of the last month in which it was open. Covers the drills of groups whose `automation.reporting`
    names `recommendations`, and shows the categories and priorities that the plan names.

    `today` decides which months are over; by default the present day (UTC). Problems that ended
    before the newest `look_back_months` are left out, and nothing after the month `until` is seen.
    `history` is what `load_history` gives, from whoever has it at hand.
    """
    end = today or datetime.now(UTC).date()
    known = load_history(home) if history is None else history
    found = _problems(replay(home, known, recommended_drills(plan), end, look_back_months, until))
    shown = plan.test_framework.reporting.documentation.recommendations
    assigned = read_assignments(home)
    rows = [
        row | _assigned(assigned.get(row["id"]))
        for row in found
        if row["category"] in shown.categories and row["priority"] in shown.prioritization
    ]
    rows.sort(
        key=lambda row: (
            row["state"] != "open",
            shown.prioritization.index(row["priority"]),
            shown.categories.index(row["category"]),
            row["id"],
        )
    )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def recommended_drills(plan: Plan) -> list[DrillSpec]:
    """The drills whose group asks for recommendations."""
    return [spec for spec in plan.drills() if "recommendations" in spec.automation.reporting]


def assign(home: Path, plan: Plan, id: str, owner: str | None, due: date | None) -> Assignment:
    """Set the owner, the due date, or both. Raises RecoveryError for an unknown recommendation."""
    known = recommendations(home, plan)["id"]
    if id not in set(known):
        raise RecoveryError(
            f"there is no recommendation {id!r}; recommendations: {', '.join(known) or 'none'}"
        )
    keep_assignment(home, id, owner, due.isoformat() if due else None)
    return read_assignments(home)[id]


def _assigned(said: Assignment | None) -> dict[str, str | None]:
    return {"owner": said.owner if said else None, "due": said.due if said else None}


@dataclass(frozen=True)
class Seen:
    """What a rule found at the end of a month."""

    month: str
    following: str | None
    """The month after it; None for the newest."""
    rule: Rule
    finding: Finding

    @property
    def id(self) -> str:
        return f"{self.rule.name}:{self.finding.subject}"


def replay(
    home: Path,
    history: pd.DataFrame,
    specs: Sequence[DrillSpec],
    today: date,
    look_back_months: int,
    until: str | None = None,
) -> Iterator[Seen]:
    """What the rules find in the records up to each month, drill by drill, oldest month first."""
    history = history[history["drill"].isin([spec.name for spec in specs])]
    if until:
        history = history[history["month"] <= until]
    if history.empty:
        return
    current = pd.Period(today, "M")
    newest = pd.Period(history["month"].max()[:7], "M")
    first = history["month"].min()
    last = max(newest, current - 1)
    every = pd.period_range(first[:7], min(last, pd.Period(until[:7], "M")) if until else last)
    months = [month.strftime("%Y-%m-01") for month in every[-look_back_months:]]
    said = read_acknowledgements(home)
    for spec in specs:
        of_drill = history[history["drill"] == spec.name]
        by_month, records = monthly(of_drill), _records(of_drill)
        series = list(series_of(by_month, said))
        for now, following in zip(months, [*months[1:], None], strict=True):
            is_over = following is not None or newest < current
            for rule, finding in _findings(
                spec, of_drill, by_month, series, records, said, now, first, is_over
            ):
                yield Seen(now, following, rule, finding)


def _problems(seen: Iterable[Seen]) -> list[dict[str, Any]]:
    """Every problem, with its last spell of months and what was said of it then."""
    problems: dict[str, dict[str, Any]] = {}
    for each in seen:
        before = problems.get(each.id)
        lasts = before is not None and before["closed"] == each.month
        problems[each.id] = {
            "id": each.id,
            "category": each.rule.category,
            "priority": each.finding.priority,
            "title": _printable(each.finding.title),
            "evidence": _printable(each.finding.evidence),
            "action": each.finding.action,
            "gain": each.finding.gain,
            "state": "closed" if each.following else "open",
            "opened": before["opened"] if before and lasts else each.month,
            "closed": each.following,
        }
    return list(problems.values())


def _printable(text: str) -> str:
    """What drills found can hold file names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _findings(
    spec: DrillSpec,
    history: pd.DataFrame,
    months: pd.DataFrame,
    series: Sequence[Series],
    records: Mapping[tuple[str, str], DrillRecord],
    said: Sequence[Acknowledgement],
    now: str,
    first: str,
    is_over: bool,
) -> Iterator[tuple[Rule, Finding]]:
    """What the rules find in one drill's evidence up to the month `now`."""
    if history.empty:
        yield from ((WITHOUT_ATTEMPTS, each) for each in never_drilled(spec, first, now))
        return
    attempts = history[history["month"] <= now]
    if attempts.empty:
        return
    months = months[months["month"] <= now]
    known = [each for each in said if each.month <= now]
    then = [past for each in series if (past := each.until(now))]
    events = anomalies_of(then)
    ahead = forecast_of(then, recovery_time_objectives([spec])).to_dict("records")
    evidence = Evidence(
        spec=spec,
        attempts=attempts,
        months=months,
        records={key: record for key, record in records.items() if key[0] <= now},
        missed=_missed(attempts, now, is_over),
        normal_since=max(
            (
                each.month
                for each in known
                if each.restarts_baseline
                and (each.drill, each.metric) == (spec.name, "recovery_seconds")
            ),
            default="",
        ),
        events=events[events["state"] == "open"],
        forecast={
            str(name): value for row in ahead for name, value in row.items() if pd.notna(value)
        },
        now=now,
    )
    for rule in RULES:
        yield from ((rule, finding) for finding in rule.find(evidence))


def _missed(attempts: pd.DataFrame, now: str, is_over: bool) -> list[str]:
    ran = set(attempts["month"])
    every = pd.period_range(min(ran)[:7], now[:7], freq="M").strftime("%Y-%m-01")
    return [month for month in every if month not in ran and (month < now or is_over)]


def _records(history: pd.DataFrame) -> dict[tuple[str, str], DrillRecord]:
    """The readable records by month and run id, oldest first."""
    readable = history[history["problem"].isna()]
    return {
        (row["month"], row["run_id"]): read_record(Path(row["folder"]))
        for row in readable.to_dict("records")
    }
