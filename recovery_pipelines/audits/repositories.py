"""Opening the repositories that others write; read through their own tools without a trace."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from recovery_pipelines.audits.archives import Archives
from recovery_pipelines.audits.borg import Borg
from recovery_pipelines.audits.dumps import Dumps
from recovery_pipelines.audits.pgbackrest import PgBackRestRepository
from recovery_pipelines.audits.reader import Reader
from recovery_pipelines.audits.restic import Restic
from recovery_pipelines.errors import EngineError
from recovery_pipelines.plan.repositories import Repository


def open_repository(
    repository: Repository,
    work: Path,
    timeout_seconds: Callable[[], float],
    environment: Mapping[str, str],
) -> Reader:
    """`work` is a private directory for the tool's own files. EngineError for a missing secret."""
    readers: Mapping[str, type[Reader]] = {
        "restic": Restic,
        "borg": Borg,
        "directory": Archives,
        "pg_dump": Dumps,
        "pgbackrest": PgBackRestRepository,
    }
    found = {name: os.environ.get(name, "") for name in repository.environment}
    if unset := [name for name, value in found.items() if not value]:
        raise EngineError(f"the environment has no {', '.join(unset)}, which the plan names")
    secret = b""
    if repository.password:
        variable = repository.password.removeprefix("env:")
        secret = os.environb.get(variable.encode(), b"")
        if not secret:
            raise EngineError(f"the environment has no {variable}, the password of the repository")
    reader = readers[repository.tool](
        repository, work, timeout_seconds, {"TMPDIR": str(work)} | dict(environment) | found, secret
    )
    if reader.is_local and not Path(reader.location).is_dir():
        raise EngineError(f"there is no folder {reader.location}")
    return reader
