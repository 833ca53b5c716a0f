"""The outside of a laboratory: starts it in namespaces of its own, asks it, and ends it."""

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from pwd import getpwnam
from types import TracebackType
from typing import Any, Self

from recovery_pipelines.errors import NetworkError
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.tools import find_tool

_NAMESPACES = ("--pid", "--fork", "--kill-child=KILL", "--mount", "--net", "--ipc", "--mount-proc")
_READY_TIMEOUT_SECONDS = 60.0


class Laboratory:
    """A running laboratory. As a context manager it is ended, with all that it holds."""

    def __init__(self, sandbox: Sandbox, logs: Path, *, synchronous: bool) -> None:
        """Raises NetworkError where namespaces, a bridge, filters or PostgreSQL are missing."""
        logs.mkdir(parents=True, exist_ok=True)
        self._log = logs / "laboratory.log"
        told = {
            "logs": str(logs),
            "synchronous": synchronous,
            "ordinary_user": os.geteuid() != 0,
            "user": _database_user(),
            "postgres_tools": str(_postgres_tools()),
        }
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [*_namespaces(), sys.executable, "-m", "recovery_pipelines.network.laboratory"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=os.environ | sandbox.environment,
                start_new_session=True,
            )
        try:
            sandbox.lease.add_process(self._process.pid)
            self._exchange(told, _READY_TIMEOUT_SECONDS)
        except BaseException:
            self.end()
            raise

    def ask(self, do: str, *, timeout_seconds: float = 120.0, **words: Any) -> dict[str, Any]:
        """Have the laboratory do something (its `do_` methods) and return what it answers.

        Raises NetworkError if it cannot, is gone, or does not answer in time.
        """
        return self._exchange({"do": do, **words}, timeout_seconds)

    def end(self) -> None:
        """Kill everything in the laboratory at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(BrokenPipeError):  # what it was told last, it did not read
                    pipe.close()

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
            raise NetworkError(f"the laboratory {why}: {log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NetworkError(answer["error"])
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


def _namespaces() -> list[str]:
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return [find_tool("unshare", "util-linux"), *user, *_NAMESPACES, "--"]


def _database_user() -> str:
    for name in ("postgres", "nobody"):
        try:
            return getpwnam(name).pw_name
        except KeyError:
            continue
    raise NetworkError("neither the user postgres nor nobody exists on this machine")


def _postgres_tools() -> Path:
    found = shutil.which("pg_rewind")
    if found:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/pg_rewind")
    newest = max(versions, key=lambda path: float(path.parts[-3]), default=None)
    if newest is None:
        raise NetworkError(
            "PostgreSQL is not on this machine: install it (Debian/Ubuntu: apt-get install "
            "postgresql)"
        )
    return newest.parent
