"""The record that each drill leaves: `record.json` in its folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recovery_pipelines.errors import MissingRecord, RecoveryError
from recovery_pipelines.files import replacing
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.verdict import CheckResult, Verdict

FILE_NAME = "record.json"


@dataclass(frozen=True)
class DrillRecord:
    """What became of one drill."""

    folder: Path
    drill: str
    month: str
    run_id: str
    verdict: Verdict
    checks: list[CheckResult]
    errors: list[str]
    messages: list[str]
    not_tested: list[str]
    metrics: dict[str, Any]
    content: dict[str, Any]
    """The whole record, as it was written."""
    manual_checks: tuple[str, ...] = ()
    """What a named person must verify before the drill can PASS."""

    @property
    def automated_verdict(self) -> Verdict:
        """The drill's own, before any person verified something."""
        return Verdict(self.content.get("automated_verdict", self.verdict))

    @property
    def objectives(self) -> dict[str, float | None]:
        """Those that held then, in seconds."""
        return dict(self.content.get("objectives", {}))

    @property
    def system_snapshot(self) -> dict[str, Any]:
        return dict(self.content.get("system_snapshot", {}))

    @property
    def ended_at(self) -> str:
        """UTC, ISO 8601; empty if the record does not say."""
        return str(self.content.get("ended_at", ""))

    @property
    def reason(self) -> str:
        """Why the drill is not PASS, in one line, as long as nobody signed anything."""
        return self.reason_with([f"{name} waits for a sign-off" for name in self.manual_checks])

    def reason_with(self, manual: Sequence[str]) -> str:
        """The same, where `manual` tells how its manual checks stand."""
        failed = [
            f"{check.name}: {check.found}"
            for check in self.checks
            if check.verdict is not Verdict.PASS
        ]
        return "; ".join([*failed, *self.messages, *manual]) or self.verdict.explanation


def folder_of(home: Path, drill: str, month: str, run_id: str, place: str = "drills") -> Path:
    """Where a drill's results lie below the data home."""
    return home / place / drill / month / run_id


def results_of(spec: DrillSpec, month: str, run_id: str) -> Path:
    """The same; those of a shard lie by themselves, as it is no drill of the month."""
    place = "shards" if spec.shard else "drills"
    return folder_of(spec.plan.data_home, spec.name, month, run_id, place)


def result_folders(home: Path) -> list[Path]:
    """Every folder below the data home that holds a record, sorted. OSError if one is hidden."""
    folders = [home / "drills", home / "shards"]
    for _level in ("drill", "month", "run_id"):
        folders = [
            child for folder in folders if folder.is_dir() for child in sorted(folder.iterdir())
        ]
    return [folder for folder in folders if (folder / FILE_NAME).exists()]


def forget_record(folder: Path) -> None:
    """A drill that starts again has no verdict until it ends."""
    (folder / FILE_NAME).unlink(missing_ok=True)


def write_record(folder: Path, content: dict[str, object]) -> None:
    """Write the record whole or not at all."""
    text = json.dumps(content, indent=2, default=str) + "\n"
    with replacing(folder / FILE_NAME) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def read_record(folder: Path) -> DrillRecord:
    """Raises MissingRecord if the drill left none, RecoveryError if it cannot be read."""
    try:
        return _parsed(folder, (folder / FILE_NAME).read_bytes())
    except FileNotFoundError:
        raise MissingRecord(f"the drill left no record in {folder}: it did not start") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RecoveryError(
            f"{folder / FILE_NAME} is no record of a drill ({type(error).__name__}: "
            f"{str(error)[:200]}): `recovery evidence verify` tells whether it was changed"
        ) from None


def _parsed(folder: Path, text: bytes) -> DrillRecord:
    content = json.loads(text)
    record = DrillRecord(
        folder=folder,
        drill=content["drill"],
        month=content["month"],
        run_id=content["run_id"],
        verdict=Verdict(content["verdict"]),
        checks=[
            CheckResult(**check | {"verdict": Verdict(check["verdict"])})
            for check in content["checks"]
        ],
        errors=content["errors"],
        messages=content["messages"],
        not_tested=content["not_tested"],
        metrics=dict(content["metrics"]),
        content=content,
        manual_checks=tuple(content.get("manual_verification", {}).get("required_checks", ())),
    )
    # What cannot be told is no record.
    _ = record.automated_verdict, record.objectives, record.system_snapshot, record.reason
    return record
