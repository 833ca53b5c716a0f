"""The rules behind recommendations: one function each, from a drill's evidence to findings.

A rule says nothing without evidence, names the drill, month and run that it rests on, and has its
limits as constants beside it. A new rule is a function and a line in RULES.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import scipy

from recovery_pipelines.analysis.control import MINIMUM_DRILLS
from recovery_pipelines.analysis.drills import passes_needed, success_bound
from recovery_pipelines.drills.preparation import room_for
from recovery_pipelines.drills.record import DrillRecord
from recovery_pipelines.engines.base import SNAPSHOTS_LOST
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.plan.reporting import Category, Priority
from recovery_pipelines.plan.targets import Target
from recovery_pipelines.verdict import CheckResult, Verdict

YEAR_MONTHS = 12
RECENT_MONTHS = 3
"""How long a missed month, or a retry, is worth talking about."""
UNPROVEN_MONTHS = 3
"""Months in a row without a proven restore after which the last proof is old."""
RELIABLE_DRILLS = 12
RELIABLE_SUCCESS = 0.70
"""What a dozen drills should prove at least; 12 of 12 prove .78, 11 of 12 only .66."""
TIMEOUT_SHARE = 0.8
DISK_MONTHS = 6
"""How far ahead the data home must have room for the drill."""
DISK_FACTOR = 1.5
SPIKE_TIMES = 1.5
NOISY_DEVIATION = 0.3
"""Deviation of log recovery times from which half as much again goes unnoticed."""
NOISY_DRILLS = 8
SOON_MONTHS = 6
OF_RECOVERY = ("recovery_seconds", "resolution_seconds")
_DATA_CHECKS = ("backup_verification", "all_files_recovered", "checksums_match")
_ENVIRONMENT = ("host", "system", "python", "engine_version", "processors")


@dataclass(frozen=True)
class Finding:
    """What a rule found. `subject` tells it from the rule's other findings, month after month."""

    subject: str
    priority: Priority
    title: str
    evidence: str
    action: str
    gain: str


@dataclass(frozen=True)
class Evidence:
    """What is known of one drill of the plan at the end of a month."""

    spec: DrillSpec
    attempts: pd.DataFrame
    """Rows of `load_history`, oldest first; at least one."""
    months: pd.DataFrame
    """Rows of `monthly`, oldest first."""
    records: Mapping[tuple[str, str], DrillRecord]
    """By month and run id; an attempt whose record is damaged or absent has none."""
    missed: list[str]
    """Months that are over and had no attempt, since the drill's first."""
    events: pd.DataFrame
    """Anomalies that are open."""
    normal_since: str
    """The month with which an acknowledged recovery time became the new normal; empty if none."""
    forecast: Mapping[str, Any]
    """The drill's row of `forecast`; empty without one."""
    now: str
    """The month that is being looked back from, `YYYY-MM-01`."""

    @property
    def drill(self) -> str:
        return self.spec.name

    @cached_property
    def newest(self) -> Any:
        """The last attempt of the newest month."""
        return self.attempts.iloc[-1]

    @property
    def verdict(self) -> Verdict:
        """The effective verdict of the newest attempt: with the sign-offs since."""
        return Verdict(self.newest["verdict"])

    @cached_property
    def record(self) -> DrillRecord | None:
        """Of the newest attempt."""
        return self.records.get((self.newest["month"], self.newest["run_id"]))

    @cached_property
    def of_newest_month(self) -> list[DrillRecord]:
        """The records of all attempts of the newest month."""
        month = self.newest["month"]
        return [record for (at, _), record in self.records.items() if at == month]

    @property
    def bound(self) -> str:
        """The success rate that the drills prove, in words."""
        proven, total = int(self.months["proven"].sum()), len(self.months)
        return f"{proven} of {total} months proven: at least {success_bound(proven, total):.0%}"

    def cite(self, attempt: Any) -> str:
        return _citation(self.drill, attempt["month"], attempt["run_id"])

    def checks(self, verdict: Verdict) -> Iterator[tuple[DrillRecord, CheckResult]]:
        """The newest month's checks with that verdict, each once."""
        seen = set()
        for record in self.of_newest_month:
            for check in record.checks:
                if check.verdict is verdict and check.name not in seen:
                    seen.add(check.name)
                    yield record, check


