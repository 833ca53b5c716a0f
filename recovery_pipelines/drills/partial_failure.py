"""The scenario `partial_failure`: what matters most of a system fails and is repaired by itself."""

import signal
import time
from collections.abc import Callable
from itertools import pairwise

import pandas as pd

from recovery_pipelines.drills.preparation import prepare
from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.drills.service_checks import FEWEST_ANSWERS
from recovery_pipelines.drills.system import System, system_of
from recovery_pipelines.drills.system_failure import judge_system
from recovery_pipelines.errors import MissingCapability, ServiceError
from recovery_pipelines.services.memory import make_group, oom_kills
from recovery_pipelines.services.stack import rank
from recovery_pipelines.verdict import CheckResult, Verdict

CHECKS = ("automated_recovery", "self_test")
"""Checks beside the plan's criteria."""

REPAIR_TIMEOUT_SECONDS = 30.0
_ANSWERS = FEWEST_ANSWERS + 20
_ANSWERS_AFTERWARDS = 5
"""Each client must be answered so often again before the system counts as repaired."""
_FEWEST_DESCRIPTORS = 3
_LEAST_MEMORY_BYTES = 1 << 20
_LOOK_SECONDS = 0.1
VOLUME = "volume"
"""Under this name the machine tells of its disk."""


def identify_critical_services(run: DrillRun) -> pd.DataFrame:
    """Start the stack and rank its services by how many others fall with each.

    Returns one row per service, the most critical first: `service`, `kind`, `dependants`,
    `falls_with_it`, `depends_on`, `critical`.
    """
    table = pd.DataFrame()
    with run.stage("identify_critical_services"), run.needing(CHECKS):
        prepare(run)
        run.state = system = System.start(run)
        table = rank(system.services)
        run.keep("services", table)
    return table


def simulate_service_crash(run: DrillRun) -> pd.DataFrame:
    """Do the drill's fault to every critical service at once, while clients write.

    Returns one row per fault: `service`, `fault`, `processes`.
    """
    table = pd.DataFrame()
    with run.stage("simulate_service_crash") as wanted:
        if wanted:
            system = system_of(run)
            system.observed_from["before"] = since = system.start_clients()
            with run.working("clients answered"):
                system.await_answers(_ANSWERS, since)
            table = pd.DataFrame(_crash(run, system))
        run.keep("crashes", table)
    return table


def verify_automated_recovery(run: DrillRun) -> pd.DataFrame:
    """Wait until the supervisor has noticed and repaired everything; nobody helps it.

    Returns its events since the crash: `seconds`, `service`, `event`, `detail`.
    """
    table = pd.DataFrame(columns=["seconds", "service", "event", "detail"])
    with run.stage("verify_automated_recovery") as wanted:
        if wanted and run.damaged_at is not None:
            system = system_of(run)
            at = run.damaged_at
            with run.working("repair awaited"):
                repaired_at = _await_repair(run, system, at)
            system.stop_clients()
            system.observed_from["until"] = time.monotonic()
            table = system.events_since(at)
            run.checks.append(_measure_repair(run, system, table, repaired_at))
        elif wanted:
            why = "the fault could not be done here: see the messages"
            expected = "the failure is noticed and repaired without help"
            run.checks.append(CheckResult("automated_recovery", Verdict.UNVERIFIED, expected, why))
        run.keep("recovery_events", table)
    return table


def validate_service_state(run: DrillRun) -> pd.DataFrame:
    """Look at services and data, compare with what was acknowledged, and show that the criteria
    can fail.

    Returns one row per client with what it was answered after the repair.
    """
    table = pd.DataFrame()
    with run.stage("validate_service_state") as wanted:
        if wanted and run.damaged_at is not None:
            system = system_of(run)
            until = system.observed_from["until"]
            if run.spec.engine == "disk_full":
                system.machine.ask("empty")
            table = judge_system(run, system, until)
        run.keep("checks", pd.DataFrame(run.checks))
    return table


STEPS = {
    step.__name__: step
    for step in (
        identify_critical_services,
        simulate_service_crash,
        verify_automated_recovery,
        validate_service_state,
    )
}


def _crash(run: DrillRun, system: System) -> list[dict[str, object]]:
    """Do the fault; where it cannot be done, say why and leave `damaged_at` open."""
    fault, ask = run.spec.engine, system.machine.ask
    ways: dict[str, Callable[[str], dict[str, object]]] = {
        "kill": lambda name: ask("signal", name=name, number=signal.SIGKILL),
        "hang": lambda name: ask("signal", name=name, number=signal.SIGSTOP),
        "out_of_memory": lambda name: _starve(run, system, name),
        "file_descriptors": lambda name: ask(
            "limit", name=name, resource="nofile", value=_FEWEST_DESCRIPTORS
        ),
        "disk_full": lambda name: ask("fill"),
    }
    ranked = rank(system.services)
    critical = [VOLUME] if fault == "disk_full" else list(ranked["service"][ranked["critical"]])
    rows: list[dict[str, object]] = []
    for name in critical:
        try:
            done = ways[fault](name)
        except ServiceError as error:
            run.messages.append(f"{fault} of {name} could not be done: {error}")
            system.spared.append(name)
            continue
        at = float(str(done["at"]))
        run.damaged_at = at if run.damaged_at is None else min(run.damaged_at, at)
        rows.append({"service": name, "fault": fault, "processes": done.get("processes")})
    run.fault_kinds = {fault: len(rows)} if rows else {}
    run.journal(event=f"{fault} of {', '.join(str(row['service']) for row in rows)}")
    system.crashed = [str(row["service"]) for row in rows]
    return rows


