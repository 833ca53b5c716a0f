"""What people said about anomalies: `analysis/acknowledgements.jsonl` in the data home."""

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from recovery_pipelines.errors import RecoveryError


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
    path = _path(home)
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(Acknowledgement(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise RecoveryError(
                f"{path}:{number}: not an acknowledgement ({error}): correct or remove the line"
            ) from None
    return found


def keep_acknowledgement(
    home: Path, drill: str, metric: str, month: str, by: str, reason: str, *, restarts: bool
) -> Acknowledgement:
    """Append one; on disk when this returns."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    said = Acknowledgement(drill, metric, month, by, reason, at, restarts)
    path = _path(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(said)) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return said


def _path(home: Path) -> Path:
    return home / "analysis" / "acknowledgements.jsonl"
