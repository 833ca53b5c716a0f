"""What must hold before a drill: the requirements of the plan's `preparation`."""

import os
import platform
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from recovery_pipelines.drills.run import STAGED, DrillRun
from recovery_pipelines.engines.base import size_bytes
from recovery_pipelines.errors import PreparationError
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.plan.databases import DatabaseTarget
from recovery_pipelines.plan.repositories import RepositoryTarget
from recovery_pipelines.services.host import capabilities

_STACK_BYTES = 1_000_000_000
"""What the volume, the logs and the copies of a service stack may take."""
_STACK_ENTRIES = 10_000
_COPIES = 4
"""A drill holds the live tree, its repository and up to two restored generations."""
_HEADROOM = 1.2
_MEMORY_NEEDED_BYTES = 512_000_000
_DATABASE_ENTRIES = 2000
_BYTES_PER_ROW = 1000
_CLUSTER_BYTES = 40_000_000
"""An empty PostgreSQL cluster."""
_ENTRIES_PER_DATASET_BYTE = 1 / 20_000
_LIBRARIES = ("recovery-pipelines", "dagster", "pyarrow", "pandas", "xxhash")


def prepare(run: DrillRun) -> None:
    """Check `system_snapshot` and `resource_availability` where the plan requires them.

    What an audit restores is only known from the repository: it asks for room itself.
    `backup_verification` follows when there is a backup to verify, before any damage.
    Raises PreparationError with the numbers.
    """
    required = run.spec.plan.test_framework.test_execution.preparation.requirements
    if "system_snapshot" in required:
        run.system_snapshot = system_snapshot(run)
        run.journal(event="system_snapshot", **run.system_snapshot)
    if "resource_availability" in required and not isinstance(run.spec.target, RepositoryTarget):
        if isinstance(run.spec.target, STAGED):
            needed_bytes, needed_entries = map(room_for, _target_size(run))
        else:
            needed_bytes, needed_entries = _STACK_BYTES, _STACK_ENTRIES
        require_resources(run.sandbox.path, needed_bytes, needed_entries)


def room_for(size: int) -> int:
    """What a drill needs of something (bytes, entries) that its target has `size` of."""
    return int(size * _COPIES * _HEADROOM)


def system_snapshot(run: DrillRun) -> dict[str, object]:
    """Host, versions and free resources, to be kept with the result."""
    disk = shutil.disk_usage(run.sandbox.path)
    memory = psutil.virtual_memory()
    return {
        "taken_at": datetime.now(UTC).isoformat(),
        "host": platform.node(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "user_id": os.geteuid(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "engine": run.spec.engine,
        "engine_version": run.engine.version() if isinstance(run.spec.target, STAGED) else "",
        "capabilities": {} if isinstance(run.spec.target, STAGED) else capabilities(),
        "processors": os.cpu_count(),
        "load_1m": os.getloadavg()[0],
        "memory_available_bytes": memory.available,
        "disk_free_bytes": disk.free,
    }


def require_resources(folder: Path, needed_bytes: int, needed_entries: int) -> None:
    """Refuse, with the numbers, if `folder` cannot hold what the drill will write."""
    free_bytes = shutil.disk_usage(folder).free
    free_inodes = os.statvfs(folder).f_favail
    has_inodes = os.statvfs(folder).f_files > 0
    memory_bytes = psutil.virtual_memory().available
    short = []
    if free_bytes < needed_bytes:
        short.append(f"disk: {needed_bytes:,} bytes needed, {free_bytes:,} free")
    if has_inodes and free_inodes < needed_entries:
        short.append(f"inodes: {needed_entries:,} needed, {free_inodes:,} free")
    if memory_bytes < _MEMORY_NEEDED_BYTES:
        short.append(f"memory: {_MEMORY_NEEDED_BYTES:,} bytes needed, {memory_bytes:,} available")
    if short:
        raise PreparationError(
            f"resource_availability: not enough room in {folder}: {'; '.join(short)}. "
            "Free some, choose another data_home, or make the target smaller"
        )


def _target_size(run: DrillRun) -> tuple[int, int]:
    """Bytes and entries of the target; for a real tree by looking at it."""
    if isinstance(run.spec.target, DatabaseTarget):
        return _database_bytes(run.spec), _DATABASE_ENTRIES
    target = run.spec.tree
    if target.dataset:
        size_bytes = int(target.dataset.size)
        return size_bytes, int(size_bytes * _ENTRIES_PER_DATASET_BYTE) + 1000
    assert target.path is not None
    if not target.path.is_dir():
        raise PreparationError(
            f"target {run.spec.target_name!r}: {target.path} is not a directory; "
            f"mend targets.{run.spec.target_name}.path in the plan"
        )
    total_bytes = entries = 0
    pending = [target.path]
    while pending:
        try:
            with os.scandir(pending.pop()) as listing:
                for entry in listing:
                    entries += 1
                    status = entry.stat(follow_symlinks=False)
                    total_bytes += status.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
        except OSError as error:
            raise PreparationError(
                f"target {run.spec.target_name!r} cannot be read whole: {error}; run the drill as "
                "a user who can read it"
            ) from None
    return total_bytes, entries


def _database_bytes(spec: DrillSpec) -> int:
    """Size of the file of the team's own, or of the rows to be made; of what only a server knows
    not."""
    database = spec.database.database
    path = database.path
    empty = _CLUSTER_BYTES if spec.database_kind in ("postgres", "dagster_postgres") else 0
    if path is None:
        return empty + database.rows * _BYTES_PER_ROW
    try:
        return empty + (size_bytes(path) if path.is_dir() else path.stat().st_size)
    except OSError as error:
        raise PreparationError(f"the database {path} cannot be read: {error.strerror}") from None
