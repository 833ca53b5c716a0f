"""Restores without any fault: a criterion that does not pass is a false alarm."""

import time
from collections.abc import Iterator
from pathlib import Path

from campaigns.history import History, open_history, verdict_columns
from campaigns.injections import Row
from campaigns.truth import look
from recovery_pipelines.checks import CRITERIA, run_checks, self_test, self_test_verdict

AWKWARD_LINK = b"links/awkward target"
"""A symbolic link of the synthetic data whose target is not UTF-8."""
KNOWN_LOSS = [f"link_target of {AWKWARD_LINK!r}"]
"""All that older versions of restic may get wrong."""


def clean_runs(history: History, seed: int, with_self_test: bool = False) -> Iterator[Row]:
    """Each generation restored from the sound repository: truth, manifest and criteria."""
    run = history.run
    for generation, snapshot in enumerate(history.ledger):
        began = time.monotonic()
        tree = run.sandbox.tree("restored")
        tree.clear()
        run.engine().restore(snapshot, tree.path)
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


def tool_losses(home: Path, engine_name: str) -> list[Row]:
    """Clean runs on the whole data, with the awkward link, which older versions of restic lose."""
    with open_history(home, engine_name, 0) as history:
        version = history.run.engine().version()
        return [row | {"version": version} for row in clean_runs(history, 0)]


def to_leave_out(losses: list[Row]) -> list[bytes]:
    """The awkward link if the tool loses it; whatever else the tool loses stays in, and shows."""
    lost = any(KNOWN_LOSS[0] in row["differences"] for row in losses)
    return [AWKWARD_LINK] if lost else []
