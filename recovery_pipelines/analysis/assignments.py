"""Who takes care of a recommendation, until when: `analysis/assignments.jsonl` in the data home."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from recovery_pipelines.analysis.sayings import keep_saying, read_sayings


@dataclass(frozen=True)
class Assignment:
    """What was said last of an owner and a due date; None leaves what was said before."""

    id: str
    """Of the recommendation."""
    owner: str | None
    due: str | None
    """`YYYY-MM-DD`."""
    at: str
    """UTC, ISO 8601."""


def read_assignments(home: Path) -> dict[str, Assignment]:
    """By recommendation, what holds now. Raises RecoveryError for a line that cannot be read."""
    holds: dict[str, Assignment] = {}
    for said in read_sayings(_path(home), Assignment, "assignment"):
        before = holds.get(said.id, said)
        holds[said.id] = replace(said, owner=said.owner or before.owner, due=said.due or before.due)
    return holds


def keep_assignment(home: Path, id: str, owner: str | None, due: str | None) -> Assignment:
    """Append one; on disk when this returns."""
    said = Assignment(id, owner, due, datetime.now(UTC).isoformat(timespec="seconds"))
    keep_saying(_path(home), said)
    return said


def _path(home: Path) -> Path:
    return home / "analysis" / "assignments.jsonl"
