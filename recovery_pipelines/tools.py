"""Running other people's programs: found or refused by name, timed, never outliving us."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recovery_pipelines.errors import DrillTimeout, EngineError

_INSTALL_HINT = "install it (Debian/Ubuntu: apt-get install {package})"


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
    """The absolute path of a program, or an EngineError that says how to install it."""
    found = shutil.which(name)
    if found is None:
        hint = _INSTALL_HINT.format(package=package or name)
        raise EngineError(f"the program {name!r} is not on this machine: {hint}")
    return found


def run_tool(
    argv: Sequence[str | bytes | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    pass_fds: Sequence[int] = (),
    timeout_seconds: float | None = None,
) -> Finished:
    """Run a program to its end and capture its output; exit codes are the caller's to judge.

    The kernel kills the program if we die (PDEATHSIG): the call is synchronous, so the thread
    that started it cannot end before it. `env` adds to a minimal environment. Raises
    DrillTimeout after `timeout_seconds`, with the program killed.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
    }
    environment |= {"LC_ALL": "C.UTF-8", "TZ": "UTC"} | dict(env or {})
    try:
        done = subprocess.run(
            [find_tool("setpriv", "util-linux"), "--pdeathsig", "KILL", "--", *argv],
            cwd=cwd,
            env=environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            pass_fds=pass_fds,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        program = os.fsdecode(argv[0])
        raise DrillTimeout(
            f"{program} was stopped after {expired.timeout:.0f} s: raise "
            "test_execution.execution_controls.timeout in the plan, or make the target smaller"
        ) from None
    return Finished(done.returncode, done.stdout, done.stderr)
