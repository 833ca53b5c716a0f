"""Running other people's programs: found or refused by name, timed, never outliving us."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pwd import getpwnam
from typing import IO

from recovery_pipelines.errors import DrillTimeout, MissingCapability, MissingProgram

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
        return _printable(self.stderr[-8000:]).strip()[-2000:]

    @property
    def said(self) -> str:
        """All that it said, on one line."""
        return " ".join(f"{_printable(self.stdout)} {_printable(self.stderr)}".split())


def escaped(text: str, keep: str = "") -> str:
    """Control characters, overrides of the reading direction and lone surrogates as escapes.

    Names of files stand in it; they must not be able to steer a terminal or disguise a report.
    """
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


def _printable(said: bytes) -> str:
    return escaped(said.decode(errors="replace"), keep="\n")


def find_tool(name: str, package: str | None = None) -> str:
    """The absolute path of a program, or a MissingProgram that says how to install it.

    Also from the folders of administrators' programs, which are not on an ordinary user's path.
    """
    found = shutil.which(name) or shutil.which(name, path=_ADMINISTRATORS_PATH)
    if found is None:
        hint = _INSTALL_HINT.format(package=package or name)
        raise MissingProgram(f"the program {name!r} is not on this machine: {hint}")
    return found


def postgres_programs(version: str = "") -> Path:
    """The folder of PostgreSQL's programs of a major version; of the newest, if it is empty."""
    found = [
        path
        for path in Path("/usr/lib/postgresql").glob(f"{version or '*'}/bin")
        if all((path / name).exists() for name in ("postgres", "pg_ctl", "initdb", "pg_amcheck"))
    ]
    if not found:
        name = f"postgresql-{version}" if version else "postgresql"
        raise MissingProgram(
            f"PostgreSQL {version} is not on this machine: install it "
            f"(Debian/Ubuntu: apt-get install {name})"
        )
    return max(found, key=lambda path: float(path.parts[-2]))


def postgres_tool(name: str) -> str:
    """The path of one of PostgreSQL's programs: on PATH, else the newest that Debian keeps."""
    found = shutil.which(name)
    if found is None:
        versions = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
        newest = max(versions, key=lambda path: float(path.parts[-3]), default=None)
        if newest is None:
            raise MissingProgram(
                f"the program {name!r} of PostgreSQL is not on this machine: install it "
                "(Debian/Ubuntu: apt-get install postgresql)"
            )
        found = str(newest)
    return found


def existing_user(*names: str) -> str:
    """The first of these users that the machine has. Raises MissingCapability if it has none."""
    for name in names:
        try:
            return getpwnam(name).pw_name
        except KeyError:
            continue
    raise MissingCapability(f"none of the users {', '.join(names)} exists: name one with `user`")


def run_tool(
    argv: Sequence[str | bytes | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    pass_fds: Sequence[int] = (),
    timeout_seconds: float | None = None,
    give_up_on: bytes | None = None,
    writable: Sequence[Path] | None = None,
) -> Finished:
    """Run a program to its end and capture its output; exit codes are the caller's to judge.

    The kernel kills the program if we die (PDEATHSIG): the call is synchronous, so the thread
    that started it cannot end before it. `env` adds to a minimal environment. A program whose
    stderr comes to contain `give_up_on` is killed and returns what it had said. With `writable` the
    program can write nowhere but into these folders, where `why_not_confined` has no objection.
    Raises DrillTimeout after `timeout_seconds`, with the program killed.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
    }
    environment |= {"LC_ALL": "C.UTF-8", "TZ": "UTC"} | dict(env or {})
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    confined = [] if writable is None or why_not_confined() else _confinement(writable)
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            [*confined, find_tool("setpriv", "util-linux"), "--pdeathsig", "KILL", "--", *argv],
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


def why_not_confined() -> str:
    """Why programs that restore cannot have a read-only world here; empty where they have one."""
    return _confinement_complaint(os.geteuid())


@functools.cache
def _confinement_complaint(_user: int) -> str:
    done = run_tool([*_confinement([]), "true"], timeout_seconds=20)
    return done.complaint or f"exit code {done.returncode}" if done.returncode else ""


def _confinement(writable: Sequence[Path]) -> list[str]:
    user = () if os.geteuid() == 0 else ("--user", "--map-current-user", "--keep-caps")
    launcher = Path(__file__).with_name("confine.py")
    return [
        *(find_tool("unshare", "util-linux"), *user, "--mount", "--propagation", "private"),
        *(sys.executable, "-I", "-S", str(launcher), *map(str, writable), "--"),
    ]


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
