"""The effect of each key of the plan's `detection_matrix`, on two kinds of faults."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recovery_pipelines.faults.catalogue import repository_faults
from recovery_pipelines.matrix.run import carry_out_matrix
from tests.plans import MONTH, make_plan


def only_these_faults(patch: pytest.MonkeyPatch, *kinds: str) -> None:
    """Let a matrix plant these kinds in repositories, and nothing in restored copies."""
    known = repository_faults()
    few = {kind: known[kind] for kind in kinds}
    patch.setattr("recovery_pipelines.matrix.trials.repository_faults", lambda: few)
    patch.setattr("recovery_pipelines.matrix.bench.source_faults", dict)


def rows_of(folder: Path, **changes: Any) -> pd.DataFrame:
    plan = make_plan(folder, **changes)
    assert plan.detection_matrix
    with pytest.MonkeyPatch.context() as patch:
        only_these_faults(patch, "delete_largest")
        return carry_out_matrix(plan, plan.detection_matrix, MONTH)[1]


def effect_engines(folder: Path, drill: object) -> None:
    rows = rows_of(folder, detection_matrix__engines=["rsync"])
    assert set(rows["engine"]) == {"rsync"}


def effect_trials(folder: Path, drill: object) -> None:
    rows = rows_of(folder, detection_matrix__trials=2)
    assert rows["seed"].nunique() == 2
    assert (rows["kind"] == "delete_largest").sum() == 2


def effect_size(folder: Path, drill: object) -> None:
    def size_bytes(size: str) -> int:
        rows = rows_of(folder, detection_matrix__size=size)
        (before,) = rows[rows["kind"] == "delete_largest"]["before"]
        return int("".join(re.findall(r"\d+(?= bytes)", str(before).replace(",", ""))))

    assert size_bytes("8MB") > 2 * size_bytes("1MB")


MATRIX_EFFECTS: dict[str, Callable[..., None]] = {
    "detection_matrix.engines": effect_engines,
    "detection_matrix.trials": effect_trials,
    "detection_matrix.size": effect_size,
}
