"""The criteria of the system-failure scenarios: what is observed, how it is judged, and the
self-test in which every criterion is seen to fail.

Observing asks the real services; judging is pure. A criterion that had nothing to look at is
UNVERIFIED, never PASS.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import scipy

from recovery_pipelines.checks import Canary, self_test_verdict
from recovery_pipelines.drills.system import System
from recovery_pipelines.errors import ServiceError
from recovery_pipelines.monitoring.baseline import DAYS, Usual
from recovery_pipelines.services.ledger import Comparison, compare
from recovery_pipelines.services.service import Service
from recovery_pipelines.tools import postgres_tool
from recovery_pipelines.verdict import CheckResult, Verdict

ERROR_RATE = 0.01
"""How often `no_degradation` may fail though nothing got slower, over all clients together."""
SLOWER_FACTOR = 2.0
"""Only what got slower by more than this counts as degraded: a cold cache does not."""
FEWEST_ANSWERS = 60
_WARM_UP_ANSWERS = 10
_QUANTILE = 0.95


@dataclass(frozen=True)
class Promise:
    """What the plan promises of the stack."""

    may_lose_seconds: Mapping[str, float]
    """By store: how old acknowledged writes may be that are lost."""
    response_seconds: float
    backed_up_at: Mapping[str, float] = field(default_factory=dict)
    """By store: nothing that was acknowledged before this monotonic time may be lost."""
    loss_is_unproven: str = ""
    """Why a loss could not have shown; empty if it could."""
    usual: Mapping[str, Usual] = field(default_factory=dict)
    """By client of a monitored service: the response times that monitoring has stored."""


@dataclass(frozen=True)
class Observed:
    """What was seen of a recovered system."""

    not_running: dict[str, str]
    """By service: empty if it runs and answers its probe, else what is wrong."""
    unreadable: dict[str, str]
    """By store or application: empty if its data could be read, else why not."""
    rows: dict[str, Comparison]
    """By store that could be read."""
    corruption: dict[str, str]
    """By tool and store: empty if it found nothing, else what."""
    before: dict[str, list[float]] = field(default_factory=dict)
    """By client: seconds per answered request, before the failure."""
    after: dict[str, list[float]] = field(default_factory=dict)
    """The same after the recovery."""
    errors_after: int = 0


def observe(system: System, acknowledged: Mapping[str, dict[int, float]], at: float) -> Observed:
    """Look at services and data; `acknowledged` by store, as of the monotonic time `at`."""
    unreadable: dict[str, str] = {}
    rows: dict[str, Comparison] = {}
    for client in system.stores:
        name = client.service.name
        try:
            rows[name] = compare(acknowledged[name], system.rows(client), at)
            unreadable[name] = ""
        except ServiceError as error:
            unreadable[name] = str(error)
    for client in system.clients:
        if client.kind == "http":
            unreadable[client.service.name] = _ask_http(system, client.service)
    return Observed(
        not_running=_not_running(system),
        unreadable=unreadable,
        rows=rows,
        corruption=dict(_look_for_corruption(system, client.service) for client in system.stores),
    )


def judge(name: str, seen: Observed, promise: Promise) -> CheckResult:
    """The verdict of one criterion on what was seen."""
    verdict, expected, found = _JUDGES[name](seen, promise)
    return CheckResult(name, verdict, expected, found)


_Judgement = tuple[Verdict, str, str]


def _all_services_running(seen: Observed, promise: Promise) -> _Judgement:
    expected = f"{len(seen.not_running)} services run and answer their probe"
    return _none_wrong(seen.not_running, expected, "run and answer")


def _data_accessible(seen: Observed, promise: Promise) -> _Judgement:
    expected = "every store can be read, every application reads and writes its stores"
    return _none_wrong(seen.unreadable, expected, "were read")


def _no_corruption(seen: Observed, promise: Promise) -> _Judgement:
    expected = "the stores' own checkers find nothing"
    return _none_wrong(seen.corruption, expected, "found nothing")


def _none_wrong(state: Mapping[str, str], expected: str, well: str) -> _Judgement:
    wrong = [f"{name}: {why}" for name, why in state.items() if why]
    if wrong:
        return Verdict.FAIL, expected, "; ".join(wrong)
    if not state:
        return Verdict.UNVERIFIED, expected, "there was nothing to look at"
    return Verdict.PASS, expected, f"{len(state)} of {len(state)} {well}"


def _checksums_match(seen: Observed, promise: Promise) -> _Judgement:
    expected = "every acknowledged write is there with its checksum" + "".join(
        f"; {name} may lose {seconds:g} s"
        for name, seconds in promise.may_lose_seconds.items()
        if seconds
    )
    broken = [f"{name} could not be read" for name, why in seen.unreadable.items() if why]
    told = []
    for name, rows in seen.rows.items():
        lost = f"{name}: {rows.lost} of {rows.acknowledged} acknowledged writes lost"
        if rows.lost:
            lost += f" ({rows.lost_seconds:.2f} s, {rows.holes} in the middle)"
        told.append(f"{lost}, {rows.wrong} wrong" if rows.wrong else lost)
        allowed = promise.may_lose_seconds.get(name, 0)
        backed_up_at = promise.backed_up_at.get(name, -math.inf)
        in_backup = rows.first_lost_at is not None and rows.first_lost_at < backed_up_at
        if in_backup:
            told[-1] += ", also from before its backup"
        if rows.wrong or rows.holes or rows.lost_seconds > allowed or in_backup:
            broken.append(name)
    found = "; ".join(told) or "no store could be read"
    if broken:
        return Verdict.FAIL, expected, found
    if not any(rows.acknowledged for rows in seen.rows.values()):
        return Verdict.UNVERIFIED, expected, "no write was acknowledged"
    if promise.loss_is_unproven:
        return Verdict.UNVERIFIED, expected, f"{found}; but {promise.loss_is_unproven}"
    return Verdict.PASS, expected, found


def _response_times_normal(seen: Observed, promise: Promise) -> _Judgement:
    limit = promise.response_seconds
    expected = f"{_QUANTILE:.0%} of each client's requests answered within {limit:g} s, no error"
    if promise.usual:
        expected += (
            f"; of a monitored service within {SLOWER_FACTOR:g} times what {_QUANTILE:.0%} of its "
            f"requests took in the last {DAYS} days"
        )
    if not _enough(seen.after):
        return Verdict.UNVERIFIED, expected, _too_few(seen.after)
    slowest = {name: _quantile(seconds) for name, seconds in seen.after.items()}
    limits = {
        name: min(limit, SLOWER_FACTOR * usual.p95_seconds) for name, usual in promise.usual.items()
    }
    found = "; ".join(
        f"{name}: {value * 1000:.1f} ms ({_comparison(promise.usual.get(name))})"
        for name, value in slowest.items()
    )
    found += f"; {seen.errors_after} errors"
    normal = all(value <= limits.get(name, limit) for name, value in slowest.items())
    return (Verdict.PASS if normal and not seen.errors_after else Verdict.FAIL), expected, found


def _comparison(usual: Usual | None) -> str:
    if usual is None:
        return "not monitored"
    return f"monitored: {usual.p95_seconds * 1000:.1f} ms of {usual.requests} requests"


def _no_degradation(seen: Observed, promise: Promise) -> _Judgement:
    expected = (
        f"no client is more than {SLOWER_FACTOR:g} times slower than before the failure "
        f"(one-sided Mann-Whitney test, error rate {ERROR_RATE:.0%} over all clients)"
    )
    if not (_enough(seen.before) and _enough(seen.after)):
        return Verdict.UNVERIFIED, expected, _too_few(seen.before, seen.after)
    told, slower = [], degraded_clients(seen.before, seen.after)
    for name, after in seen.after.items():
        medians = [statistics.median(seconds) * 1000 for seconds in (seen.before[name], after)]
        told.append(f"{name}: median {medians[0]:.1f} → {medians[1]:.1f} ms")
    found = "; ".join(told)
    if slower:
        return Verdict.FAIL, expected, f"{found}; slower: {', '.join(slower)}"
    return Verdict.PASS, expected, found


def degraded_clients(
    before: Mapping[str, list[float]], after: Mapping[str, list[float]]
) -> list[str]:
    """The clients whose requests take more than `SLOWER_FACTOR` times as long as before."""
    level = ERROR_RATE / max(len(after), 1)  # Bonferroni
    return [
        name
        for name, seconds in after.items()
        if scipy.stats.mannwhitneyu(
            seconds, [value * SLOWER_FACTOR for value in before[name]], alternative="greater"
        ).pvalue
        < level
    ]


def warm(seconds: Sequence[float]) -> list[float]:
    """Without the first answers of a client: they hold its connecting."""
    return list(seconds[_WARM_UP_ANSWERS:])


_JUDGES: dict[str, Callable[[Observed, Promise], _Judgement]] = {
    "all_services_running": _all_services_running,
    "data_accessible": _data_accessible,
    "checksums_match": _checksums_match,
    "no_corruption": _no_corruption,
    "response_times_normal": _response_times_normal,
    "no_degradation": _no_degradation,
}


# --- the self-test ------------------------------------------------------------------------


def self_test(
    system: System,
    names: Sequence[str],
    seen: Observed,
    promise: Promise,
    acknowledged: Mapping[str, dict[int, float]],
    at: float,
) -> tuple[list[dict[str, object]], CheckResult]:
    """Harm the recovered system, one harm for each criterion, and see that it is found.

    Only for criteria that passed: the others have shown that they can fail. The drill's own
    numbers must have been taken before. Returns the canaries and the check `self_test`.
    """
    promise = replace(promise, loss_is_unproven="")
    rows: list[Canary] = []

    def expect(name: str, kind: str, harmed: Observed) -> None:
        if name in names and judge(name, seen, promise).verdict is Verdict.PASS:
            result = judge(name, harmed, promise)
            caught = result.verdict is Verdict.FAIL
            rows.append(Canary(name, kind, b"", caught, f"{result.verdict}, {result.found}"))

    slow = {
        name: [value * SLOWER_FACTOR * 1.5 for value in values]
        for name, values in seen.before.items()
    }
    expect("no_degradation", "answers made three times slower", replace(seen, after=slow))
    late = {name: [promise.response_seconds * 2] * len(v) for name, v in seen.after.items()}
    expect("response_times_normal", "answers made late", replace(seen, after=late))
    unusual = {
        name: [usual.p95_seconds * SLOWER_FACTOR * 1.5] * len(seen.after.get(name, []))
        for name, usual in promise.usual.items()
    }
    if unusual:
        unlike = replace(seen, after={**seen.after, **unusual})
        expect("response_times_normal", "answers slower than monitoring knows them", unlike)
    for client in system.stores:
        harm = _harm_rows(system, client.service, acknowledged[client.service.name], at)
        name = client.service.name
        harmed_rows = compare(acknowledged[name], system.rows(client), at)
        harmed = replace(seen, rows={**seen.rows, name: harmed_rows})
        expect("checksums_match", f"{harm} in {name}", harmed)
    if _harm_index(system):
        harmed = observe(system, acknowledged, at)
        expect("no_corruption", "a row that its index lacks", harmed)
    system.machine.ask("stop")
    stopped = observe(system, acknowledged, at)
    expect("all_services_running", "services stopped", stopped)
    expect("data_accessible", "services stopped", stopped)
    canaries: list[dict[str, object]] = [asdict(row) for row in rows]
    return canaries, self_test_verdict(rows)


def _harm_rows(
    system: System, service: Service, acknowledged: Mapping[int, float], at: float
) -> str:
    """Damage one acknowledged row of a store: PostgreSQL's is changed, Redis's is deleted."""
    due = sorted(number for number, when in acknowledged.items() if when <= at)
    number = due[len(due) // 2] if due else 0
    if service.kind == "postgres":
        system.sql(service, f"update recovery_ledger set payload = 'x' where number = {number}")
        return f"row {number} changed"
    argv = ["redis-cli", "-p", str(service.port), "DEL", f"recovery:ledger:{number}"]
    system.machine.run(argv)
    return f"row {number} deleted"


def _harm_index(system: System) -> bool:
    """Let an index of the first PostgreSQL miss a row."""
    service = next((c.service for c in system.stores if c.kind == "postgres"), None)
    if service is None:
        return False
    ready = "update pg_index set indisready = {} where indexrelid = 'canary_x'::regclass"
    for statement in (
        "create table canary (x int); create index canary_x on canary (x)",
        ready.format("false"),
        "insert into canary values (1)",
        ready.format("true"),
    ):
        system.sql(service, statement)
    return True


# --- observing ----------------------------------------------------------------------------


def _not_running(system: System) -> dict[str, str]:
    states = system.machine.ask("status")["services"]
    return {
        name: "" if state["healthy"] else "does not answer its probe"
        for name, state in states.items()
    }


def _ask_http(system: System, service: Service) -> str:
    path = "/health" if service.kind == "application" else service.health.detail
    try:
        reply = system.machine.ask("get", port=service.port, path=path)
    except ServiceError as error:
        return f"GET {path}: {error}"
    return "" if reply["status"] == 200 else f"GET {path}: {reply['status']} {reply['text']}"


def _look_for_corruption(system: System, service: Service) -> tuple[str, str]:
    if service.kind == "postgres":
        argv = [
            postgres_tool("pg_amcheck"),
            *("-h", "127.0.0.1", "-p", str(service.port), "-U", "postgres"),
            *("--heapallindexed", "--install-missing", "postgres"),
        ]
        name = f"pg_amcheck of {service.name}"
    else:
        manifests = service.data / "appendonlydir" / "appendonly.aof.manifest"
        argv = ["redis-check-aof", str(manifests)]
        name = f"redis-check-aof of {service.name}"
    done = system.machine.run(argv)
    if done.returncode == 0:
        return name, ""
    lines = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()
    return name, "; ".join(lines[-3:]) or f"exit code {done.returncode}"


def _enough(samples: Mapping[str, list[float]]) -> bool:
    return bool(samples) and all(len(seconds) >= FEWEST_ANSWERS for seconds in samples.values())


def _too_few(*samples: Mapping[str, list[float]]) -> str:
    counts = [f"{name}: {len(s)}" for sample in samples for name, s in sample.items()]
    return f"too few answers ({', '.join(counts) or 'no client'}; {FEWEST_ANSWERS} are needed)"


def _quantile(seconds: Sequence[float]) -> float:
    return sorted(seconds)[int(_QUANTILE * (len(seconds) - 1))]
