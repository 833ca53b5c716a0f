"""Who carried out a drill, and with which code: true facts for the evidence."""

import hashlib
import os
import pwd
from functools import cache
from importlib.metadata import version
from pathlib import Path

import recovery_pipelines

_PACKAGE = Path(recovery_pipelines.__file__).parent
_LOCK_NAME = "requirements.lock"


def operator() -> str:
    """The account that the drill runs under: its name, or its number if it has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


@cache
def code_identity() -> dict[str, str | None]:
    """`version`, `sha256` of the package's modules, and `lock_sha256` of the locked dependencies.

    The modules' digest is that of their `sha256sum` lines, sorted by name (docs/evidence.md);
    the lock's is None where no checkout is beside the package.
    """
    names = sorted(path.relative_to(_PACKAGE).as_posix() for path in _modules())
    lines = [f"{_sha256(_PACKAGE / name)}  ./{name}\n" for name in names]
    lock = _PACKAGE.parent / _LOCK_NAME
    return {
        "version": version("recovery-pipelines"),
        "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
        "lock_sha256": _sha256(lock) if lock.is_file() else None,
    }


def _modules() -> list[Path]:
    # The folders of Dagster assets and sensors are links in a checkout: os.walk can follow them.
    return [
        Path(folder) / name
        for folder, _, names in os.walk(_PACKAGE, followlinks=True)
        for name in names
        if name.endswith(".py")
    ]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