def _cite(record: DrillRecord) -> str:
    return _citation(record.drill, record.month, record.run_id)


def _citation(drill: str, month: str, run_id: str) -> str:
    return f"{drill} {month[:7]}, run {run_id}"


def _age(now: str, month: str) -> int:
    """Whole months from `month` to `now`."""
    years, months = (int(now[part]) - int(month[part]) for part in (slice(4), slice(5, 7)))
    return 12 * years + months


def _names(values: list[str]) -> str:
    return ", ".join(dict.fromkeys(values))


# --- what the newest drill found ----------------------------------------------------------


def snapshot_expired(at: Evidence) -> Iterator[Finding]:
    for record, check in at.checks(Verdict.FAIL):
        if SNAPSHOTS_LOST in check.found:
            yield Finding(
                at.drill,
                "critical",
                f"{at.drill}: recorded snapshots are gone from the repository",
                f"{_cite(record)}: {check.name} FAIL: {check.found}",
                "Compare the tool's retention (forget, prune, expire) with what the plan must be "
                "able to restore; protect the repository against deletion; make a full backup now.",
                f"Every recorded snapshot can be restored again. So far {at.bound}.",
            )


def failing_check(at: Evidence) -> Iterator[Finding]:
    for record, check in at.checks(Verdict.FAIL):
        if SNAPSHOTS_LOST in check.found:
            continue
        yield Finding(
            f"{at.drill}.{check.name}",
            "critical" if check.name in _DATA_CHECKS else "high",
            f"{at.drill}: {check.name} fails",
            f"{_cite(record)}: expected {check.expected}; found {check.found}",
            "Do not count on this backup. Compare `differences.parquet` in the run's folder with "
            "the backup tool's log, mend the cause, and drill again.",
            f"The data can be restored again. So far {at.bound}; a proven month needs a drill "
            "without a finding.",
        )


def manual_check_failed(at: Evidence) -> Iterator[Finding]:
    record = at.record
    if record is not None and at.verdict is Verdict.FAIL is not record.verdict:
        yield Finding(
            at.drill,
            "critical",
            f"{at.drill}: a person found it wrong",
            f"{_cite(record)}: {record.verdict} by itself, FAIL by sign-off of "
            f"{_names(list(record.manual_checks))}",
            "`recovery signoff` shows what was found; mend the cause and drill again.",
            f"The data can be used after a restore. So far {at.bound}.",
        )


def check_untrusted(at: Evidence) -> Iterator[Finding]:
    for record, check in at.checks(Verdict.INVALID):
        yield Finding(
            f"{at.drill}.{check.name}",
            "critical",
            f"{at.drill}: {check.name} missed a planted fault",
            f"{_cite(record)}: expected {check.expected}; found {check.found}",
            "Treat the drill's other results as unproven until the check catches what it missed "
            "(the record's `canaries` name the faults).",
            "Its PASS means something again.",
        )


def drill_error(at: Evidence) -> Iterator[Finding]:
    record = at.record
    if record is None or record.verdict is not Verdict.ERROR:
        return
    errors = set(record.errors)
    if errors and errors <= {"DrillTimeout", "PreparationError"}:
        return
    yield Finding(
        at.drill,
        "high",
        f"{at.drill}: the drill could not run to its end",
        f"{_cite(record)}: {_names(record.errors)}: {'; '.join(record.messages)[:300]}",
        "Mend what the message names and run the month again; an ERROR proves nothing either way.",
        f"The month can be proven. So far {at.bound}.",
    )


def not_enough_room(at: Evidence) -> Iterator[Finding]:
    record = at.record
    if record is not None and "PreparationError" in record.errors:
        yield Finding(
            at.drill,
            "high",
            f"{at.drill}: a requirement for the drill is not met",
            f"{_cite(record)}: {'; '.join(record.messages)[:300]}",
            "Give the data home what the message asks for, or make the target smaller.",
            f"The month can be proven. So far {at.bound}.",
        )


