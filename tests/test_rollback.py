"""A service drill that breaks in the middle of a step leaves nothing, without any reaper."""

from pathlib import Path

import pytest

from campaigns.kills import SERVICE_DRILLS
from campaigns.rollback import break_at, service_drill
from recovery_pipelines.sandbox import reap

SAME_VOLUME, DESTROYED, PARTIAL, NETWORK = SERVICE_DRILLS


@pytest.mark.parametrize(
    ("drill", "number"),
    [(NETWORK, 0), (NETWORK, 4), (SAME_VOLUME, 1), (DESTROYED, 0), (PARTIAL, 4)],
)
def test_what_breaks_in_a_step_leaves_nothing(drill: str, number: int, tmp_path: Path) -> None:
    """`python -m campaigns.rollback` does this at every request and after every step."""
    row = break_at(service_drill(tmp_path, drill), number)
    assert row is not None and row["verdict"] == "ERROR" and row["held"] > 0, row
    assert row["leftovers"] == []
    assert reap(tmp_path) == []
