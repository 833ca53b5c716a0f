"""The Dagster instance that belongs to a plan's data home."""

import os
from pathlib import Path

import dagster as dg

_SETTINGS_FILE = "dagster.yaml"
_OURS = Path(__file__).with_name(_SETTINGS_FILE)


def prepare_home(data_home: Path, project: Path) -> Path:
    """The DAGSTER_HOME to use: the one that is set, else `data_home`/dagster.

    The latter takes its settings from the `dagster.yaml` in `project`, or from ours: without them
    Dagster would ignore a drill's timeout.
    """
    named = os.environ.get("DAGSTER_HOME")
    if named:
        return Path(named)
    home = data_home / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    settings, link = project / _SETTINGS_FILE, home / _SETTINGS_FILE
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to((settings if settings.is_file() else _OURS).resolve())
    return home


def open_instance(home: Path, pool: str | None) -> dg.DagsterInstance:
    """The instance in `home`, with the drills' pool registered, if they have one.

    A pool that only has the default limit is not enforced on its first use.
    """
    instance = dg.DagsterInstance.from_config(str(home))
    limits = instance.event_log_storage.get_pool_limits()
    if pool and all(limit.name != pool for limit in limits):
        instance.event_log_storage.set_concurrency_slots(pool, 1)
    return instance
