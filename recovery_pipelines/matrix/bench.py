"""A real repository to damage: a full backup and increments, and the truth about each of them."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recovery_pipelines import manifest
from recovery_pipelines.checks import (
    CRITERIA,
    RecoveredState,
    capture_facts,
    examine,
    read_facts,
    run_checks,
)
from recovery_pipelines.dataset import build_dataset, change_dataset, copy_tree
from recovery_pipelines.engines.base import Engine, Snapshot, engine_class
from recovery_pipelines.faults.base import Fault
from recovery_pipelines.faults.catalogue import source_faults
from recovery_pipelines.matrix.truth import look
from recovery_pipelines.sandbox import Sandbox, Tree

Row = dict[str, Any]

APPLICATIONS = ("files_accessible", "applications_functional")
"""The criteria that use the data as their owners and applications do."""
FROM_MANIFEST = tuple(name for name in CRITERIA if name not in APPLICATIONS)
INCREMENTS = 2
TOOL_TIMEOUT_SECONDS = 120.0
_COPY_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Bench:
    """What was backed up, and what is known about it."""

    engine_name: str
    seed: int
    engine: Engine
    sandbox: Sandbox
    ledger: list[Snapshot]
    truths: list[Any]
    """What each generation really was, oldest first."""

    @property
    def newest(self) -> int:
        return len(self.ledger) - 1

    @property
    def repository(self) -> Tree:
        return self.sandbox.tree("repository")

    def mend_repository(self) -> None:
        """Undo all damage."""
        refill(self.repository, self.sandbox.tree("sound-repository"))

    def fresh_copy(self) -> Tree:
        """The newest generation as a restore brings it back."""
        tree = self.sandbox.tree("restored")
        refill(tree, self.sandbox.tree("sound-copy"))
        return tree

    def copy_faults(self) -> Mapping[str, Fault]:
        """What can be done to a restored copy, by kind."""
        return source_faults()

    def examined(self, tree: Tree, generation: int) -> Row:
        """What the drill's criteria say of `tree`, when it should be that generation.

        `generation differs` (truth), `detected` (manifest), `kinds` of differences, one verdict
        per criterion, and the seconds that it took.
        """
        began = time.monotonic()
        state = self.examine(tree, generation)
        compared = time.monotonic()
        from_manifest = run_checks(list(FROM_MANIFEST), state)
        judged = time.monotonic()
        used = run_checks(list(APPLICATIONS), state)
        return {
            "generation": generation,
            "differs": look(tree.path) != self.truths[generation],
            "detected": not state.comparison.identical,
            "kinds": sorted(state.comparison.counts),
            **{result.name: str(result.verdict) for result in (*from_manifest, *used)},
            "manifest_seconds": compared - began,
            "applications_seconds": time.monotonic() - judged,
        }

    def examine(self, tree: Tree, generation: int) -> RecoveredState:
        """`tree` as a drill looks at it, when it should be that generation."""
        return examine(
            tree,
            _manifest(self.sandbox, f"generation-{generation}"),
            _manifest(self.sandbox, "examined"),
            read_facts(_manifest(self.sandbox, f"facts-{generation}")),
        )


@contextmanager
def open_bench(home: Path, engine_name: str, seed: int, size_bytes: int) -> Iterator[Bench]:
    """Synthetic data of this seed, backed up in a sandbox below `home`. The sandbox ends with it.

    Raises EngineError for a tool that is absent or cannot back up.
    """
    make: Callable[..., Engine] = engine_class(engine_name)
    with Sandbox.create(home, f"matrix-{engine_name}-{seed}") as sandbox:
        engine = make(
            sandbox.tree("repository").path,
            sandbox.tree("engine").path,
            timeout_seconds=TOOL_TIMEOUT_SECONDS,
            environment=sandbox.environment,
        )
        live = sandbox.tree("live")
        build_dataset(live, size_bytes=size_bytes, seed=seed)
        engine.init()
        ledger: list[Snapshot] = []
        truths: list[Any] = []
        for generation in range(INCREMENTS + 1):
            if generation:
                change_dataset(live, seed=1000 * seed + generation)
            truths.append(look(live.path))
            entries = _manifest(sandbox, f"generation-{generation}")
            manifest.capture(live.path, entries)
            capture_facts(live, entries, _manifest(sandbox, f"facts-{generation}"))
            ledger.append(engine.backup(live.path, ledger[-1] if ledger else None))
        live.clear()
        engine.restore(ledger[-1], sandbox.tree("sound-copy").path)
        refill(sandbox.tree("sound-repository"), sandbox.tree("repository"))
        yield Bench(engine_name, seed, engine, sandbox, ledger, truths)


def refill(tree: Tree, source: Tree) -> None:
    """Make `tree` a faithful copy of `source`."""
    tree.clear()
    copy_tree(source.path, tree, _COPY_TIMEOUT_SECONDS)


def _manifest(sandbox: Sandbox, name: str) -> Path:
    return sandbox.tree("manifests").path / f"{name}.parquet"
