"""The scenario `complete_system_failure`: everything goes down at once, and must come back."""

import time
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from recovery_pipelines.drills.preparation import prepare
from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.drills.service_checks import (
    FEWEST_ANSWERS,
    Observed,
    Promise,
    degraded_clients,
    judge,
    observe,
    self_test,
    warm,
)
from recovery_pipelines.drills.system import STORES, System, answer_table, client_name, system_of
from recovery_pipelines.errors import ServiceError
from recovery_pipelines.monitoring.baseline import usual_response_times
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.plan.model import VOLUME_DESTROYED
from recovery_pipelines.services.stack import rank
from recovery_pipelines.verdict import CheckResult, Verdict

CHECKS = ("power_was_cut", "self_test")
"""Checks beside the plan's criteria."""

_ANSWERS = FEWEST_ANSWERS + 20
_ROUNDS = 3
"""What is slower is measured again: only what stays slower is degraded."""


def shutdown_all_services(run: DrillRun) -> pd.DataFrame:
    """Start the stack, then stop all services in order, dependants first, under no load.

    Returns one row per service: `service`, `kind`, `dependants`, `falls_with_it`, `depends_on`,
    `critical`, `stopped_after_seconds`.
    """
    table = pd.DataFrame()
    with run.stage("shutdown_all_services"), run.needing(CHECKS):
        prepare(run)
        run.state = system = System.start(run)
        table = stop_all(run, system)
    return table


def power_off_simulation(run: DrillRun) -> pd.DataFrame:
    """Cut the power of the running, written-to system.

    Returns one row per client with what it was answered until then (see `answer_table`).
    """
    table = pd.DataFrame()
    with run.stage("power_off_simulation") as wanted:
        if wanted:
            system = system_of(run)
            system.machine.ask("start")
            system.observed_from["before"] = since = system.start_clients()
            with run.working("clients answered"):
                system.await_answers(_ANSWERS, since)
            system.cut = system.machine.ask("cut")
            system.machine.end()
            run.damaged_at = float(str(system.cut["before"]))
            how = "power cut" if system.cut["power_cut"] else "killed: not a power cut"
            run.journal(event=how)
            run.fault_kinds = {"power_cut": 1} if system.cut["power_cut"] else {"kill": 1}
            table = pd.DataFrame(answer_table(system, since))
        run.keep("answers_before", table)
    return table


def initiate_recovery(run: DrillRun) -> pd.DataFrame:
    """Switch the machine on again and start all services.

    Returns the supervisor's events since then: `seconds`, `service`, `event`, `detail`. Services
    that do not start are a finding of the next step, not an error of this one.
    """
    table = pd.DataFrame(columns=["seconds", "service", "event", "detail"])
    with run.stage("initiate_recovery") as wanted:
        if wanted and (system := system_of(run)).cut:
            began = time.monotonic()
            sentinels: dict[str, object] = {}
            try:
                with run.phase("publish"):
                    system.switch_on_again()
                    sentinels = system.machine.ask("sentinels", token=system.cut["token"])
                    system.machine.ask("start")
                run.published = True
            except ServiceError as error:
                run.note_not_recovered(error)
            run.checks.append(_power_was_cut(system, sentinels))
            table = system.events_since(began)
        run.keep("recovery_events", table)
    return table


def validate_restoration(run: DrillRun) -> pd.DataFrame:
    """Look at services and data, compare with what was acknowledged, and show that the criteria
    can fail.

    Returns one row per client with what it was answered after the recovery.
    """
    table = pd.DataFrame()
    with run.stage("validate_restoration") as wanted:
        if wanted and (system := system_of(run)).cut and run.damaged_at is not None:
            unproven = "" if system.cut["power_cut"] else "this was no power cut"
            table = judge_system(run, system, run.damaged_at, unproven)
        run.keep("checks", pd.DataFrame(run.checks))
    return table


STEPS = {
    step.__name__: step
    for step in (
        shutdown_all_services,
        power_off_simulation,
        initiate_recovery,
        validate_restoration,
    )
}


def stop_all(run: DrillRun, system: System) -> pd.DataFrame:
    """Stop all services in order; one row for each, see `shutdown_all_services`."""
    began = time.monotonic()
    with run.working("services stopped"):
        system.machine.ask("stop")
    events = system.events()
    stopped = events[events["event"] == "stopped"].set_index("service")["at"] - began
    table = rank(system.services)
    table["stopped_after_seconds"] = table["service"].map(stopped)
    run.keep("services", table)
    return table


