"""A module of ours as the first process of Linux namespaces of its own.

`Namespaced` starts it and speaks to it from outside: one JSON object a line, in and out. The other
functions are what such a module needs inside. Whatever it holds is gone when it ends; and it ends
with whoever started it: the kernel kills it, and its standard input closes.
"""

import functools
import json
import os
import queue
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pwd import getpwnam
from types import TracebackType
from typing import Any, ClassVar, NoReturn, Self

from recovery_pipelines.errors import MissingCapability, RecoveryError
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.tools import find_tool, run_tool

_NAMESPACES = ("--pid", "--fork", "--kill-child=KILL", "--mount", "--net", "--ipc", "--mount-proc")
_READY_TIMEOUT_SECONDS = 60.0
_NESTED_USER = "1000"
"""Inside a namespace whose root is an ordinary user, services that refuse root run as this."""


def in_namespaces() -> list[str]:
    """The command that starts a program as the first process of its own namespaces.

    The kernel kills it, and with it all that is in there, when the thread that started it ends.
    """
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    dies_with_us = (find_tool("setpriv", "util-linux"), "--pdeathsig", "KILL", "--")
    return [*dies_with_us, find_tool("unshare", "util-linux"), *user, *_NAMESPACES, "--"]


def require_namespaces() -> None:
    """Raises MissingCapability where a process cannot have namespaces of its own."""
    why = why_no_namespaces()
    if why:
        raise MissingCapability(
            f"no namespaces can be made here: {why}; run as root, or let ordinary users make "
            "them (sysctl user.max_user_namespaces, and what else the system forbids them by)"
        )


def why_no_namespaces() -> str:
    """Empty where they can be made."""
    return _complaint(*in_namespaces())


@functools.cache
def _complaint(*in_front: str) -> str:
    done = run_tool([*in_front, "true"], timeout_seconds=20)
    return done.complaint if done.returncode else ""


class Namespaced:
    """The process from outside. As a context manager it is ended, with all that it holds."""

    failure: ClassVar[type[RecoveryError]]

    def __init__(
        self, sandbox: Sandbox, name: str, module: str, log: Path, told: Mapping[str, Any]
    ) -> None:
        """Start `module`, tell it `told`, and wait until it is ready.

        `name` is what messages call it; `log` takes what it writes to stderr. Raises `failure` if
        it does not get ready; what it had said then stands in the message. Raises
        MissingCapability where there can be no namespaces, or `module` says what is missing.
        """
        require_namespaces()
        self.name = name
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*in_namespaces(), sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=os.environ | sandbox.environment,
                start_new_session=True,
            )
        try:
            sandbox.lease.add_process(self._process.pid)
            self._exchange(told, _READY_TIMEOUT_SECONDS)
            sandbox.namespaces[name] = _unlike_ours(self._process.pid)
        except BaseException:
            self.end()
            raise

    def ask(self, do: str, *, timeout_seconds: float = 120.0, **words: Any) -> dict[str, Any]:
        """Have it do something (its `do_` methods) and return what it answers.

        Raises `failure` if it cannot, is gone, or does not answer in time.
        """
        return self._exchange({"do": do, **words}, timeout_seconds)

    def end(self) -> None:
        """Kill everything in the namespaces at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(BrokenPipeError):  # what it was told last, it did not read
                    pipe.close()

    def refusal(self, why: str) -> RecoveryError:
        """The error for something that it says it cannot do."""
        return self.failure(why)

    def _exchange(self, words: Mapping[str, Any], timeout_seconds: float) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(words).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it has ended; what it said last tells why
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_seconds)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            why = "ended" if ready else f"did not answer within {timeout_seconds:.0f} s"
            log = self._log.read_text(errors="replace").strip()[-1000:]
            raise self.failure(f"{self.name} {why}: {log}")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise MissingCapability(f"{self.name}: {answer['missing']}")
        if "error" in answer:
            raise self.refusal(answer["error"])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


def _unlike_ours(pid: int) -> list[str]:
    """The kinds of namespaces that a process, or its children, do not share with us."""
    ours, theirs = Path("/proc/self/ns"), Path(f"/proc/{pid}/ns")
    kinds = [path.name for path in theirs.iterdir()]
    unlike = [kind for kind in kinds if (ours / kind).readlink() != (theirs / kind).readlink()]
    return sorted({kind.removesuffix("_for_children") for kind in unlike})


# --- inside -------------------------------------------------------------------------------


def first_words() -> dict[str, Any]:
    """What the process is told at its start."""
    told: dict[str, Any] = json.loads(sys.stdin.readline())
    return told


def refuse(error: RecoveryError) -> NoReturn:
    """Answer that the process cannot get ready, and end it."""
    answer({"missing" if isinstance(error, MissingCapability) else "error": str(error)})
    sys.exit(1)


def answer(said: Mapping[str, Any]) -> None:
    """Answer the start, or the newest request."""
    print(json.dumps(said), flush=True)  # noqa: T201 - the answer channel


def requests() -> "queue.Queue[dict[str, Any]]":
    """Everything that is asked from now on."""
    asked: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            asked.put(json.loads(line))
        os._exit(0)  # whoever started us is gone, and so is everything here

    threading.Thread(target=listen, daemon=True).start()
    return asked


def as_user(user: str, command: Sequence[str], *, ordinary_user: bool) -> list[str]:
    """`command` run as `user`; where the namespaces belong to an ordinary user, as a nested one.

    Raises RecoveryError if there is no such user.
    """
    if ordinary_user:
        mapped = [f"--map-user={_NESTED_USER}", f"--map-group={_NESTED_USER}"]
        return [find_tool("unshare", "util-linux"), "--user", *mapped, "--", *command]
    try:
        group = getpwnam(user).pw_gid
    except KeyError:
        raise RecoveryError(f"there is no user {user!r} on this machine") from None
    who = [f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    return [find_tool("setpriv", "util-linux"), *who, "--", *command]


def mount(*words: str | Path) -> None:
    """Run `mount`; raises RecoveryError if it fails."""
    done = run_tool([find_tool("mount", "util-linux"), *words])
    if done.returncode:
        raise RecoveryError(f"mount {words[-1]}: {done.complaint}")
