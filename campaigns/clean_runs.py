"""Restores without any fault: a criterion that does not pass is a false alarm."""

import time
from collections.abc import Iterator
from pathlib import Path

from campaigns.history import History, open_history, verdict_columns
from campaigns.injections import Row
from recovery_pipelines.checks import CRITERIA, run_checks, self_test, self_test_verdict
from recovery_pipelines.matrix.truth import look

AWKWARD_LINK = b"awkward link"
KNOWN_LOSS = [f"link_target of {AWKWARD_LINK!r}"]
"""What older versions of restic get wrong: targets of symbolic links that are not UTF-8."""

_SEED = 1
"""Without read-only files that have extended attributes, which no ordinary user's restore keeps."""


def clean_runs(history: History, seed: int, with_self_test: bool = False) -> Iterator[Row]:
    """Each generation restored from the sound repository: truth, manifest and criteria."""
    run = history.run
    for generation, snapshot in enumerate(history.ledger):
        began = time.monotonic()
        tree = run.sandbox.tree("restored")
        tree.clear()
        run.engine.restore(snapshot, tree.path)
        state = history.examine(tree, generation)
        row = {
            "engine": run.spec.engine,
            "seed": seed,
            "generation": generation,
            "differs": look(tree.path) != history.truths[generation],
            "detected": not state.comparison.identical,
            "differences": [
                f"{difference['kind']} of {difference['path']!r}"
                for difference in state.comparison.differences.slice(0, 20).to_pylist()
            ],
            **verdict_columns(run_checks(list(CRITERIA), state)),
            "self_test": None,
        }
        if with_self_test and generation == history.newest:
            canaries = self_test(list(CRITERIA), state, run.sandbox.tree("canaries"), seed)
            row["self_test"] = str(self_test_verdict(canaries).verdict)
        yield row | {"seconds": time.monotonic() - began}


def awkward_runs(home: Path, engine_name: str) -> Iterator[Row]:
    """Clean runs on data with a symbolic link that older versions of restic do not bring back."""
    with open_history(home, engine_name, _SEED, {AWKWARD_LINK: b"non-utf8-\xe9"}) as history:
        version = history.run.engine.version()
        for row in clean_runs(history, _SEED):
            yield row | {"version": version}
