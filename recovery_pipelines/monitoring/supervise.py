"""How sensors keep the collector process running, and how it knows what they want.

Files below `home`/monitoring: `settings.json` (what to collect), `collector.lock` (held by the
running collector), `wanted/<section>` (touched by the section's sensor), `collector.log`.
"""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import ValidationError

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.files import replacing
from recovery_pipelines.monitoring.store import FOLDER
from recovery_pipelines.plan.monitoring import Monitoring

LEASE_SECONDS = 900
"""On a crowded machine Dagster was seen up to 9 minutes late."""
_STOP_SECONDS = 10
_LOG_BYTES = 1_000_000


@dataclass(frozen=True)
class Running:
    """The collector that holds the lock."""

    pid: int
    digest: str
    """Of the settings it was started with."""


def write_settings(home: Path, monitoring: Monitoring) -> str:
    """Leave the settings for the collector; returns their digest. They hold no secrets."""
    text = monitoring.model_dump_json(indent=1)
    path = home / FOLDER / "settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        with replacing(path, many_writers=True) as unfinished:
            unfinished.write_text(text)
    return _digest(text)


def read_settings(home: Path) -> tuple[Monitoring, str]:
    """What `write_settings` left, and its digest. Raises RecoveryError."""
    path = home / FOLDER / "settings.json"
    try:
        text = path.read_text()
        return Monitoring.model_validate_json(text), _digest(text)
    except (OSError, ValidationError) as error:
        raise RecoveryError(
            f"{path} cannot be used ({error}): start the collector with `recovery monitor run`"
        ) from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def hold_lock(home: Path, digest: str) -> Iterator[bool]:
    """Be the only collector of a data home; yields False if there is one already."""
    path = home / FOLDER / "collector.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "digest": digest}))
        file.flush()
        yield True


def running(home: Path) -> Running | None:
    """The collector that runs now, if any."""
    path = home / FOLDER / "collector.lock"
    try:
        with path.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return Running(**json.loads(file.read()))
    except (FileNotFoundError, json.JSONDecodeError):
        pass
    return None


def running_seconds(home: Path) -> float:
    """For how long the collector has been running; 0 if it does not."""
    found = running(home)
    try:
        return max(0.0, time.time() - psutil.Process(found.pid).create_time()) if found else 0.0
    except psutil.Error:
        return 0.0


def want(home: Path, section: str) -> None:
    """Say that `section` is wanted for another LEASE_SECONDS."""
    path = home / FOLDER / "wanted" / section
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def is_wanted(home: Path, section: str) -> bool:
    """Whether a sensor wanted the section in the last LEASE_SECONDS."""
    try:
        age_seconds = time.time() - (home / FOLDER / "wanted" / section).stat().st_mtime
    except FileNotFoundError:
        return False
    return age_seconds < LEASE_SECONDS


def ensure_running(home: Path, monitoring: Monitoring) -> str | None:
    """Start the collector if it does not run, or runs with other settings; returns what was done.

    The collector is a process of its own: it outlives us, and ends when no sensor wants anything.
    """
    digest = write_settings(home, monitoring)
    found = running(home)
    if found and found.digest == digest:
        return None
    if found:
        stop(home, found)
    log = home / FOLDER / "collector.log"
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        # Nobody waits for it: a short-lived parent leaves it to init.
        subprocess.run(
            [sys.executable, "-c", _LAUNCH, sys.executable, str(home)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=True,
        )
    return "restarted with the plan's new settings" if found else "started"


_LAUNCH = """
import subprocess, sys
subprocess.Popen(
    [sys.argv[1], "-m", "recovery_pipelines.monitoring.collector", sys.argv[2]],
    start_new_session=True,
)
"""


def stop(home: Path, found: Running) -> None:
    """End the collector and wait for it. Raises RecoveryError if it stays."""
    os.kill(found.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while running(home) == found:
        if time.monotonic() > deadline:
            raise RecoveryError(f"the collector (process {found.pid}) does not end on SIGTERM")
        time.sleep(0.1)
