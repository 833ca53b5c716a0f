"""What people said about anomalies: `analysis/acknowledgements.jsonl` in the data home."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from recovery_pipelines.analysis.sayings import keep_saying, read_sayings


@dataclass(frozen=True)
class Acknowledgement:
    """Somebody knows of an anomaly and says why it is there."""

    drill: str
    metric: str
    month: str
    by: str
    reason: str
    at: str
    """UTC, ISO 8601."""
    restarts_baseline: bool
    """The anomaly is the new normal: the baseline starts anew with `month`."""


def read_acknowledgements(home: Path) -> list[Acknowledgement]:
    """All of them, oldest first. Raises RecoveryError for a line that cannot be read."""
    return read_sayings(_path(home), Acknowledgement, "acknowledgement")


def keep_acknowledgement(
    home: Path, drill: str, metric: str, month: str, by: str, reason: str, *, restarts: bool
) -> Acknowledgement:
    """Append one; on disk when this returns."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    said = Acknowledgement(drill, metric, month, by, reason, at, restarts)
    keep_saying(_path(home), said)
    return said


def _path(home: Path) -> Path:
    return home / "analysis" / "acknowledgements.jsonl"
