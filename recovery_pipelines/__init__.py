"""Prove that backups restore.

The engine lives in this package and never imports Dagster; `definitions`, `build`,
`components`, `orchestration`, `assets` and `sensors` put Dagster on top of it. Importing the
package imports neither: `build_definitions` and `RecoveryDrill` are loaded on first use.
"""

from importlib import import_module
from typing import Any

_LOADED_ON_USE = {
    "RecoveryDrill": "recovery_pipelines.components",
    "build_definitions": "recovery_pipelines.build",
}


def __getattr__(name: str) -> Any:
    if name not in _LOADED_ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LOADED_ON_USE[name]), name)
