"""The scenario `network_isolation`: a primary is cut off, its standby takes over, and back."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pandas as pd

from recovery_pipelines.drills.network_checks import (
    Observed,
    Promise,
    Route,
    carries_normally,
    failed_over_in_time,
    judge,
    network_was_cut,
    self_test,
)
from recovery_pipelines.drills.preparation import prepare
from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.errors import NetworkError
from recovery_pipelines.network.outside import Laboratory
from recovery_pipelines.plan import DrillSpec

CHECKS = ("network_was_cut", "failed_over_in_time", "primary_restored", "self_test")
"""Checks beside the plan's criteria."""

_VANTAGE_POINTS = ["standby", "witness"]
_LEAST_BITS_PER_SECOND = 25_000_000
_PATHS = ["client → primary", "client → standby", "standby → primary", "witness → primary"]
_WRITING_HOSTS = ("client", "witness")
_PATIENCE_FACTOR = 1.5
_WORK_SECONDS = 60.0
_CHANCES = 2


@dataclass
class _Isolation:
    """What the steps hand on: the laboratory, and what was seen so far."""

    laboratory: Laboratory
    seen: Observed = field(default_factory=Observed)


def simulate_network_failure(run: DrillRun) -> pd.DataFrame:
    """Build hosts and a replicating pair, measure the network, and cut the primary off.

    Returns one row per path as it was before the failure: `path`, `accessible`, `loss`,
    `latency_seconds`, `bits_per_second`.
    """
    table = pd.DataFrame()
    with run.stage("simulate_network_failure"), run.needing(CHECKS):
        prepare(run)
        run.state = state = _start(run)
        laboratory = state.laboratory
        with run.working("databases built"):
            manager = laboratory.ask("build").get("managed_by")
        if manager:
            run.journal(event=f"the failover is up to {manager}")
            run.system_snapshot |= {"engine_version": manager}
        before = laboratory.ask("measure", paths=_PATHS)["paths"]
        laboratory.ask(
            "watch", points=_VANTAGE_POINTS, least_bits_per_second=_LEAST_BITS_PER_SECOND
        )
        cut = laboratory.ask("cut", kind=run.spec.engine)
        run.damaged_at = cut["ended"]
        run.fault_kinds = {run.spec.engine: 1}
        run.journal(event=f"network failed: {run.spec.engine}")
        state.seen = replace(state.seen, before=before, cut_at=run.damaged_at)
        table = pd.DataFrame(list(state.seen.before))
        run.keep("paths_before", table)
    return table


def activate_failover(run: DrillRun) -> pd.DataFrame:
    """Notice the failure from two hosts, fence the primary, and promote the standby.

    Returns one row per look at the primary: `seconds` since the failure, `vantage_point`, `why`
    (empty: it was well).
    """
    table = pd.DataFrame(columns=["seconds", "vantage_point", "why"])
    with run.stage("activate_failover") as wanted:
        if wanted and run.damaged_at is not None:
            state = _state(run)
            pair = run.spec.pair
            patience = pair.failover_seconds * _PATIENCE_FACTOR
            found = state.laboratory.ask(
                "fail_over",
                timeout_seconds=patience + _WORK_SECONDS,
                fence=pair.fencing,
                patience=patience,
            )
            state.seen = replace(
                state.seen, declared_at=found["declared_at"], promoted_at=found["promoted_at"]
            )
            _note_times(run, found)
            table = pd.DataFrame(found["observations"])
            table["seconds"] = table["at"] - run.damaged_at
            table = table[["seconds", "vantage_point", "why"]]
        run.keep("observations", table)
    return table


def verify_connectivity(run: DrillRun) -> pd.DataFrame:
    """While the network is still cut: what is reached, who is served, and by whom.

    Returns one row per path, as in the first step.
    """
    table = pd.DataFrame()
    with run.stage("verify_connectivity") as wanted:
        if wanted:
            state = _state(run)
            during = state.laboratory.ask("measure", paths=_PATHS, transfers=1)["paths"]
            since = state.seen.promoted_at or run.damaged_at or time.monotonic()
            services = state.laboratory.ask("services", since=since)
            state.seen = replace(
                state.seen,
                during=during,
                served_by=services["served"],
                primaries=services["primaries"],
            )
            table = pd.DataFrame(list(state.seen.during))
            run.keep("paths_during", table)
    return table


def restore_primary_network(run: DrillRun) -> pd.DataFrame:
    """Heal the network, rewind and rejoin the former primary, hand back to it, and judge.

    Returns one row per path as it is after the restoration.
    """
    table = pd.DataFrame()
    with run.stage("restore_primary_network") as wanted:
        if wanted:
            state = _state(run)
            _restore(run, state, state.laboratory)
            table = pd.DataFrame(list(state.seen.after))
            run.keep("paths_after", table)
        if not run.lacking:
            _conclude(run, _state(run))
        run.keep("checks", pd.DataFrame(run.checks))
    return table


