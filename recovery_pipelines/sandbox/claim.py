"""Claims: which run a process carries out, so that its death can be told from its silence.

A claim is `runs/<run id>` under the data home, held by flock from its first instant until the
process ends; the kernel drops the lock on SIGKILL and with the host. Nothing else can tell: a code
server that was started anew, or code that was loaded anew, knows nothing of a run that goes on.
"""

import os
from pathlib import Path

from recovery_pipelines.sandbox.lease import close_held, hold, lock, private_directory

_own: dict[Path, int] = {}
"""The claim of this process, and its descriptor."""


def claim_run(home: Path, run_id: str) -> None:
    """Say that this process carries out a run, until it claims another one or ends."""
    directory = private_directory(home, "runs")
    path = directory / run_id
    if path in _own:
        return
    for ended, fd in _own.items():
        ended.unlink(missing_ok=True)
        close_held(fd)
    _own.clear()
    unseen = directory / f".{run_id}.{os.getpid()}"
    fd = os.open(unseen, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    hold(fd)
    lock(fd)
    unseen.rename(path)
    _own[path] = fd


def ended_runs(home: Path) -> list[str]:
    """The runs of this data home whose process is gone. Forget each once it is dealt with."""
    directory = private_directory(home, "runs")
    return [path.name for path in sorted(directory.glob("[!.]*")) if _is_dropped(path)]


def is_claimed(home: Path, run_id: str) -> bool:
    """Whether a process has claimed the run and it was not forgotten."""
    return (private_directory(home, "runs") / run_id).exists()


def forget_run(home: Path, run_id: str) -> None:
    (private_directory(home, "runs") / run_id).unlink(missing_ok=True)


def _is_dropped(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    hold(fd)
    try:
        return lock(fd)
    finally:
        close_held(fd)
