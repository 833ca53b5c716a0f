"""The criteria of network_isolation: what was observed, how it is judged, and the self-test in
which every criterion is seen to fail. Judging is pure; what was not observed is UNVERIFIED.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from recovery_pipelines.checks import Canary, self_test_verdict
from recovery_pipelines.verdict import CheckResult, Verdict

Route = Mapping[str, Any]
"""One measured path: `path`, `accessible`, `loss`, `latency_seconds`, `bits_per_second`."""
_NORMAL_SHARE = 0.5
"""Bandwidth is normal from this share of what the same path had before the failure."""


@dataclass(frozen=True)
class Promise:
    """What the plan promises of the pair."""

    synchronous: bool
    latency_seconds: float
    may_lose_seconds: float
    failover_seconds: float


@dataclass(frozen=True)
class Observed:
    """What was seen in one drill. Times are monotonic seconds."""

    before: Sequence[Route] = ()
    during: Sequence[Route] = ()
    after: Sequence[Route] = ()
    cut_at: float | None = None
    declared_at: float | None = None
    promoted_at: float | None = None
    served_by: Mapping[str, str | None] = field(default_factory=dict)
    """By client: the node that took its writes between failover and restoration."""
    primaries: Sequence[str] = ()
    """Nodes that took themselves for the primary at that time."""
    writes_after: Mapping[str, str | None] = field(default_factory=dict)
    """By host: the node that took a write after the restoration."""
    acknowledged: Sequence[Mapping[str, Any]] = ()
    """`writer`, `number`, `node`, `at`."""
    primaries_after: Sequence[str] = ()
    """Nodes that take themselves for the primary after the restoration."""
    standby_follows: bool = False
    """Whether the standby has all that the primary has then, and the primary waits for it if it
    must."""
    held: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    """By node and writer: the numbers that it holds at the end."""

    @property
    def lost(self) -> list[Mapping[str, Any]]:
        """Acknowledged writes that the primary lacks at the end."""
        held = {writer: set(numbers) for writer, numbers in self.held.get("primary", {}).items()}
        return [a for a in self.acknowledged if a["number"] not in held.get(a["writer"], set())]

    @property
    def lost_seconds(self) -> float:
        """From the first lost acknowledgement to the last."""
        times = [write["at"] for write in self.lost]
        return max(times) - min(times) if times else 0.0


_Judgement = tuple[Verdict, str, str]


def judge(name: str, seen: Observed, promise: Promise) -> CheckResult:
    """The result of one criterion."""
    verdict, expected, found = _JUDGES[name](seen, promise)
    return CheckResult(name, verdict, expected, found)


def network_was_cut(seen: Observed, kind: str) -> CheckResult:
    """Whether the failure could be seen in the network: without it, nothing was tested."""
    expected = f"{kind}: the path between the nodes is hurt"
    hurt = [path for path in seen.during if path["path"] == "standby → primary"]
    if not hurt:
        return CheckResult("network_was_cut", Verdict.UNVERIFIED, expected, "not measured")
    path = hurt[0]
    slow = not carries_normally(path, seen.before)
    lossy = path["loss"] == 1.0 if kind in _TOTAL else 0 < path["loss"] < 1
    right = slow if kind == "rate_limit" else lossy
    found = f"{path['path']}: {path['loss']:.0%} lost, {_rate(path)}"
    return CheckResult(
        "network_was_cut", Verdict.PASS if right else Verdict.INVALID, expected, found
    )


def failed_over_in_time(seen: Observed, promise: Promise) -> CheckResult:
    """Whether the standby took over within what the plan allows."""
    name, expected = "failed_over_in_time", f"within {promise.failover_seconds:g} s of the failure"
    if seen.cut_at is None:
        return CheckResult(name, Verdict.UNVERIFIED, expected, "there was no failure")
    if seen.promoted_at is None or seen.declared_at is None:
        return CheckResult(name, Verdict.FAIL, expected, "the standby did not take over")
    detect, promote = seen.declared_at - seen.cut_at, seen.promoted_at - seen.declared_at
    late = detect + promote > promise.failover_seconds
    found = f"noticed after {detect:.2f} s, took over {promote:.2f} s later"
    return CheckResult(name, Verdict.FAIL if late else Verdict.PASS, expected, found)


def self_test(
    names: Sequence[str], seen: Observed, promise: Promise
) -> tuple[list[dict[str, object]], CheckResult]:
    """Judge what was measured during the failure, and harmed copies of what was seen at the end.

    Only for criteria that passed: the others have shown that they can fail. Returns the canaries
    and the check `self_test`.
    """
    hurt = sorted(seen.during, key=lambda path: path["bits_per_second"])[:1]
    cut = replace(seen, after=hurt)
    lossy = replace(seen, after=[dict(path) | {"loss": 0.01} for path in seen.after])
    slow = replace(
        seen, after=[dict(p) | {"latency_seconds": promise.latency_seconds * 2} for p in seen.after]
    )
    missing = {
        node: {writer: numbers[1:] for writer, numbers in rows.items()}
        for node, rows in seen.held.items()
    }
    stretch = promise.may_lose_seconds + 1
    old = [{"writer": "canary", "number": n, "node": "primary", "at": n * stretch} for n in (0, 1)]
    losing = replace(seen, acknowledged=[*seen.acknowledged, *old])
    harms: list[tuple[str, str, dict[str, Any]]] = [
        ("all_services_accessible", "a client that no node serves", {"writes_after": {"x": None}}),
        ("no_split_brain", "two primaries", {"primaries": ["primary", "standby"]}),
        ("primary_restored", "writes go to the standby", {"writes_after": {"x": "standby"}}),
        ("primary_restored", "a standby that does not follow", {"standby_follows": False}),
    ]
    cases = [(name, kind, replace(seen, **harm)) for name, kind, harm in harms]
    cases += [
        ("no_packet_loss", "one echo in a hundred lost", lossy),
        ("latency_within_limits", "twice the limit", slow),
        ("bandwidth_normal", "the slowest path during the failure", cut),
        ("no_acknowledged_write_lost", "writes lost for longer than allowed", losing),
        ("no_acknowledged_write_lost", "rows that are gone", replace(losing, held=missing)),
    ]
    rows = []
    for name, kind, harmed in cases:
        if name in names and judge(name, seen, promise).verdict is Verdict.PASS:
            result = judge(name, harmed, promise)
            caught = result.verdict is Verdict.FAIL
            rows.append(Canary(name, kind, b"", caught, f"{result.verdict}, {result.found}"))
    return [asdict(row) for row in rows], self_test_verdict(rows)


_TOTAL = ("link_down", "drop", "one_sided_drop")


def _all_services_accessible(seen: Observed, promise: Promise) -> _Judgement:
    expected = "every host reaches both nodes and can write, also between failover and restoration"
    if not seen.after or not seen.writes_after:
        return Verdict.UNVERIFIED, expected, "not looked at"
    shut = [str(path["path"]) for path in seen.after if not path["accessible"]]
    shut += [f"{host} cannot write" for host, node in seen.writes_after.items() if node is None]
    shut += [f"{name} was not served" for name, node in seen.served_by.items() if node is None]
    if shut:
        return Verdict.FAIL, expected, "; ".join(shut)
    if not seen.served_by:
        return Verdict.UNVERIFIED, expected, "nobody looked between failover and restoration"
    return Verdict.PASS, expected, f"{len(seen.after)} paths, {len(seen.writes_after)} hosts write"


def _no_packet_loss(seen: Observed, promise: Promise) -> _Judgement:
    return _each(seen.after, "no echo is lost", _loss, lambda path: path["loss"] == 0)


def _latency_within_limits(seen: Observed, promise: Promise) -> _Judgement:
    def within(path: Route) -> bool:
        latency = path["latency_seconds"]
        return latency is not None and latency <= promise.latency_seconds

    expected = f"95 % of the echoes within {promise.latency_seconds * 1000:g} ms"
    return _each(seen.after, expected, _latency, within)


def _bandwidth_normal(seen: Observed, promise: Promise) -> _Judgement:
    expected = f"at least {_NORMAL_SHARE:.0%} of what it was before the failure"
    known = {path["path"] for path in seen.before}
    if any(path["path"] not in known for path in seen.after):
        return Verdict.UNVERIFIED, expected, "not measured before the failure"
    return _each(seen.after, expected, _rate, lambda path: carries_normally(path, seen.before))


def _no_split_brain(seen: Observed, promise: Promise) -> _Judgement:
    expected = "one primary at every moment: no node acknowledges beside the one promoted"
    if seen.promoted_at is None or not seen.primaries:
        return Verdict.UNVERIFIED, expected, "there was no failover to look at"
    taken_over_at = min(seen.promoted_at, _first_taken_over(seen))
    beside = [
        write
        for write in seen.acknowledged
        if write["node"] == "primary" and taken_over_at < write["at"] < _restored_at(seen)
    ]
    found = f"primaries after the failover: {', '.join(seen.primaries)}; "
    found += f"{len(beside)} writes acknowledged beside the promoted node"
    right = list(seen.primaries) == ["standby"] and not beside
    return Verdict.PASS if right else Verdict.FAIL, expected, found


def _first_taken_over(seen: Observed) -> float:
    """When the standby acknowledged for the first time: a poll may see its promotion later."""
    return min((w["at"] for w in seen.acknowledged if w["node"] == "standby"), default=float("inf"))


def _restored_at(seen: Observed) -> float:
    """When the standby acknowledged for the last time: what the primary says before that, it says
    beside it."""
    return max((w["at"] for w in seen.acknowledged if w["node"] == "standby"), default=float("inf"))


def _primary_restored(seen: Observed, promise: Promise) -> _Judgement:
    expected = "the primary takes every write again, and the standby follows it"
    if not seen.writes_after:
        return Verdict.UNVERIFIED, expected, "not looked at"
    taken = sorted({node or "nobody" for node in seen.writes_after.values()})
    found = f"writes taken by: {', '.join(taken)}; primaries: {', '.join(seen.primaries_after)}; "
    found += f"the standby {'follows' if seen.standby_follows else 'does not follow'}"
    alone = taken == list(seen.primaries_after) == ["primary"]
    right = alone and seen.standby_follows
    return Verdict.PASS if right else Verdict.FAIL, expected, found


def _no_acknowledged_write_lost(seen: Observed, promise: Promise) -> _Judgement:
    expected = "no acknowledged write is lost (synchronous)"
    if not promise.synchronous:
        expected = f"at most {promise.may_lose_seconds:g} s of them are lost (asynchronous)"
    if len(seen.held) < 2 or not seen.acknowledged:
        return Verdict.UNVERIFIED, expected, "the nodes could not be read"
    lost, count = seen.lost, len(seen.acknowledged)
    found = f"{len(lost):,} of {count:,} acknowledged writes lost, over {seen.lost_seconds:.2f} s"
    if seen.held["primary"] != seen.held["standby"]:
        return Verdict.FAIL, expected, found + "; the nodes differ"
    allowed = 0.0 if promise.synchronous else promise.may_lose_seconds
    right = not lost or (allowed > 0 and seen.lost_seconds <= allowed)
    return Verdict.PASS if right else Verdict.FAIL, expected, found


def _each(
    paths: Sequence[Route],
    expected: str,
    show: Callable[[Route], str],
    right: Callable[[Route], bool],
) -> _Judgement:
    if not paths:
        return Verdict.UNVERIFIED, expected, "not measured"
    found = "; ".join(f"{path['path']}: {show(path)}" for path in paths)
    return Verdict.PASS if all(map(right, paths)) else Verdict.FAIL, expected, found


def carries_normally(path: Route, before: Sequence[Route]) -> bool:
    """Whether it carries enough, compared with the same path before the failure."""
    known = {row["path"]: row["bits_per_second"] for row in before}
    return bool(path["bits_per_second"] >= _NORMAL_SHARE * known[path["path"]] > 0)


def _loss(path: Route) -> str:
    return f"{path['loss']:.1%} lost"


def _latency(path: Route) -> str:
    latency = path["latency_seconds"]
    return "no answer" if latency is None else f"{latency * 1000:.2f} ms"


def _rate(path: Route) -> str:
    return f"{path['bits_per_second'] / 1e6:.1f} Mbit/s"


_JUDGES: dict[str, Callable[[Observed, Promise], _Judgement]] = {
    "all_services_accessible": _all_services_accessible,
    "no_packet_loss": _no_packet_loss,
    "latency_within_limits": _latency_within_limits,
    "bandwidth_normal": _bandwidth_normal,
    "no_split_brain": _no_split_brain,
    "primary_restored": _primary_restored,
    "no_acknowledged_write_lost": _no_acknowledged_write_lost,
}