def timeout(at: Evidence) -> Iterator[Finding]:
    limit = at.spec.controls.timeout
    record = at.record
    if record is None:
        return
    seconds = _duration_seconds(record)
    if "DrillTimeout" in record.errors:
        yield Finding(
            at.drill,
            "high",
            f"{at.drill}: the drill runs into its timeout",
            f"{_cite(record)}: {'; '.join(record.messages)[:300]}",
            "Raise execution_controls.timeout, make the target smaller, or give the host more.",
            f"The month can be proven. So far {at.bound}.",
        )
    elif seconds > TIMEOUT_SHARE * limit:
        yield Finding(
            at.drill,
            "medium",
            f"{at.drill}: the drill nears its timeout",
            f"{_cite(record)}: {seconds:.0f} s of {limit} s ({seconds / limit:.0%})",
            "Raise execution_controls.timeout before a month is lost to it.",
            "Drills go on to prove something as the data grows.",
        )


def not_verified(at: Evidence) -> Iterator[Finding]:
    record = at.record
    if record is None or at.verdict is not Verdict.UNVERIFIED or _not_sealed(record):
        return
    if record.automated_verdict is Verdict.PASS:
        return  # it waits for a person: sign_off_missing
    unverified = [c.name for c in record.checks if c.verdict is Verdict.UNVERIFIED]
    said = [f"unverified: {_names(unverified)}"] if unverified else []
    yield Finding(
        at.drill,
        "high",
        f"{at.drill}: the drill proves nothing",
        f"{_cite(record)}: UNVERIFIED; {'; '.join([*said, *record.not_tested])[:300]}",
        "Put the missing steps and criteria back into the plan, give the target data that can be "
        "checked.",
        f"The months count as proof. So far {at.bound}.",
    )


def sign_off_missing(at: Evidence) -> Iterator[Finding]:
    record = at.record
    if record is None or at.verdict is not Verdict.UNVERIFIED:
        return
    if record.manual_checks and record.automated_verdict is Verdict.PASS:
        yield Finding(
            at.drill,
            "medium",
            f"{at.drill}: waits for a person's sign-off",
            f"{_cite(record)}: every automated check PASS; the plan also asks for "
            f"{_names(list(record.manual_checks))}",
            "`recovery signoff` records what a named person verified.",
            f"The month counts as proven. So far {at.bound}.",
        )


def not_sealed(at: Evidence) -> Iterator[Finding]:
    record = at.record
    if record is not None and _not_sealed(record):
        yield Finding(
            at.drill,
            "high",
            f"{at.drill}: the result is not in the chain of evidence",
            f"{_cite(record)}: {_not_sealed(record)}",
            "Mend the evidence store (`recovery evidence verify` says what is wrong), then drill "
            "again.",
            "An auditor can rely on the result.",
        )


def objective_missed(at: Evidence) -> Iterator[Finding]:
    record = at.record
    if record is None:
        return
    for name, metric in (("rto", "recovery_seconds"), ("rpo", "rpo_seconds")):
        limit, value = record.objectives.get(f"{name}_seconds"), record.metrics.get(metric)
        if limit is None or value is None or value <= limit:
            continue
        values = [
            each.metrics.get(metric) for _, each in at.records.items() if each.month <= at.now
        ]
        over = sum(each is not None and each > limit for each in values[-YEAR_MONTHS:])
        yield Finding(
            f"{at.drill}.{name}",
            "critical" if over >= RECENT_MONTHS else "high",
            f"{at.drill}: {name.upper()} missed",
            f"{_cite(record)}: {metric} {value:.3g} s, objective {limit:g} s; "
            f"missed in {over} of the last {min(len(values), YEAR_MONTHS)} drills",
            "Restore faster (selective recovery, more cores or I/O, a nearer repository)"
            if name == "rto"
            else "Back up more often, or move the writes that were lost to a log that is kept.",
            f"{metric} falls by {1 - limit / value:.0%} or more to meet its objective.",
        )


