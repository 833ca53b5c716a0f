"""From a data home to a `Report`: reads records, tables and the chain, and decides nothing anew.

A report knows what was known up to its month: later months do not change it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd

from recovery_pipelines.analysis import drills as analysis
from recovery_pipelines.analysis.acknowledgements import Acknowledgement, read_acknowledgements
from recovery_pipelines.analysis.history import load_history, missed_months, monthly
from recovery_pipelines.analysis.objectives import judge_objectives, recovery_time_objectives
from recovery_pipelines.analysis.recommendations import recommendations, recommended_drills
from recovery_pipelines.checks.self_test import UNDAMAGED
from recovery_pipelines.drills.metrics import RECOVERY_PHASES
from recovery_pipelines.drills.record import DrillRecord, read_record
from recovery_pipelines.errors import EvidenceError, RecoveryError
from recovery_pipelines.evidence import Entry, read_chain
from recovery_pipelines.evidence.files import digests
from recovery_pipelines.evidence.signoff import Standing, standings_of
from recovery_pipelines.faults.catalogue import source_faults
from recovery_pipelines.matrix.cells import cells, judge, silent_restores, summed
from recovery_pipelines.matrix.run import newest_rows
from recovery_pipelines.notifications import receipts
from recovery_pipelines.plan import Plan
from recovery_pipelines.plan.databases import DatabaseTarget
from recovery_pipelines.plan.scenarios import SCENARIO_STEPS
from recovery_pipelines.plan.targets import Objectives, Target
from recovery_pipelines.reporting.model import (
    Anomaly,
    Attempt,
    Check,
    Detection,
    DetectionMatrix,
    Drill,
    Environment,
    Evidence,
    FailedMessage,
    FaultCoverage,
    History,
    ManualCheck,
    MatrixCell,
    MatrixCheck,
    MonthVerdict,
    NotTested,
    Objective,
    Phase,
    Recommendation,
    Recoverability,
    Report,
    Sealed,
    SignOff,
    SilentRestores,
    Trend,
    TrendPoint,
    Unavailable,
)
from recovery_pipelines.verdict import Verdict, worst

_SHOWN_MONTHS = 24
_HOST_FACTS = ("host", "system", "python", "user_id", "processors")


def build_report(home: Path, plan: Plan, month: str) -> Report:
    """The report on `month` (YYYY-MM-01). Raises OSError for what cannot be read."""
    history = load_history(home)
    history = history[history["month"] <= month]
    months = monthly(history)
    said = [answer for answer in read_acknowledgements(home) if answer.month <= month]
    names = [spec.name for spec in plan.drills()]
    wanted = plan.test_framework.reporting.metrics.analysis
    chain = _Chain(home, month)
    of_month = history[history["month"] == month]
    drills, contents = [], {}
    for name in _in_order(of_month["drill"].unique(), names):
        attempts = of_month[of_month["drill"] == name]
        drill, record = _drill(home, attempts, name in names, chain)
        drills.append(drill)
        if record:
            contents[name] = record
    missing = [name for name in names if name not in {drill.name for drill in drills}]
    evidence = chain.evidence([Path(folder) for folder in of_month["folder"]])
    unproven = [Verdict.UNVERIFIED] if missing or evidence.doubts else []
    matrix = _detection_matrix(home, month)
    if isinstance(matrix, DetectionMatrix) and any(each.is_blind for each in matrix.checks):
        unproven.append(Verdict.INVALID)
    verdicts = _verdicts(history)
    gaps = missed_months(history)
    return Report(
        month=month,
        made_from=_newest_moment(history, contents.values()),
        verdict=worst([*(_worst_of_month(drill) for drill in drills), *unproven]),
        drills=tuple(drills),
        missing_drills=tuple(missing),
        missed_months=tuple((str(gap.drill), str(gap.month)) for gap in gaps.itertuples()),
        history=_history(verdicts, _in_order(verdicts["drill"].unique(), names), month),
        recoverability=_recoverability(months, names),
        trends=_trends(months, said, plan, names)
        if wanted.trend_analysis
        else Unavailable(why="trend_analysis is off in the plan"),
        anomalies=_anomalies(months, said)
        if wanted.anomaly_detection
        else Unavailable(why="anomaly_detection is off in the plan"),
        detection=_detection(contents),
        detection_matrix=matrix,
        fault_coverage=_fault_coverage(contents),
        not_tested=_not_tested(drills, missing, plan),
        recommendations=_recommendations(home, plan, history, month)
        if recommended_drills(plan)
        else Unavailable(why="no group's automation.reporting names recommendations"),
        manual_verification=_manual_verification(drills, home, chain),
        failed_messages=_failed_messages(home, month),
        environments=_environments(contents),
        evidence=evidence,
    )


def _recommendations(
    home: Path, plan: Plan, history: pd.DataFrame, month: str
) -> tuple[Recommendation, ...]:
    """What was open on the month's last day, and what closed in the month."""
    last_day = pd.Period(month[:7], freq="M").end_time.date()
    table = recommendations(home, plan, today=last_day, until=month, history=history)
    shown = table[(table["state"] == "open") | (table["closed"] == month)]
    fields = list(Recommendation.model_fields)
    return tuple(
        Recommendation.model_validate({name: _text(row[name]) for name in fields})
        for row in shown.to_dict("records")
    )


