"""One fault at a time: is it noticed, by whom, how fast, and is what was restored really right?

Whether data really differ is never asked of the code under test, but of `truth`.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial

import pandas as pd

from recovery_pipelines.checks import CRITERIA
from recovery_pipelines.errors import DrillTimeout, EngineError
from recovery_pipelines.faults.base import Fault, Layer
from recovery_pipelines.faults.catalogue import inject, repository_faults
from recovery_pipelines.matrix.bench import Bench, Row
from recovery_pipelines.sandbox import Tree
from recovery_pipelines.verdict import Verdict

CLEAN = "clean"
"""The layer and the kind of a trial without a fault."""
OK = "ok"
_COLUMNS = ("quick_check", "full_check", "restore", "differs", "detected", "caught_by")


def as_table(rows: Iterable[Row]) -> pd.DataFrame:
    """One row per trial, with every column even where no trial of a kind was made."""
    table = pd.DataFrame(list(rows))
    return table.reindex(columns=list(dict.fromkeys([*table.columns, *_COLUMNS])))


def repository_trials(bench: Bench, kinds: Collection[str] | None = None) -> Iterator[Row]:
    """Each fault in the repository: who notices it?

    `quick_check`, `full_check` and `restore` are `ok` or what was said, each with its seconds.
    All generations are restored, the newest first, until one does not come back right; then
    `generation differs` (truth), `detected` (manifest), one verdict per criterion.
    """
    for fault in _chosen(repository_faults(), kinds):
        bench.mend_repository()
        row = _planted(bench, fault, bench.repository, Layer.REPOSITORY)
        if row["place_found"]:
            row |= _asked(bench)
            for generation in reversed(range(len(bench.ledger))):
                row |= _restored(bench, generation)
                if not _is_right(row):
                    break
        yield row
    bench.mend_repository()


def copy_trials(bench: Bench, kinds: Collection[str] | None = None) -> Iterator[Row]:
    """Each fault in a restored copy, as a tool that restores wrong and reports success leaves it.

    The tool has no say here: `differs` (truth), `detected` (manifest), one verdict per criterion.
    """
    for fault in _chosen(bench.copy_faults(), kinds):
        copy = bench.fresh_copy()
        row = _planted(bench, fault, copy, Layer.RESTORED_COPY)
        if row["place_found"]:
            row |= bench.examined(copy, bench.newest)
        yield row


def clean_trials(bench: Bench) -> Iterator[Row]:
    """No fault: the tool's checks, and a restore of each generation. Any alarm is a false one."""
    for generation in range(len(bench.ledger)):
        row = _row(bench, CLEAN, CLEAN, CLEAN)
        yield row | _asked(bench) | _restored(bench, generation)


def _chosen(known: Mapping[str, Fault], kinds: Collection[str] | None) -> list[Fault]:
    return [fault for kind, fault in known.items() if kinds is None or kind in kinds]


def _row(bench: Bench, layer: str, kind: str, family: str) -> Row:
    return {
        "engine": bench.engine_name,
        "seed": bench.seed,
        "layer": layer,
        "kind": kind,
        "family": family,
        "place_found": True,
    }


def _planted(bench: Bench, fault: Fault, tree: Tree, layer: Layer) -> Row:
    injected = inject([fault], tree, layer, bench.seed)
    row = _row(bench, str(layer), fault.kind, str(fault.family)) | {"place_found": bool(injected)}
    if injected:
        (done,) = injected
        row |= {
            "path": done.path,
            "detail": done.detail,
            "before": done.before,
            "after": done.after,
            "changes_data": done.changes_data,
            "caught_by": list(done.caught_by),
        }
    return row


def _asked(bench: Bench) -> Row:
    """What the tool's own checks say of the repository."""
    return _timed("quick_check", bench.engine.check) | _timed(
        "full_check", partial(bench.engine.full_check, bench.ledger)
    )


def _restored(bench: Bench, generation: int) -> Row:
    tree = bench.sandbox.tree("restored")
    tree.clear()
    restore = partial(bench.engine.restore, bench.ledger[generation], tree.path)
    return _timed("restore", restore) | bench.examined(tree, generation)


def _is_right(row: Row) -> bool:
    passed = all(row[name] == Verdict.PASS for name in CRITERIA)
    return row["restore"] == OK and not row["differs"] and passed


def _timed(name: str, action: Callable[[], None]) -> Row:
    began = time.monotonic()
    try:
        action()
        said = OK
    except (EngineError, DrillTimeout) as error:
        said = f"{type(error).__name__}: {error}"
    return {name: said, f"{name}_seconds": time.monotonic() - began}