def not_tested(at: Evidence) -> Iterator[Finding]:
    record = at.record
    if record is None or not record.not_tested:
        return
    by_plan = [line for line in record.not_tested if "left out of the plan" in line]
    yield Finding(
        at.drill,
        "medium" if by_plan else "low",
        f"{at.drill}: {len(record.not_tested)} things are not tested",
        f"{_cite(record)}: {'; '.join(record.not_tested)[:300]}",
        "Put them back into the plan, or on a machine and data where they can be tested; or accept "
        "the gap in writing.",
        "The claim covers them too.",
    )


# --- what the months say ------------------------------------------------------------------


def drill_killed(at: Evidence) -> Iterator[Finding]:
    problem = at.newest["problem"]
    if isinstance(problem, str) and problem.startswith("no record"):
        yield Finding(
            at.drill,
            "medium",
            f"{at.drill}: the drill was killed",
            f"{at.cite(at.newest)}: {problem}",
            "Look for the host's restart or the kernel's out-of-memory killer at that time, and "
            "run the month again.",
            f"The month can be proven. So far {at.bound}.",
        )


def damaged_record(at: Evidence) -> Iterator[Finding]:
    recent = at.attempts[[_age(at.now, month) < YEAR_MONTHS for month in at.attempts["month"]]]
    damaged = recent[recent["problem"].astype(str).str.startswith("the record is damaged")]
    if len(damaged):
        last = damaged.iloc[-1]
        yield Finding(
            at.drill,
            "high",
            f"{at.drill}: {len(damaged)} damaged record(s)",
            f"{at.cite(last)}: {last['problem']}",
            "Run `recovery evidence verify`, restore the folder from a copy, and find out who or "
            "what wrote to it.",
            f"The months count again. So far {at.bound}.",
        )


def month_missed(at: Evidence) -> Iterator[Finding]:
    recent = [month for month in at.missed if _age(at.now, month) < RECENT_MONTHS]
    if not recent:
        return
    year = [month for month in at.missed if _age(at.now, month) < YEAR_MONTHS]
    yield Finding(
        at.drill,
        "high" if len(year) >= RECENT_MONTHS else "medium",
        f"{at.drill}: no drill in {_names([month[:7] for month in recent])}",
        f"no attempt of {at.drill} in {_names([month[:7] for month in year])}: "
        f"{len(year)} of the last {YEAR_MONTHS} months",
        "See that the schedule and the daemon run, and backfill the month in Dagster.",
        f"One more drill a month towards the next claim. So far {at.bound}.",
    )


def proof_is_old(at: Evidence) -> Iterator[Finding]:
    proven = at.months[at.months["proven"]]["month"]
    since = proven.iloc[-1] if len(proven) else at.months["month"].iloc[0]
    months = _age(at.now, since) + (0 if len(proven) else 1)
    if months >= UNPROVEN_MONTHS:
        last = f"the last was {since[:7]}" if len(proven) else "never since the first drill"
        yield Finding(
            at.drill,
            "critical",
            f"{at.drill}: no proven restore for {months} months",
            f"{last}; now {at.newest['verdict']} ({at.cite(at.newest)}); {at.bound}",
            "Put this drill first: until it passes, nobody knows whether the data can be restored.",
            "A proven restore instead of a hope.",
        )


def failure_recurs(at: Evidence) -> Iterator[Finding]:
    """A check that failed, was right again, and failed again within a year."""
    failed: dict[str, list[str]] = {}
    months = [m for m in at.months["month"] if _age(at.now, m) < YEAR_MONTHS]
    by_month = {
        month: [r for (at_, _), r in at.records.items() if at_ == month] for month in months
    }
    for month, records in by_month.items():
        for name in {c.name for r in records for c in r.checks if c.verdict is Verdict.FAIL}:
            failed.setdefault(name, []).append(month)
    for name, when in sorted(failed.items()):
        spells = sum(
            position == 0 or months.index(when[position - 1]) < months.index(month) - 1
            for position, month in enumerate(when)
        )
        if spells >= 2:
            yield Finding(
                f"{at.drill}.{name}",
                "high",
                f"{at.drill}: {name} fails again and again",
                f"FAIL in {_names([month[:7] for month in when])}, right in between; {at.bound}",
                "Look for what these months have in common: mending the result did not mend the "
                "cause.",
                "No third time.",
            )