# --- the month's drills -------------------------------------------------------------------


def _drill(
    home: Path, attempts: pd.DataFrame, in_plan: bool, chain: "_Chain"
) -> tuple[Drill, DrillRecord | None]:
    """The drill of its last attempt, and that attempt's record unless it is damaged or absent."""
    last = attempts.iloc[-1]
    folder = Path(last["folder"])
    record = read_record(folder) if pd.isna(last["problem"]) else None
    tried = tuple(
        Attempt(
            run_id=row["run_id"],
            started_at=row["started_at"].isoformat(),
            verdict=Verdict(row["verdict"]),
            problem=_text(row["problem"]),
        )
        for row in attempts.to_dict("records")
    )
    found = [attempt.verdict for attempt in tried if attempt.verdict.is_finding]
    verdict = tried[-1].verdict
    doubt = chain.doubt(folder)
    proven = verdict is Verdict.PASS and not found and not doubt
    if proven:
        reason = ""
    elif record is None:
        reason = tried[-1].problem or verdict.explanation
    elif verdict is not Verdict.PASS:
        reason = _reason(record, chain.standing(folder))
    elif found:
        reason = f"an earlier attempt was {worst(found)}: a second try does not undo a finding"
    else:
        reason = doubt
    content: Mapping[str, Any] = record.content if record else {}
    metrics: Mapping[str, Any] = record.metrics if record else {}
    drill = Drill(
        name=str(last["drill"]),
        scenario=str(metrics.get("scenario") or content.get("scenario") or "not known"),
        target=str(metrics.get("target") or content.get("target") or "not known"),
        engine=str(metrics.get("engine") or content.get("engine") or "not known"),
        in_plan=in_plan,
        verdict=verdict,
        proven=proven,
        reason=reason,
        attempts=tried,
        started_at=tried[-1].started_at,
        ended_at=content.get("ended_at"),
        folder=folder.relative_to(home).as_posix(),
        checks=tuple(
            Check(name=c.name, verdict=c.verdict, expected=c.expected, found=c.found)
            for c in (record.checks if record else ())
        ),
        messages=tuple(record.messages if record else ()),
        not_tested=tuple(record.not_tested if record else ()),
        recovery_seconds=_number(metrics.get("recovery_seconds")),
        phases=tuple(
            Phase(name=name, seconds=value)
            for name in RECOVERY_PHASES
            if (value := _number(metrics.get(f"{name}_seconds"))) is not None
        ),
        objectives=_objectives(content.get("objectives") or {}, metrics),
        recovered_files=metrics.get("files"),
        recovered_bytes=metrics.get("bytes"),
        lost_entries=metrics.get("lost_entries"),
        provenance=_provenance(content),
        evidence=chain.sealed(folder),
    )
    return drill, record


