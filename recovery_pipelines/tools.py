"""Running other people's programs: found or refused by name, timed, never outliving us."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from recovery_pipelines.errors import DrillTimeout, MissingProgram

_LOOK_EVERY_SECONDS = 0.5
_LOOK_AT_BYTES = 1 << 20
_INSTALL_HINT = "install it (Debian/Ubuntu: apt-get install {package})"
_ADMINISTRATORS_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Finished:
    """What a program left behind: exit code and captured output."""

    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def complaint(self) -> str:
        """The last lines of stderr, for error messages."""
        return self.stderr.decode(errors="replace").strip()[-2000:]


def find_tool(name: str, package: str | None = None) -> str:
    """The absolute path of a program, or a MissingProgram that says how to install it.

    Also from the folders of administrators' programs, which are not on an ordinary user's path.
    """
    found = shutil.which(name) or shutil.which(name, path=_ADMINISTRATORS_PATH)
    if found is None:
        hint = _INSTALL_HINT.format(package=package or name)
        raise MissingProgram(f"the program {name!r} is not on this machine: {hint}")
    return found


def run_tool(
    argv: Sequence[str | bytes | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    pass_fds: Sequence[int] = (),
    timeout_seconds: float | None = None,
    give_up_on: bytes | None = None,
) -> Finished:
    """Run a program to its end and capture its output; exit codes are the caller's to judge.

    The kernel kills the program if we die (PDEATHSIG): the call is synchronous, so the thread
    that started it cannot end before it. `env` adds to a minimal environment. A program whose
    stderr comes to contain `give_up_on` is killed and returns what it had said. Raises
    DrillTimeout after `timeout_seconds`, with the program killed.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
    }
    environment |= {"LC_ALL": "C.UTF-8", "TZ": "UTC"} | dict(env or {})
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            [find_tool("setpriv", "util-linux"), "--pdeathsig", "KILL", "--", *argv],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            pass_fds=pass_fds,
        ) as process,
    ):
        try:
            stdout = _communicate(process, stdin, stderr, deadline, give_up_on)
        except BaseException as error:
            process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise DrillTimeout(
                f"{os.fsdecode(argv[0])} was stopped after {max(timeout_seconds or 0, 0):.0f} s: "
                "raise test_execution.execution_controls.timeout in the plan, or make the target "
                "smaller"
            ) from None
        stderr.seek(0)
        return Finished(process.returncode, stdout, stderr.read())


def _communicate(
    process: subprocess.Popen[bytes],
    stdin: bytes | None,
    stderr: IO[bytes],
    deadline: float | None,
    give_up_on: bytes | None,
) -> bytes:
    """The whole stdout; TimeoutExpired after `deadline`."""
    while True:
        waits = [] if deadline is None else [deadline - time.monotonic()]
        if give_up_on:
            waits.append(_LOOK_EVERY_SECONDS)
        try:
            return process.communicate(stdin, timeout=min(waits, default=None))[0]
        except subprocess.TimeoutExpired:
            if deadline is not None and time.monotonic() >= deadline:
                raise
        stdin = None
        if give_up_on and give_up_on in os.pread(stderr.fileno(), _LOOK_AT_BYTES, 0):
            process.kill()