def restores_unreliable(at: Evidence) -> Iterator[Finding]:
    proven, total = int(at.months["proven"].sum()), len(at.months)
    bound = success_bound(proven, total)
    if total < RELIABLE_DRILLS or bound >= RELIABLE_SUCCESS:
        return
    passes = passes_needed(proven, total, RELIABLE_SUCCESS)
    unproven = at.months[~at.months["proven"]]
    listed = [f"{row['month'][:7]} {row['verdict']}" for row in unproven.to_dict("records")]
    yield Finding(
        at.drill,
        "high",
        f"{at.drill}: too many months without proof",
        f"{at.bound} (one-sided 95 %); not proven: {_names(listed[-YEAR_MONTHS:])}",
        "Treat the causes together, and drill more often than monthly until the rate is back.",
        f"{passes} passes in a row prove {RELIABLE_SUCCESS:.0%} again.",
    )


def retries_needed(at: Evidence) -> Iterator[Finding]:
    """Months that passed only at a later attempt, twice within the last few."""
    recent = at.months[[_age(at.now, month) < RECENT_MONTHS for month in at.months["month"]]]
    again = recent[(recent["attempts"] > 1) & recent["proven"]]
    if len(again) >= 2:
        attempts = [
            f"{row['month'][:7]} ({row['attempts']} attempts)" for row in again.to_dict("records")
        ]
        failed = at.attempts[
            at.attempts["month"].isin(again["month"]) & (at.attempts["verdict"] == Verdict.ERROR)
        ]
        errors = [
            name
            for row in failed.to_dict("records")
            if (record := at.records.get((row["month"], row["run_id"])))
            for name in record.errors
        ]
        yield Finding(
            at.drill,
            "medium",
            f"{at.drill}: passes only when tried again",
            f"{at.drill}: {', '.join(attempts)}; errors: {_names(errors) or 'not recorded'}",
            "Mend what makes the first attempt fail: in an emergency each attempt costs time.",
            "A recovery that works at the first attempt.",
        )


def never_drilled(spec: DrillSpec, first: str, now: str) -> Iterator[Finding]:
    """For a drill without any attempt, so it has no Evidence."""
    yield Finding(
        spec.name,
        "high",
        f"{spec.name}: never drilled",
        f"no attempt of {spec.name} from {first[:7]}, the month of the first drill, to {now[:7]}",
        f"Launch the job {spec.name}, or take its target or engine out of the plan.",
        "A first proof: each passed drill counts towards the next claim.",
    )


# --- what the statistics say --------------------------------------------------------------


def growth(at: Evidence) -> Iterator[Finding]:
    """A lasting change that is steady growth."""
    found = _lasting(at, "growth")
    if not _matters(found):
        return
    metrics = list(found["metric"])
    lead = "recovery_seconds" if "recovery_seconds" in metrics else metrics[0]
    event = found[found["metric"] == lead].iloc[0]
    broken = at.forecast.get("broken_from") if lead == "recovery_seconds" else None
    priority: Priority = "medium" if lead in OF_RECOVERY else "low"
    gain = "Time to act before an objective is missed."
    evidence = (
        f"{at.drill}: {lead} {event['times_typical']:.2g} times its baseline, not as usual since "
        f"{event['first_month'][:7]}; metrics: {_names(metrics)}"
    )
    if broken:
        left = _age(broken, at.now)
        priority = "high" if left <= SOON_MONTHS else "medium"
        evidence += (
            f"; expected {at.forecast['expected_seconds']:.3g} s next month "
            f"({at.forecast['low_seconds']:.3g} to {at.forecast['high_seconds']:.3g}), objective "
            f"{at.forecast['rto_seconds']:g} s, broken from {broken[:7]}"
        )
        gain = f"The objective holds beyond {broken[:7]}, {left} month(s) from now."
    yield Finding(
        at.drill,
        priority,
        f"{at.drill}: {lead} grows every month",
        evidence,
        "Plan for more I/O, cores or a faster engine, or keep less in one target; see whether the "
        "data grows as the times do.",
        gain,
    )


