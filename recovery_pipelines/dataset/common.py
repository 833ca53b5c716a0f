"""What the modules of this folder share: the modes and times of made files, and an empty start."""

from recovery_pipelines.errors import PreparationError
from recovery_pipelines.sandbox import Tree

OLDEST_MTIME_NS = 1_420_070_400 * 10**9  # 2015-01-01
NEWEST_MTIME_NS = 1_704_067_200 * 10**9  # 2024-01-01
FILE_MODES = (0o644, 0o644, 0o644, 0o640, 0o600, 0o755, 0o444)


def require_empty(tree: Tree) -> None:
    if next(iter(tree.walk()), None) is not None:
        raise PreparationError(f"{tree.path} is not empty: new data needs an empty directory")
