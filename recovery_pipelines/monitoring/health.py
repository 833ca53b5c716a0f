"""Health checks of services: an HTTP endpoint gives its status, a TCP port takes a connection."""

import contextlib
import http.client
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping

from recovery_pipelines.monitoring.sample import Outcome, Sample
from recovery_pipelines.plan.monitoring import (
    RETRY_PAUSE_SECONDS,
    Service,
    ServiceCheck,
    ServiceChecks,
)

Check = Callable[[], Outcome]

_BODY_BYTES = 1 << 16


class HealthCollector:
    """Every check of the plan on every service, side by side."""

    def __init__(self, services: Mapping[str, Service], settings: ServiceChecks) -> None:
        self._side_by_side = SideBySide(
            {
                name: _with_retries(service, check, settings, name)
                for service_name, service in services.items()
                for check in settings.checks
                for name in [f"{service_name} {check.label}"]
            },
            settings.interval,
        )

    def collect(self) -> tuple[list[Sample], list[Outcome]]:
        outcomes = self._side_by_side.run()
        return samples_of(outcomes), outcomes


def samples_of(outcomes: list[Outcome]) -> list[Sample]:
    """Outcomes as numbers, so that availability can be added up over days."""
    in_numbers = {"ok": 1.0, "failed": 0.0, "unknown": None}
    return [
        sample
        for outcome in outcomes
        for sample in (
            Sample("health.ok", outcome.name, in_numbers[outcome.state]),
            Sample("health.response_time", outcome.name, outcome.seconds),
        )
    ]


class SideBySide:
    """Runs checks at the same time. One that does not come back by the end of the interval has
    failed, and is not started again while it still hangs."""

    def __init__(self, checks: Mapping[str, Check], interval_seconds: float) -> None:
        self._checks = checks
        self._limit_seconds = 0.95 * interval_seconds
        self._hanging: dict[str, threading.Thread] = {}

    def run(self) -> list[Outcome]:
        deadline = time.monotonic() + self._limit_seconds
        answers: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        outcomes: dict[str, Outcome] = {}
        for name, check in self._checks.items():
            if name in self._hanging and self._hanging[name].is_alive():
                outcomes[name] = Outcome(name, "failed", "the check before this one still hangs")
                continue
            self._hanging[name] = threading.Thread(
                target=_answer, args=(name, check, answers), daemon=True
            )
            self._hanging[name].start()
        while len(outcomes) < len(self._checks):
            try:
                outcome = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            outcomes[outcome.name] = outcome
        for name in self._checks:
            if name not in outcomes:
                outcomes[name] = Outcome(
                    name, "failed", f"no answer within {self._limit_seconds:g} s"
                )
        return [outcomes[name] for name in self._checks]


def _answer(name: str, check: Check, answers: "queue.SimpleQueue[Outcome]") -> None:
    try:
        answers.put(check())
    except Exception as error:
        # Never the exception's text: it can hold a secret address.
        answers.put(Outcome(name, "failed", f"the check broke: {type(error).__name__}"))


def _with_retries(
    service: Service, check: ServiceCheck, settings: ServiceChecks, name: str
) -> Check:
    timeout_seconds = check.timeout or settings.timeout

    def attempt() -> tuple[str | None, str, float]:
        began = time.monotonic()
        if check.type == "tcp":
            port = service.service_port if check.port == "service_port" else check.port
            complaint, found = tcp_check(service.host, int(port or 0), timeout_seconds)
        else:
            complaint, found = http_check(
                service, check.endpoint or "/", check.expected_status or 200, timeout_seconds
            )
        return complaint, found, time.monotonic() - began

    def run() -> Outcome:
        for number in range(1, settings.retries + 2):
            complaint, found, seconds = attempt()
            if complaint is None:
                after = f" at attempt {number}" if number > 1 else ""
                return Outcome(name, "ok", f"{found}{after}", seconds)
            if number <= settings.retries:
                time.sleep(RETRY_PAUSE_SECONDS)
        return Outcome(name, "failed", f"{complaint} ({number} attempts)")

    return run


def tcp_check(host: str, port: int, timeout_seconds: float) -> tuple[str | None, str]:
    """Complaint (None: a connection was taken) and what was found."""
    try:
        with socket.create_connection((host, port), timeout_seconds):
            return None, "connected"
    except OSError as error:
        return f"{host}:{port}: {error.strerror or error}", ""


def http_check(
    service: Service, path: str, expected_status: int, timeout_seconds: float
) -> tuple[str | None, str]:
    """Complaint (None: the status is the expected one) and what was found."""
    try:
        status, _ = http_get(service, path, timeout_seconds, _BODY_BYTES)
    except (OSError, http.client.HTTPException) as error:
        return f"{path}: {_reason(error)}", ""
    found = f"status {status}"
    return (None if status == expected_status else f"{found}, not {expected_status}"), found


def http_get(
    service: Service, path: str, timeout_seconds: float, limit_bytes: int
) -> tuple[int, bytes]:
    """Status and the first bytes of the body. Redirects are not followed.

    The timeout is for everything together: a server that sends a byte now and then does not
    stretch it. Raises OSError or HTTPException.
    """
    kind = http.client.HTTPSConnection if service.tls else http.client.HTTPConnection
    deadline = time.monotonic() + timeout_seconds
    connection = kind(service.host, service.service_port, timeout=timeout_seconds)
    try:
        connection.connect()
        sock = connection.sock
        expired = threading.Event()

        def give_up() -> None:
            expired.set()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(max(0.0, deadline - time.monotonic()), give_up)
        timer.daemon = True
        timer.start()
        try:
            connection.request("GET", path, headers={"User-Agent": "recovery-monitor"})
            reply = connection.getresponse()
            body = reply.read(limit_bytes)
        except Exception:  # a socket that is shut down under TLS breaks in many ways
            if expired.is_set():
                raise TimeoutError("timed out") from None
            raise
        finally:
            timer.cancel()
        if expired.is_set():
            raise TimeoutError("timed out")
        return reply.status, body
    finally:
        connection.close()


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__
