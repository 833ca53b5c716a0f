"""The Dagster instance that belongs to a plan's data home."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from recovery_pipelines.errors import RecoveryError

_SETTINGS_FILE = "dagster.yaml"
_OURS = Path(__file__).with_name(_SETTINGS_FILE)


def prepare_home(data_home: Path, project: Path) -> Path:
    """The DAGSTER_HOME to use: the one that is set, else `data_home`/dagster.

    The latter takes its settings from the `dagster.yaml` in `project`, or from ours: without them
    Dagster would ignore a drill's timeout. Raises RecoveryError if `DAGSTER_HOME` is no folder.
    """
    named = os.environ.get("DAGSTER_HOME")
    if named:
        if not Path(named).is_dir():
            raise RecoveryError(
                f"DAGSTER_HOME is {named}, which is no folder: make it, or unset it"
            )
        return Path(named)
    home = data_home / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    settings, link = project / _SETTINGS_FILE, home / _SETTINGS_FILE
    with _alone_in(home):
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to((settings if settings.is_file() else _OURS).resolve())
    return home


def open_instance(home: Path, pool: str | None) -> dg.DagsterInstance:
    """The instance in `home`, with the drills' pool registered, if they have one.

    One process at a time: two that make Dagster's tables at once would both fail. A pool that only
    has the default limit is not enforced on its first use.
    """
    with _alone_in(home):
        instance = dg.DagsterInstance.from_config(str(home))
        limits = instance.event_log_storage.get_pool_limits()
        if pool and all(limit.name != pool for limit in limits):
            instance.event_log_storage.set_concurrency_slots(pool, 1)
    return instance


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