def level_shift(at: Evidence) -> Iterator[Finding]:
    """A lasting change that is a step."""
    found = _lasting(at, "step")
    if not _matters(found):
        return
    metrics = list(found["metric"])
    lead = "recovery_seconds" if "recovery_seconds" in metrics else metrics[0]
    event = found[found["metric"] == lead].iloc[0]
    changed = _changed_around(at, event["first_month"])
    yield Finding(
        at.drill,
        "medium" if lead in OF_RECOVERY else "low",
        f"{at.drill}: {lead} has been higher since {event['first_month'][:7]}",
        f"{at.drill}: {lead} up to {event['times_typical']:.2g} times its baseline since "
        f"{event['first_month'][:7]}; metrics: {_names(metrics)}; "
        + (f"changed then: {changed}" if changed else "host and versions did not change then"),
        "Find what changed that month. If it is wanted, `recovery analysis acknowledge` makes it "
        "the new normal.",
        "The next change is seen: no baseline holds while a shift lasts.",
    )


def unusual_value(at: Evidence) -> Iterator[Finding]:
    """A recovery that took far longer than usual, in the newest month."""
    newest = at.newest["month"]
    for event in at.events.to_dict("records"):
        spike = event["found_by"] == "unusual value" and event["last_month"] == newest
        if event["metric"] == OF_RECOVERY[0] and spike and event["times_typical"] >= SPIKE_TIMES:
            yield Finding(
                at.drill,
                "low",
                f"{at.drill}: recovery took {event['times_typical']:.2g} times as long as usual",
                f"{at.cite(at.newest)}: {event['metric']} {at.newest[event['metric']]:.3g} s, "
                f"{event['times_typical']:.2g} times its baseline",
                "Look at the journal for the phase that took long, and at what else ran on the "
                "host. One slow drill needs no more; the next one tells.",
                "A cause found while the traces are fresh.",
            )


def noisy_times(at: Evidence) -> Iterator[Finding]:
    alike = at.months[at.months["month"] >= at.normal_since]
    values = alike["recovery_seconds"].to_numpy(dtype=float)
    logs = np.log(values[values > 0])
    steady = not _lasting(at, "growth", "step")["metric"].eq("recovery_seconds").any()
    can_repeat = isinstance(at.spec.target, Target) and at.spec.target.repeats == 1
    if len(logs) < NOISY_DRILLS or not steady or not can_repeat:
        return
    deviation = float(scipy.stats.median_abs_deviation(logs, scale="normal"))
    if deviation > NOISY_DEVIATION:
        yield Finding(
            at.drill,
            "low",
            f"{at.drill}: recovery times vary too much to see a change",
            f"{at.drill}: the logarithms of {len(logs)} recovery times deviate by {deviation:.2f} "
            "(median absolute deviation)",
            f"Set targets.{at.spec.target_name}.repeats to 3: the median of three counts.",
            "A recovery 1.5 times as slow is found far more often (docs/analysis.md).",
        )


def disk_runs_short(at: Evidence) -> Iterator[Finding]:
    """Free space in the data home against what the drill will need, now and in half a year."""
    known = [
        (record, record.system_snapshot["disk_free_bytes"], room_for(data_bytes))
        for record in list(at.records.values())[-YEAR_MONTHS:]
        if (data_bytes := record.metrics.get("data_bytes"))
        and record.system_snapshot.get("disk_free_bytes")
    ]
    if not known:
        return
    record, free_bytes, needed_bytes = known[-1]
    ahead_free, ahead_needed, growth_said = float(free_bytes), float(needed_bytes), ""
    if len(known) >= MINIMUM_DRILLS:
        months = np.array([_age(each.month, known[0][0].month) for each, _, _ in known])
        free, needed = (np.array([row[i] for row in known], float) for i in (1, 2))
        ahead_free += min(0.0, DISK_MONTHS * _monthly_change(months, free))
        ahead_needed *= np.exp(max(0.0, DISK_MONTHS * _monthly_change(months, np.log(needed))))
        growth_said = (
            f"; in {DISK_MONTHS} months about {_gigabytes(max(ahead_free, 0))} free and "
            f"{_gigabytes(ahead_needed)} needed"
        )
    short_now = free_bytes < DISK_FACTOR * needed_bytes
    if short_now or ahead_free < ahead_needed:
        yield Finding(
            at.drill,
            "high" if short_now else "medium",
            f"{at.drill}: the data home runs short of room",
            f"{_cite(record)}: {_gigabytes(free_bytes)} free, {_gigabytes(needed_bytes)} needed"
            + growth_said,
            "Move data_home to a larger disk, or free room on this one, before the drill refuses "
            "to start.",
            "Drills go on as the data grows.",
        )


