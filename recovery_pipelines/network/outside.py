"""The outside of a laboratory."""

import os
from pathlib import Path

from recovery_pipelines.errors import NetworkError
from recovery_pipelines.namespaces import Namespaced
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.tools import existing_user, postgres_tool


class Laboratory(Namespaced):
    """A running laboratory. As a context manager it is ended, with all that it holds."""

    failure = NetworkError

    def __init__(self, sandbox: Sandbox, logs: Path, *, synchronous: bool) -> None:
        """Raises MissingCapability where namespaces, filters or PostgreSQL are missing."""
        logs.mkdir(parents=True, exist_ok=True)
        told = {
            "logs": str(logs),
            "synchronous": synchronous,
            "ordinary_user": os.geteuid() != 0,
            "user": existing_user("postgres", "nobody"),
            "postgres_tools": str(Path(postgres_tool("pg_rewind")).resolve().parent),
        }
        module = "recovery_pipelines.network.laboratory"
        super().__init__(sandbox, "the laboratory", module, logs / "laboratory.log", told)
