"""Files of JSON lines, only ever appended to, that keep what people said."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.files import append_line

Saying = TypeVar("Saying")


def read_sayings(path: Path, kind: type[Saying], name: str) -> list[Saying]:
    """All of them, oldest first. Raises RecoveryError for a line that is no `name`."""
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(kind(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise RecoveryError(
                f"{path}:{number}: not an {name} ({error}): correct or remove the line"
            ) from None
    return found


def keep_saying(path: Path, said: Any) -> None:
    """Append a dataclass as one line; on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, json.dumps(asdict(said)).encode() + b"\n")