def promise_of(
    spec: DrillSpec, loss_is_unproven: str = "", backed_up_at: Mapping[str, float] | None = None
) -> Promise:
    """What the plan promises of the drill's target."""
    stack = spec.stack
    volume_lost = spec.engine == VOLUME_DESTROYED
    return Promise(
        may_lose_seconds={
            name: service.volume_may_lose_seconds if volume_lost else service.may_lose_seconds
            for name, service in stack.services.items()
        },
        response_seconds=stack.response_seconds,
        backed_up_at=backed_up_at or {},
        loss_is_unproven=loss_is_unproven,
        usual={
            client_name(name): usual
            for name, usual in usual_response_times(
                spec.plan.data_home, spec.plan.monitoring, time.time()
            ).items()
            if name in stack.services and stack.services[name].kind not in STORES
        },
    )


def judge_system(
    run: DrillRun,
    system: System,
    at: float,
    loss_is_unproven: str = "",
    backed_up_at: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Look at services and data, compare with what was acknowledged until `at` (monotonic), let
    clients work again, and judge the plan's criteria.

    Returns one row per client with what it was answered (see `answer_table`).
    """
    table = pd.DataFrame()
    acknowledged = {c.service.name: c.acknowledged() for c in system.stores}
    seen = observe(system, acknowledged, at)
    measure_loss(run, seen)
    if run.published:
        seen, table = measure_responses(run, system, seen)
    promise = promise_of(run.spec, loss_is_unproven, backed_up_at)
    conclude(run, system, seen, promise, acknowledged, at)
    run.keep("answers_after", table)
    return table


def measure_loss(run: DrillRun, seen: Observed) -> None:
    """Acknowledged writes, and how many of them are lost."""
    run.lost_entries = sum(rows.lost for rows in seen.rows.values())
    first = [rows.first_lost_at for rows in seen.rows.values() if rows.first_lost_at is not None]
    run.first_lost_write_at = min(first, default=None)
    run.measured["acknowledged_writes"] = sum(rows.acknowledged for rows in seen.rows.values())


def measure_responses(
    run: DrillRun, system: System, seen: Observed
) -> tuple[Observed, pd.DataFrame]:
    """Let clients work again and compare their response times with those before the failure."""
    until = float(str(run.damaged_at))
    before = {
        client.name: warm(system.response_seconds(client, system.observed_from["before"], until))
        for client in system.clients
    }
    table = pd.DataFrame()
    for _round in range(_ROUNDS):
        since = system.start_clients()
        try:
            system.await_answers(_ANSWERS, since)
        except ServiceError as error:
            run.journal(event=str(error))
        until = time.monotonic()
        system.stop_clients()
        table = pd.DataFrame(answer_table(system, since))
        after = {
            client.name: warm(system.response_seconds(client, since, until))
            for client in system.clients
        }
        errors = int(table["errors"].sum()) if len(table) else 0
        seen = replace(seen, before=before, after=after, errors_after=errors)
        if all(map(len, after.values())) and not degraded_clients(before, after):
            break
    return seen, table


def conclude(
    run: DrillRun,
    system: System,
    seen: Observed,
    promise: Promise,
    acknowledged: dict[str, dict[int, float]],
    at: float,
) -> None:
    """Judge every criterion of the plan, and add the self-test."""
    names = run.spec.scenario.validation_criteria.names
    run.checks += [judge(name, seen, promise) for name in names]
    if not any([*seen.not_running.values(), *seen.unreadable.values()]):
        canaries, verdict = self_test(system, names, seen, promise, acknowledged, at)
        run.canaries += canaries
        run.checks.append(verdict)


def _power_was_cut(system: System, sentinels: dict[str, object]) -> CheckResult:
    """Whether unsynced data was really lost, and synced data was not."""
    name, expected = "power_was_cut", "what was synced is kept, what was not is lost"
    why = system.machine.ask("status")["power_cut"] if sentinels else "the volume did not come back"
    if why:
        return CheckResult(name, Verdict.UNVERIFIED, expected, str(why))
    found = (
        f"{sentinels['synced']} of {sentinels['of']} synced files kept, "
        f"{sentinels['unsynced']} of {sentinels['of']} unsynced files kept"
    )
    right = sentinels["synced"] == sentinels["of"] and sentinels["unsynced"] == 0
    return CheckResult(name, Verdict.PASS if right else Verdict.INVALID, expected, found)
