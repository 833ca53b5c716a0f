"""The outside of a laboratory."""

import os
from pathlib import Path

from recovery_pipelines.errors import MissingProgram, NetworkError
from recovery_pipelines.namespaces import Namespaced
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.tools import existing_user, find_tool, postgres_tool


class Laboratory(Namespaced):
    """A running laboratory. As a context manager it is ended, with all that it holds."""

    failure = NetworkError

    def __init__(
        self, sandbox: Sandbox, logs: Path, *, synchronous: bool, patroni: str | None = None
    ) -> None:
        """With `patroni`, the program of that name or path sees to the failover.

        Raises MissingCapability where namespaces, filters or a program is missing.
        """
        logs.mkdir(parents=True, exist_ok=True)
        told = {
            "logs": str(logs),
            "synchronous": synchronous,
            "ordinary_user": os.geteuid() != 0,
            "user": existing_user("postgres", "nobody"),
            "patroni": _patroni(patroni) if patroni else "",
            "etcd": find_tool("etcd", "etcd-server") if patroni else "",
            "postgres_tools": str(Path(postgres_tool("pg_rewind")).resolve().parent),
        }
        module = "recovery_pipelines.network.laboratory"
        super().__init__(sandbox, "the laboratory", module, logs / "laboratory.log", told)


def _patroni(program: str) -> str:
    try:
        return find_tool(program)
    except MissingProgram:
        raise MissingProgram(
            f"the program {program!r} is not on this machine: install it into a Python of its own "
            "(pip install 'patroni[etcd3,psycopg3]') and name its path as the target's `patroni`"
        ) from None
