"""Copies of real trees."""

from pathlib import Path

from recovery_pipelines.dataset.common import require_empty
from recovery_pipelines.errors import PreparationError
from recovery_pipelines.sandbox import Tree
from recovery_pipelines.tools import run_tool


def copy_tree(source: Path, tree: Tree, timeout_seconds: float) -> None:
    """Copy a real tree faithfully into the empty `tree`, its root's metadata included (cp -a).

    Raises PreparationError for a source that is no directory, overlaps the sandbox or cannot be
    read in full; DrillTimeout after `timeout_seconds`.
    """
    require_empty(tree)
    if not source.is_dir():
        raise PreparationError(f"the target {source} is not a directory: correct its path")
    real, inside = source.resolve(), tree.path.resolve()
    if real == inside or inside in real.parents or real in inside.parents:
        raise PreparationError(
            f"the target {source} and the sandbox {tree.path} lie in one another: "
            "move the data home or choose another target"
        )
    options = ["-a", "--preserve=xattr", "--reflink=auto", "--sparse=auto", "-T", "--"]
    done = run_tool(["cp", *options, real, tree.path], timeout_seconds=timeout_seconds)
    if done.returncode != 0:
        raise PreparationError(
            f"the target {source} could not be copied in full: {done.complaint}\n"
            "run the drill as a user who may read all of it, or choose another target"
        )
