"""Hosts on a network of their own: a network namespace each, joined by a bridge, cut at will.

Runs inside the laboratory's namespaces, whose own network is the switch. The namespaces have no
names: they are gone with the process that holds them.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from recovery_pipelines.errors import MissingCapability, NetworkError
from recovery_pipelines.tools import find_tool, run_tool

NORMAL_BITS_PER_SECOND = 100_000_000
"""What every link carries. Shaped, so that bandwidth does not depend on the machine's load."""
LOSS_PERCENT = 30
LIMITED_BITS_PER_SECOND = 2_000_000
_BURST_BYTES = 64_000
_QUEUE_MILLISECONDS = 100

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Host:
    """One host. `fd` keeps its network namespace alive."""

    name: str
    address: str
    fd: int

    @property
    def namespace(self) -> str:
        """The path under which `ip` and `nsenter` find the host's network."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that runs a program on this host."""
        return [find_tool("nsenter", "util-linux"), f"--net={self.namespace}", "--", *argv]

    def start(self, work: Callable[[], None], name: str) -> threading.Thread:
        """Run `work` in a thread whose sockets belong to this host."""

        def run() -> None:
            if _libc.setns(self.fd, _CLONE_NEWNET):
                raise NetworkError(f"setns: {os.strerror(ctypes.get_errno())}")
            work()

        thread = threading.Thread(target=run, name=f"{name} on {self.name}", daemon=True)
        thread.start()
        return thread

    def call(self, ask: Callable[[], _Result]) -> _Result:
        """What `ask` returns when its sockets belong to this host; raises what it raises."""
        answers: list[_Result] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                answers.append(ask())
            except BaseException as error:
                errors.append(error)

        self.start(work, "call").join()
        if errors:
            raise errors[0]
        if not answers:
            raise NetworkError(f"the network of {self.name} cannot be entered")
        return answers[0]


def build_network(names: Sequence[str]) -> dict[str, Host]:
    """Hosts on one bridge in this process's own network.

    Raises MissingCapability where the kernel or its tools cannot do that.

    Every direction of every link carries `NORMAL_BITS_PER_SECOND`.
    """
    try:
        return _build(names)
    except NetworkError as error:
        raise MissingCapability(str(error)) from None


def _build(names: Sequence[str]) -> dict[str, Host]:
    _run("ip", "link", "add", "switch", "type", "bridge", "forward_delay", "0")
    _run("ip", "link", "set", "switch", "up")
    hosts = {}
    for number, name in enumerate(names, 1):
        host = hosts[name] = Host(name, f"192.0.2.{number}", _new_namespace())
        port = _port(host)
        _run("ip", "link", "add", port, "type", "veth", "peer", "eth0", "netns", host.namespace)
        _run("ip", "link", "set", port, "master", "switch", "up")
        _run_on(host, "ip", "link", "set", "lo", "up")
        _run_on(host, "ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        _run_on(host, "ip", "link", "set", "eth0", "up")
        _shape(host, NORMAL_BITS_PER_SECOND)
    _filter(next(iter(hosts.values())), "iifname eth0 drop", "oifname eth0 drop")
    heal(next(iter(hosts.values())))
    return hosts


def cut(kind: str, host: Host, others: Sequence[Host]) -> None:
    """Do a failure of the plan's `failures` to the network of `host`.

    `one_sided_drop` cuts it off from `others` only.
    """
    peers = ", ".join(other.address for other in others)
    lost = f"numgen random mod 100 < {LOSS_PERCENT} drop"
    if kind == "link_down":
        _run("ip", "link", "set", _port(host), "down")
    elif kind == "drop":
        _filter(host, "iifname eth0 drop", "oifname eth0 drop")
    elif kind == "one_sided_drop":
        _filter(host, f"ip saddr {{ {peers} }} drop", f"ip daddr {{ {peers} }} drop")
    elif kind == "loss":
        _filter(host, f"iifname eth0 {lost}", f"oifname eth0 {lost}")
    elif kind == "rate_limit":
        _shape(host, LIMITED_BITS_PER_SECOND)
    else:
        raise NetworkError(f"unknown failure of a network: {kind!r}")


def heal(host: Host) -> None:
    """Undo every cut of a host."""
    _run("ip", "link", "set", _port(host), "up")
    _run_on(host, "nft", "flush", "ruleset")
    _shape(host, NORMAL_BITS_PER_SECOND)


def _port(host: Host) -> str:
    return f"to-{host.name}"


def _filter(host: Host, incoming: str, outgoing: str) -> None:
    rules = (
        "table inet cut {\n"
        f" chain incoming {{ type filter hook input priority 0; {incoming}; }}\n"
        f" chain outgoing {{ type filter hook output priority 0; {outgoing}; }}\n"
        "}\n"
    )
    _run_on(host, "nft", "-f", "-", stdin=rules)


def _shape(host: Host, bits_per_second: int) -> None:
    rule = ("root", "tbf", "rate", f"{bits_per_second}bit", "burst", f"{_BURST_BYTES}b")
    wait = ("latency", f"{_QUEUE_MILLISECONDS}ms")
    _run("tc", "qdisc", "replace", "dev", _port(host), *rule, *wait)
    _run_on(host, "tc", "qdisc", "replace", "dev", "eth0", *rule, *wait)


def _new_namespace() -> int:
    """The descriptor of a new network namespace, made by a thread that then ends."""
    found: list[int] = []

    def make() -> None:
        if _libc.unshare(_CLONE_NEWNET) == 0:
            found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not found:
        raise NetworkError("no network namespace can be made here")
    return found[0]


def _run(tool: str, *words: str) -> None:
    _demand([find_tool(tool, _PACKAGES[tool]), *words], "")


def _run_on(host: Host, tool: str, *words: str, stdin: str = "") -> None:
    _demand(host.command([find_tool(tool, _PACKAGES[tool]), *words]), stdin)


def _demand(argv: Sequence[str], stdin: str) -> None:
    done = run_tool(argv, stdin=stdin.encode(), timeout_seconds=20)
    if done.returncode:
        raise NetworkError(f"{' '.join(argv)}: {done.complaint}")


_PACKAGES = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables"}
