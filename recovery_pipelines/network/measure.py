"""What a network does, measured from one of its hosts: loss, latency, bandwidth, reachability.

Call these through `Host.call`, so that their sockets belong to the host.
"""

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

SINK_PORT = 5001
_ECHO_REQUEST, _ECHO_REPLY = 8, 0
_CHUNK = bytes(65536)


@dataclass(frozen=True)
class Echoes:
    """Answers to ICMP echo requests."""

    sent: int
    received: int
    latency_seconds: float | None
    """The 95th percentile of the round trips; None if nothing came back."""

    @property
    def loss(self) -> float:
        return 1 - self.received / self.sent


def ping(address: str, count: int, interval_seconds: float, wait_seconds: float) -> Echoes:
    """Send `count` echo requests; answers count until `wait_seconds` after the last one."""
    identity = struct.unpack("!H", os.urandom(2))[0]
    sent_at: dict[int, float] = {}
    trips: dict[int, float] = {}

    def listen(until: float) -> None:
        while len(trips) < count:
            left = until - time.monotonic()
            if left <= 0 or not select.select([raw], [], [], left)[0]:
                return
            with suppress(OSError):
                packet = raw.recv(2048)
                answer = packet[(packet[0] & 15) * 4 :][:8]
                kind, _, _, whose, number = struct.unpack("!BBHHH", answer)
                if kind == _ECHO_REPLY and whose == identity and number in sent_at:
                    trips.setdefault(number, time.monotonic() - sent_at[number])

    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.setblocking(False)
        for number in range(count):
            sent_at[number] = time.monotonic()
            with suppress(OSError):  # what a filter or a dead link refuses is lost as well
                raw.sendto(_echo_request(identity, number), (address, 0))
            listen(sent_at[number] + interval_seconds)
        listen(time.monotonic() + wait_seconds)
    ordered = sorted(trips.values())
    latency = ordered[(len(ordered) * 95 - 1) // 100] if ordered else None
    return Echoes(count, len(trips), latency)


def bandwidth(address: str, size_bytes: int, timeout_seconds: float) -> float:
    """Bits per second of one transfer to a host's sink; the bits of a transfer that did not end
    in time count as sent, so the value is then an upper bound. 0 if there is no connection."""
    began = time.monotonic()
    try:
        connection = socket.create_connection((address, SINK_PORT), timeout_seconds)
    except OSError:
        return 0.0
    with connection, suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(_CHUNK))
        left = size_bytes
        while left > 0:
            connection.settimeout(max(began + timeout_seconds - time.monotonic(), 0.001))
            connection.sendall(_CHUNK[:left])
            left -= len(_CHUNK)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(max(began + timeout_seconds - time.monotonic(), 0.001))
        connection.recv(1)
    return size_bytes * 8 / (time.monotonic() - began)


def serve_sink() -> None:
    """Take what `bandwidth` sends, for ever."""
    with socket.create_server(("", SINK_PORT)) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_swallow, args=(connection,), daemon=True).start()


def answers(address: str, port: int, timeout_seconds: float) -> bool:
    """Whether a TCP connection comes about."""
    try:
        socket.create_connection((address, port), timeout_seconds).close()
    except OSError:
        return False
    return True


def await_condition(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    """Look again and again; whether the condition came true in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _swallow(connection: socket.socket) -> None:
    with connection, suppress(OSError):
        while connection.recv(len(_CHUNK)):
            pass
        connection.sendall(b".")


def _echo_request(identity: int, number: int) -> bytes:
    body = b"recovery"
    empty = struct.pack("!BBHHH", _ECHO_REQUEST, 0, 0, identity, number) + body
    total = sum(struct.unpack(f"!{len(empty) // 2}H", empty))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return struct.pack("!BBHHH", _ECHO_REQUEST, 0, checksum, identity, number) + body