def _reason(record: DrillRecord, standing: Standing | None) -> str:
    if standing is None:
        return record.reason
    waits = [f"{name} waits for a sign-off" for name in standing.waiting]
    failed = [f"{c.name}: {c.found}" for c in standing.checks if c.verdict is Verdict.FAIL]
    return record.reason_with([*waits, *failed])


def _provenance(content: Mapping[str, Any]) -> dict[str, str]:
    """Who ran the drill, by which plan, with which code."""
    plan, code = content.get("plan") or {}, content.get("code") or {}
    facts = {
        "initiator": content.get("initiator"),
        "scheduled for": content.get("scheduled_at"),
        "operator": content.get("operator"),
        "plan": plan and f"{plan.get('name')} (SHA-256 {plan.get('sha256')})",
        "compared": _compared(content.get("sampling") or ()),
        "isolation": _isolation(content.get("isolation") or {}),
        "code": code and f"{code.get('version')} (SHA-256 {code.get('sha256')})",
    }
    return {name: str(fact) for name, fact in facts.items() if fact}


def _compared(trees: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(
        (f"backup {tree['backup']}: " if "backup" in tree else f"generation {tree['generation']}: ")
        + (f"a sample, {tree['compared']:,} of " if tree["is_sample"] else "all ")
        + f"{tree['entries']:,} entries"
        for tree in trees
    )


def _isolation(found: Mapping[str, Any]) -> str:
    if not found:
        return ""
    rooms = [f"{name}: own {', '.join(kinds)}" for name, kinds in found["namespaces"].items()]
    return "; ".join(
        [
            f"a directory of its own (mode {found['mode']}) on the same host",
            *(rooms or ["no namespaces"]),
            "tools that restore could write nowhere else"
            if found.get("unconfined") == ""
            else f"tools that restore were not confined: {found.get('unconfined', 'not recorded')}",
        ]
    )


def _objectives(
    limits: Mapping[str, float | None], metrics: Mapping[str, Any]
) -> tuple[Objective, ...]:
    """RTO and RPO as they stood at the drill; without a limit there is no verdict."""
    judged = {check.name: check for check in judge_objectives(Objectives(**limits), metrics)}
    measured = {"RTO": "recovery_seconds", "RPO": "rpo_seconds"}
    rows = []
    for name, metric in measured.items():
        check = judged.get(f"{name.lower()}_met")
        rows.append(
            Objective.model_validate(
                {
                    "name": name,
                    "verdict": check.verdict if check else None,
                    "limit_seconds": limits.get(f"{name.lower()}_seconds"),
                    "measured_seconds": _number(metrics.get(metric)),
                }
            )
        )
    return tuple(rows)


def _manual_verification(
    drills: Sequence[Drill], home: Path, chain: "_Chain"
) -> tuple[ManualCheck, ...] | Unavailable:
    rows = []
    for drill in drills:
        standing = chain.standing(home / drill.folder)
        if standing is None:
            continue
        for check in standing.checks:
            signed = [each for each in standing.sign_offs if each.check == check.name]
            rows.append(
                ManualCheck(
                    drill=drill.name,
                    check=check.name,
                    verdict=check.verdict,
                    sign_offs=tuple(
                        SignOff(
                            by=each.by,
                            role=each.role,
                            result=each.result,
                            at=each.at,
                            documentation=dict(each.documentation),
                        )
                        for each in signed
                    ),
                )
            )
    return tuple(rows) or Unavailable(why="no drill of this month was asked for any")


def _failed_messages(home: Path, month: str) -> tuple[FailedMessage, ...]:
    """Messages of the calendar month that were tried and have not arrived."""
    sent = receipts(home)
    undelivered = sent["state"].isin(["failed", "pending"]) & (sent["attempts"] > 0)
    in_month = sent["queued_at"].dt.strftime("%Y-%m-01") == month
    return tuple(
        FailedMessage(
            at=row["queued_at"].isoformat(),
            subject=row["subject"],
            channel=row["channel"],
            recipient=row["recipient"],
            result=f"{row['state']} after {row['attempts']} attempts: {row['reason']}",
        )
        for row in sent[undelivered & in_month].to_dict("records")
    )


def _worst_of_month(drill: Drill) -> Verdict:
    """The last attempt's verdict, or an earlier finding of the month."""
    findings = [each.verdict for each in drill.attempts if each.verdict.is_finding]
    return worst([drill.verdict, *findings])


def _newest_moment(history: pd.DataFrame, records: Iterable[DrillRecord]) -> str | None:
    moments = [
        str(record.content["ended_at"]) for record in records if "ended_at" in record.content
    ]
    if len(history):
        moments.append(history["started_at"].max().isoformat())
    return max(moments, default=None)


# --- over the months ----------------------------------------------------------------------


def _verdicts(history: pd.DataFrame) -> pd.DataFrame:
    """One row per drill and month: the last attempt's verdict, or the worst finding."""
    rows = []
    for (drill, month), attempts in history.groupby(["drill", "month"]):
        verdicts = [Verdict(value) for value in attempts["verdict"]]
        found = [verdict for verdict in verdicts if verdict.is_finding]
        rows.append((drill, month, worst([verdicts[-1], *found])))
    return pd.DataFrame(rows, columns=["drill", "month", "verdict"])


def _history(verdicts: pd.DataFrame, order: Sequence[str], month: str) -> tuple[History, ...]:
    if verdicts.empty:
        return ()
    first = verdicts["month"].min()
    shown = list(pd.date_range(first, month, freq="MS").strftime("%Y-%m-%d"))[-_SHOWN_MONTHS:]
    by_place = {(row["drill"], row["month"]): row["verdict"] for row in verdicts.to_dict("records")}
    return tuple(
        History(
            drill=drill,
            months=tuple(
                MonthVerdict(month=label, verdict=by_place.get((drill, label))) for label in shown
            ),
        )
        for drill in order
    )


def _recoverability(months: pd.DataFrame, names: Sequence[str]) -> tuple[Recoverability, ...]:
    rows = {str(row["drill"]): row for row in analysis.recoverability(months).to_dict("records")}
    fields = Recoverability.model_fields
    return tuple(
        Recoverability.model_validate({name: rows[drill][name] for name in fields})
        for drill in _in_order(rows, names)
    )


def _trends(
    months: pd.DataFrame, said: Sequence[Acknowledgement], plan: Plan, names: Sequence[str]
) -> tuple[Trend, ...]:
    objectives = recovery_time_objectives(plan.drills())
    ranges = analysis.expected_ranges(months, said)
    compared = _of_recovery_time(analysis.compare_with_baseline(months, said))
    growth = _of_recovery_time(analysis.trends(months, said))
    ahead = {
        str(row["drill"]): row
        for row in analysis.forecast(months, said, objectives).to_dict("records")
    }
    found = []
    for drill in _in_order(ranges["drill"].unique(), names):
        points = ranges[ranges["drill"] == drill].tail(_SHOWN_MONTHS).to_dict("records")
        grows, coming = growth[drill], ahead[drill]
        found.append(
            Trend(
                drill=drill,
                outcome=str(compared[drill]["outcome"]),
                growth=str(grows["outcome"]),
                growth_percent=_number(grows.get("growth_percent")),
                growth_percent_low=_number(grows.get("growth_percent_low")),
                growth_percent_high=_number(grows.get("growth_percent_high")),
                forecast=str(coming["outcome"]),
                next_low_seconds=_number(coming.get("low_seconds")),
                next_high_seconds=_number(coming.get("high_seconds")),
                at_risk_from=_text(coming.get("at_risk_from")),
                broken_from=_text(coming.get("broken_from")),
                rto_seconds=objectives.get(drill),
                points=tuple(
                    TrendPoint(
                        month=str(point["month"]),
                        seconds=_number(point["seconds"]),
                        typical_seconds=_number(point["typical_seconds"]),
                        low_seconds=_number(point["low_seconds"]),
                        high_seconds=_number(point["high_seconds"]),
                        flagged=bool(point["flagged"]),
                    )
                    for point in points
                ),
            )
        )
    return tuple(found)


def _of_recovery_time(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    if table.empty:
        return {}
    rows = table[table["metric"] == "recovery_seconds"].to_dict("records")
    return {str(row["drill"]): {str(key): value for key, value in row.items()} for row in rows}


def _anomalies(months: pd.DataFrame, said: Sequence[Acknowledgement]) -> tuple[Anomaly, ...]:
    """Newest first."""
    events = analysis.anomalies(months, said).sort_values(
        ["first_month", "drill", "metric"], ascending=[False, True, True]
    )
    return tuple(
        Anomaly(
            drill=event["drill"],
            metric=event["metric"],
            found_by=event["found_by"],
            first_month=event["first_month"],
            last_month=event["last_month"],
            times_typical=_number(event["times_typical"]),
            state=event["state"],
            acknowledged_by=_text(event["acknowledged_by"]),
            reason=_text(event["reason"]),
        )
        for event in events.to_dict("records")
    )


# --- what was tested, and what was not ----------------------------------------------------


def _detection(records: Mapping[str, DrillRecord]) -> tuple[Detection, ...]:
    planted: Counter[tuple[str, str]] = Counter()
    caught: Counter[tuple[str, str]] = Counter()
    for record in records.values():
        for canary in record.content.get("canaries", ()):
            if canary["kind"] == UNDAMAGED:
                continue
            place = (canary["check"], canary["kind"])
            planted[place] += canary["caught"] is not None
            caught[place] += canary["caught"] is True
    return tuple(
        Detection(check=check, kind=kind, planted=planted[check, kind], caught=caught[check, kind])
        for check, kind in sorted(planted)
    )


def _detection_matrix(home: Path, month: str) -> DetectionMatrix | Unavailable:
    try:
        measured_in, rows = newest_rows(home, month)
    except RecoveryError as error:
        return Unavailable(why=str(error))
    counted = summed(cells(rows), "engine", "layer", "detector").to_dict("records")
    silent = silent_restores(rows).drop(columns="checks_silent").to_dict("records")
    return DetectionMatrix(
        month=measured_in,
        engines=dict(rows[["engine", "version"]].drop_duplicates().to_numpy().tolist()),
        checks=tuple(
            MatrixCheck(name=each.name, verdict=each.verdict, found=each.found)
            for each in judge(rows)
        ),
        cells=tuple(MatrixCell.model_validate(row) for row in counted),
        silent_restores=tuple(SilentRestores.model_validate(row) for row in silent),
    )


def _fault_coverage(records: Mapping[str, DrillRecord]) -> tuple[FaultCoverage, ...]:
    paths = [record.folder / "faults.parquet" for record in records.values()]
    tables = [
        pd.read_parquet(path, columns=["kind", "family", "changes_data"])
        for path in paths
        if path.exists()
    ]
    if not tables:
        return ()
    done = pd.concat(tables)
    known: dict[str, set[str]] = {}
    for kind, fault in source_faults().items():
        known.setdefault(str(fault.family), set()).add(kind)
    families = dict.fromkeys([*known, *sorted(done["family"].unique())])
    return tuple(
        FaultCoverage(
            family=family,
            known_kinds=tuple(sorted(known.get(family, set()))),
            injected_kinds=tuple(sorted(of_family["kind"].unique())),
            injected=len(of_family),
            changed_data=int(of_family["changes_data"].astype(bool).sum()),
        )
        for family in families
        for of_family in [done[done["family"] == family]]
    )


def _not_tested(
    drills: Sequence[Drill], missing: Sequence[str], plan: Plan
) -> tuple[NotTested, ...]:
    planned = {spec.scenario.name for spec in plan.drills()}
    of_plan = [
        *(f"scenario {name} is not in the plan" for name in SCENARIO_STEPS if name not in planned),
        *(
            f"target {name} is generated test data: it proves the tool and the procedure, not that "
            "your own data restores"
            for name, target in plan.targets.items()
            if (isinstance(target, Target) and target.dataset)
            or (isinstance(target, DatabaseTarget) and not target.database.path)
        ),
    ]
    return (
        *(NotTested(drill=name, what="it did not run in this month") for name in missing),
        *(NotTested(drill=drill.name, what=what) for drill in drills for what in drill.not_tested),
        *(NotTested(drill=None, what=what) for what in of_plan),
    )


def _environments(records: Mapping[str, DrillRecord]) -> tuple[Environment, ...]:
    """Drills of the same host and versions together, with the versions of their engines."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    members: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, record in records.items():
        snapshot = record.content.get("system_snapshot") or {}
        facts = {key: str(snapshot[key]) for key in _HOST_FACTS if key in snapshot}
        facts |= {
            library: str(version) for library, version in snapshot.get("libraries", {}).items()
        }
        if not facts:
            continue
        place = tuple(facts.items())
        engine = {f"engine {snapshot['engine']}": str(snapshot.get("engine_version"))}
        groups[place] = groups.get(place, {}) | engine
        members.setdefault(place, []).append(name)
    return tuple(
        Environment(drills=tuple(members[place]), facts={**dict(place), **engines})
        for place, engines in groups.items()
    )


# --- evidence -----------------------------------------------------------------------------


class _Chain:
    """The chain up to the newest entry about a drill of `month` or an earlier one."""

    def __init__(self, home: Path, month: str) -> None:
        self._home = home
        self._standings: dict[str, Standing] = {}
        self._doubts: dict[Path, str] = {}
        self._head: Entry | None = None
        self._broken = ""
        self._removed: Set[str] = frozenset()
        """Files that a signed tombstone names."""
        try:
            chain = read_chain(home)
            standings = standings_of(chain)
        except FileNotFoundError:
            return
        except EvidenceError as error:
            self._broken = str(error)
            return
        self._removed = chain.removed.keys()
        for standing in standings:
            if standing.drill.month <= month:
                self._standings[str(standing.drill.folder)] = standing
                about = [standing.drill, *(signed.entry for signed in standing.sign_offs)]
                self._head = max([*about, *([self._head] if self._head else [])], key=_seq)

    def standing(self, folder: Path) -> Standing | None:
        """The drill of a result folder as it was sealed, with what people signed since."""
        return self._standings.get(self._name(folder))

    def sealed(self, folder: Path) -> Sealed | None:
        standing = self.standing(folder)
        return Sealed(seq=standing.drill.seq, digest=standing.drill.digest) if standing else None

    def doubt(self, folder: Path) -> str:
        """Why the files of a result folder are no evidence; empty if they are what was sealed."""
        if folder not in self._doubts:
            self._doubts[folder] = self._compare(folder)
        return self._doubts[folder]

    def _compare(self, folder: Path) -> str:
        standing = self.standing(folder)
        if standing is None:
            return "its results are not sealed"
        try:
            found = digests(folder)
        except (OSError, EvidenceError) as error:
            return f"its results cannot be compared with their seal: {error}"
        name = self._name(folder)
        kept = {
            file: digest
            for file, digest in standing.drill.files.items()
            if file in found or f"{name}/{file}" not in self._removed
        }
        return "" if found == kept else "its results are not those that were sealed"

    def evidence(self, folders: Sequence[Path]) -> Evidence:
        head = self._head
        doubts = {self._name(folder): self.doubt(folder) for folder in folders}
        return Evidence(
            state="broken" if self._broken else "intact" if head else "none",
            message=self._broken,
            head=Sealed(seq=head.seq, digest=head.digest) if head else None,
            doubts={name: doubt for name, doubt in doubts.items() if doubt},
        )

    def _name(self, folder: Path) -> str:
        return folder.relative_to(self._home).as_posix()


def _seq(entry: Entry) -> int:
    return entry.seq


# --- small things -------------------------------------------------------------------------


def _in_order(found: Iterable[str], names: Sequence[str]) -> list[str]:
    """The plan's order; what the plan does not name comes after, by name."""
    places = {name: place for place, name in enumerate(names)}
    return sorted(map(str, found), key=lambda name: (places.get(name, len(places)), name))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


def _text(value: object) -> str | None:
    return None if value is None or value != value else str(value)
