"""Every fault in the live tree, one at a time: is it noticed, and does the data come back?

Faults in repositories are in `campaigns.matrix`.

Whether data really differ is never asked of the code under test, but of `truth`.
"""

import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from campaigns.history import History, verdict_columns
from recovery_pipelines.checks import CRITERIA, run_checks
from recovery_pipelines.dataset import copy_tree
from recovery_pipelines.drills.data_recovery import recover
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.faults.base import Fault, InjectedFault, Layer
from recovery_pipelines.faults.catalogue import inject, source_faults
from recovery_pipelines.matrix.truth import look
from recovery_pipelines.sandbox import Tree

Row = dict[str, Any]

_COPY_TIMEOUT_SECONDS = 60.0


def source_injections(
    history: History, seed: int, kinds: Collection[str] | None = None
) -> Iterator[Row]:
    """Each source fault in the live tree: detected, judged, recovered and published by the drill.

    `kind place_found differs` (truth) `detected` (manifest), one verdict per criterion, then
    `recovered` (manifest) `recovered_truly` (truth) and the `error` that ended a recovery.
    """
    run = history.run
    copy_tree(run.live.path, history.pristine, _COPY_TIMEOUT_SECONDS)
    for fault in _chosen(source_faults(), kinds):
        began = time.monotonic()
        _refill(run.live, history.pristine)
        injected = inject([fault], run.live, Layer.SOURCE, seed)
        row = _row(history, Layer.SOURCE, fault, seed, injected)
        if injected:
            row["differs"] = look(run.live.path) != history.truths[-1]
            state = history.examine(run.live, history.newest)
            row["detected"] = not state.comparison.identical
            row["kinds"] = sorted(state.comparison.counts)
            row |= verdict_columns(run_checks(list(CRITERIA), state))
            row["error"] = _recover(history)
            row["recovered"] = history.examine(run.live, history.newest).comparison.identical
            row["recovered_truly"] = look(run.live.path) == history.truths[-1]
        yield row | {"seconds": time.monotonic() - began}


def _chosen(known: dict[str, Fault], kinds: Collection[str] | None) -> Iterable[Fault]:
    return [fault for kind, fault in known.items() if kinds is None or kind in kinds]


def _row(
    history: History, layer: Layer, fault: Fault, seed: int, injected: list[InjectedFault]
) -> Row:
    row: Row = {
        "engine": history.run.spec.engine,
        "seed": seed,
        "layer": str(layer),
        "kind": fault.kind,
        "family": str(fault.family),
        "place_found": bool(injected),
        "caught_by": list(fault.caught_by),
    }
    if injected:
        (done,) = injected
        row |= {
            "path": done.path,
            "detail": done.detail,
            "before": done.before,
            "after": done.after,
            "changes_data": done.changes_data,
        }
    return row


def _refill(tree: Tree, source: Tree) -> None:
    tree.clear()
    copy_tree(source.path, tree, _COPY_TIMEOUT_SECONDS)


def _recover(history: History) -> str:
    """The drill's own stage: detect, restore selectively, verify, publish."""
    run = history.run
    run.published = False
    run.sandbox.tree("staging").clear()
    try:
        recover(run, history.snapshots)
    except RecoveryError as error:
        return f"{type(error).__name__}: {error}"
    return "" if run.published else "not published: what was restored is not what it should be"