# --- helpers ------------------------------------------------------------------------------


def _not_sealed(record: DrillRecord) -> str:
    return next((text for text in record.messages if text.startswith("not sealed: ")), "")


def _duration_seconds(record: DrillRecord) -> float:
    if not record.ended_at:
        return 0.0
    began = datetime.fromisoformat(record.metrics["started_at"])
    return (datetime.fromisoformat(record.ended_at) - began).total_seconds()


def _lasting(at: Evidence, *shapes: str) -> pd.DataFrame:
    """Open level shifts and trends of these shapes."""
    lasts = at.events["found_by"].str.contains("level shift|trend")
    return at.events[lasts & at.events["looks_like"].isin(shapes)]


def _matters(events: pd.DataFrame) -> bool:
    """One or two metrics of twelve may be chance, unless they are what recovery waits for."""
    return len(events) > 2 or bool(events["metric"].isin(OF_RECOVERY).any())


def _monthly_change(months: "np.ndarray[Any, Any]", sizes: "np.ndarray[Any, Any]") -> float:
    """Theil-Sen's slope; 0 if all are of one month."""
    first, second = np.triu_indices(len(months), 1)
    apart = months[second] - months[first]
    changes = (sizes[second] - sizes[first])[apart > 0] / apart[apart > 0]
    return float(np.median(changes)) if len(changes) else 0.0


def _changed_around(at: Evidence, month: str) -> str:
    """What the system snapshots say changed between the drill before `month` and that month."""
    before = [record for record in at.records.values() if record.month < month]
    then = [record for record in at.records.values() if record.month == month]
    if not before or not then:
        return ""
    old, new = before[-1].system_snapshot, then[-1].system_snapshot
    return "; ".join(
        f"{name} from {old.get(name)} to {new.get(name)}"
        for name in _ENVIRONMENT
        if old.get(name) != new.get(name)
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


@dataclass(frozen=True)
class Rule:
    """A rule's name begins the ids of its recommendations."""

    category: Category
    find: Callable[..., Iterator[Finding]]

    @property
    def name(self) -> str:
        return self.find.__name__


RULES: tuple[Rule, ...] = (
    Rule("risk_mitigation", failing_check),
    Rule("risk_mitigation", manual_check_failed),
    Rule("risk_mitigation", snapshot_expired),
    Rule("risk_mitigation", proof_is_old),
    Rule("risk_mitigation", restores_unreliable),
    Rule("risk_mitigation", objective_missed),
    Rule("risk_mitigation", damaged_record),
    Rule("risk_mitigation", not_sealed),
    Rule("process_improvements", check_untrusted),
    Rule("process_improvements", not_verified),
    Rule("process_improvements", sign_off_missing),
    Rule("process_improvements", drill_error),
    Rule("process_improvements", drill_killed),
    Rule("process_improvements", month_missed),
    Rule("process_improvements", failure_recurs),
    Rule("process_improvements", retries_needed),
    Rule("process_improvements", level_shift),
    Rule("process_improvements", unusual_value),
    Rule("process_improvements", noisy_times),
    Rule("process_improvements", not_tested),
    Rule("resource_needs", growth),
    Rule("resource_needs", disk_runs_short),
    Rule("resource_needs", not_enough_room),
    Rule("resource_needs", timeout),
)

WITHOUT_ATTEMPTS = Rule("risk_mitigation", never_drilled)