STEPS = {
    step.__name__: step
    for step in (
        simulate_network_failure,
        activate_failover,
        verify_connectivity,
        restore_primary_network,
    )
}


def promise_of(spec: DrillSpec) -> Promise:
    """What the plan promises of the drill's target."""
    return Promise(
        synchronous=spec.pair.replication == "synchronous",
        latency_seconds=spec.pair.latency_seconds,
        may_lose_seconds=spec.pair.may_lose_seconds,
        failover_seconds=spec.pair.failover_seconds,
    )


def _start(run: DrillRun) -> _Isolation:
    laboratory = Laboratory(
        run.sandbox,
        run.sandbox.tree("logs").path,
        synchronous=run.spec.pair.replication == "synchronous",
        patroni=run.spec.pair.patroni,
    )
    run.cleanup.callback(laboratory.end)
    return _Isolation(laboratory)


def _state(run: DrillRun) -> _Isolation:
    assert isinstance(run.state, _Isolation), "the first step makes it"
    return run.state


def _note_times(run: DrillRun, found: dict[str, float | None]) -> None:
    declared_at, promoted_at = found["declared_at"], found["promoted_at"]
    if run.damaged_at is None or declared_at is None or promoted_at is None:
        run.journal(event="no failover: the standby was not promoted")
        return
    run.phases["detect"] = declared_at - run.damaged_at
    run.phases["publish"] = promoted_at - declared_at
    run.published = True
    run.journal(
        event="failed over",
        detect_seconds=round(run.phases["detect"], 3),
        promote_seconds=round(run.phases["publish"], 3),
        fenced=found["fenced_at"] is not None,
    )


def _restore(run: DrillRun, state: _Isolation, laboratory: Laboratory) -> None:
    """Restore; what does not come back is a finding, not an error of the drill."""
    try:
        laboratory.ask("heal")
        if state.seen.promoted_at is not None:
            with run.working("rewound and rejoined"):
                laboratory.ask("rejoin")
            with run.working("handed back"):
                laboratory.ask("fail_back")
    except NetworkError as error:
        run.note_not_recovered(error)
    after = _measure_after(laboratory, state.seen.before)
    writes = {host: laboratory.ask("write_once", source=host)["node"] for host in _WRITING_HOSTS}
    found = laboratory.ask("finish")
    state.seen = replace(
        state.seen,
        after=after,
        writes_after=writes,
        acknowledged=found["acknowledged"],
        held=found["held"],
        primaries_after=found["primaries"],
        standby_follows=found["standby_follows"],
    )
    run.keep("acknowledgements", pd.DataFrame(found["acknowledged"]))


def _measure_after(laboratory: Laboratory, before: Sequence[Route]) -> list[Route]:
    """Every path once; what carries too little is given more chances to show what it can carry."""
    after: list[Route] = laboratory.ask("measure", paths=_PATHS)["paths"]
    for _ in range(_CHANCES):
        slow = [path["path"] for path in after if not carries_normally(path, before)]
        if not slow:
            break
        again = laboratory.ask("measure", paths=slow)["paths"]
        rates = {path["path"]: path["bits_per_second"] for path in again}
        after = [
            {**path, "bits_per_second": max(path["bits_per_second"], rates.get(path["path"], 0))}
            for path in after
        ]
    return after


def _conclude(run: DrillRun, state: _Isolation) -> None:
    seen = state.seen
    names = (*run.spec.scenario.validation_criteria.names, "primary_restored")
    promise = promise_of(run.spec)
    run.checks += [judge(name, seen, promise) for name in names]
    run.checks.append(network_was_cut(seen, run.spec.engine))
    run.checks.append(failed_over_in_time(seen, promise))
    run.canaries, verdict = self_test(names, seen, promise)
    run.checks.append(verdict)
    run.lost_entries = len(seen.lost)
    run.measured |= {
        "acknowledged_writes": len(seen.acknowledged),
        "lost_writes": len(seen.lost),
        "client_gap_seconds": _client_gap(seen),
        "rpo_seconds": seen.lost_seconds,
    }


def _client_gap(seen: Observed) -> float | None:
    """The longest time without an acknowledgement for the client, from the failure on."""
    if seen.cut_at is None:
        return None
    times = [write["at"] for write in seen.acknowledged if write["writer"] == "client"]
    known = [at for at in times if at < seen.cut_at][-1:]
    since = sorted([*known, *(at for at in times if at >= seen.cut_at)])
    return max((b - a for a, b in pairwise(since)), default=None)
