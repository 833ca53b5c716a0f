"""A real repository to damage: a full backup and increments, and the truth about each of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recovery_pipelines import manifest
from recovery_pipelines.checks import RecoveredState, capture_facts, examine, read_facts
from recovery_pipelines.dataset import build_dataset, change_dataset, copy_tree
from recovery_pipelines.engines.base import Engine, Snapshot, engine_class
from recovery_pipelines.matrix.truth import Truth, look
from recovery_pipelines.sandbox import Sandbox, Tree

INCREMENTS = 2
_TOOL_TIMEOUT_SECONDS = 120.0
_COPY_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Bench:
    """What was backed up, and what is known about it."""

    engine_name: str
    seed: int
    engine: Engine
    sandbox: Sandbox
    ledger: list[Snapshot]
    truths: list[Truth]
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
            timeout_seconds=_TOOL_TIMEOUT_SECONDS,
            environment=sandbox.environment,
        )
        live = sandbox.tree("live")
        build_dataset(live, size_bytes=size_bytes, seed=seed)
        engine.init()
        ledger: list[Snapshot] = []
        truths: list[Truth] = []
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