def _starve(run: DrillRun, system: System, name: str) -> dict[str, object]:
    """Let the kernel kill a service for its memory; where there is no memory cgroup, let its
    allocations fail."""
    try:
        group = make_group(run.sandbox, name)
    except MissingCapability as error:
        run.left_out.append(
            f"the kernel's OOM killer: {error}; the allocations of {name} fail instead (RLIMIT_AS)"
        )
        return system.machine.ask("limit", name=name, resource="as", value=_LEAST_MEMORY_BYTES)
    done = system.machine.ask("starve", name=name, group=str(group))
    system.starved[name] = group
    return done


def _await_repair(run: DrillRun, system: System, at: float) -> float | None:
    """When everything crashed was healthy again and every client was answered; None: in time it
    was not. A crash that has no effect within the timeout is no repair either."""
    deadline = time.monotonic() + REPAIR_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        run.remaining_seconds()
        healthy = [_healthy_again(system.events(), name, at) for name in system.crashed]
        if healthy and None not in healthy:
            since = max(moment for moment in healthy if moment is not None)
            if all(
                sum(when >= since for when in client.acknowledged().values()) >= _ANSWERS_AFTERWARDS
                for client in system.clients
            ):
                return since
        time.sleep(_LOOK_SECONDS)
    return None


def _healthy_again(events: pd.DataFrame, name: str, at: float) -> float | None:
    """When the service was last seen healthy after its failure was noticed."""
    own = events[(events["service"] == name) & (events["at"] >= at)]
    noticed = own["at"][own["event"] == "noticed"].min()
    healthy = own["at"][own["event"] == "healthy"].max()
    return float(healthy) if pd.notna(noticed) and healthy > noticed else None


def _measure_repair(
    run: DrillRun, system: System, events: pd.DataFrame, repaired_at: float | None
) -> CheckResult:
    """Times to detect and repair, what clients saw, and whether nobody had to help."""
    assert run.damaged_at is not None
    at, until = run.damaged_at, system.observed_from["until"]
    own = events[events["service"].isin(system.crashed)]
    noticed = own[own["event"] == "noticed"].groupby("service")["seconds"].min()
    errors = sum(
        int(((answers["ended"] >= at) & (answers["error"] != "")).sum())
        for answers in (client.answers() for client in system.clients)
    )
    gaps = {
        client.service.name: _longest_gap(client.acknowledged(), at, until)
        for client in system.clients
    }
    run.measured["client_errors"] = errors
    run.measured["client_gap_seconds"] = round(max(gaps.values(), default=0.0), 3)
    name = "automated_recovery"
    expected = (
        f"{', '.join(system.crashed)}: noticed and repaired without help "
        f"within {REPAIR_TIMEOUT_SECONDS:g} s"
    )
    clients = f"clients: {errors} errors, longest gap {max(gaps.values(), default=0.0):.2f} s"
    kills = {name: oom_kills(group) for name, group in system.starved.items()}
    if kills:
        killed = ", ".join(f"{count} of {name}" for name, count in kills.items())
        clients += f"; killed by the kernel's OOM killer: {killed}"
    system.spared += [name for name, count in kills.items() if not count]
    missed = [service for service in system.crashed if service not in noticed.index]
    if repaired_at is not None:
        run.phases["detect"] = float(noticed.max())
        run.phases["publish"] = max(repaired_at - at - run.phases["detect"], 0.0)
        run.published = True
        found = (
            f"noticed after {noticed.max():.2f} s, repaired after {repaired_at - at:.2f} s; "
            f"{clients}{_remedy(events)}"
        )
        if system.spared:
            found += f"; but not tested: {', '.join(system.spared)}, see the messages"
            return CheckResult(name, Verdict.UNVERIFIED, expected, found)
        return CheckResult(name, Verdict.PASS, expected, found)
    if missed and not errors and max(gaps.values(), default=0.0) < 1.0:
        found = f"{', '.join(missed)}: {run.spec.engine} had no effect that anybody noticed"
        return CheckResult(name, Verdict.UNVERIFIED, expected, f"{found}; {clients}")
    found = f"not noticed: {', '.join(missed)}" if missed else "noticed, but not repaired in time"
    return CheckResult(name, Verdict.FAIL, expected, f"{found}; {clients}{_remedy(events)}")


def _remedy(events: pd.DataFrame) -> str:
    """What helped where a restart cannot."""
    remedies = events["detail"][events["event"] == "remedied"]
    if remedies.empty:
        return ""
    return f"; a restart does not help here, this did: {'; '.join(map(str, remedies))}"


def _longest_gap(acknowledged: dict[int, float], at: float, until: float) -> float:
    """The longest time without an answer that ended after `at`; seconds."""
    before = max((when for when in acknowledged.values() if when < at), default=at)
    moments = [before, *sorted(when for when in acknowledged.values() if when >= at), until]
    return max(later - sooner for sooner, later in pairwise(moments))
