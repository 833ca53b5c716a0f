"""The round of an audit in shards: which backup they verify, who has which part, who began last.

It is `rounds/<drill>.<month>.json` in the data home. The first shard of a month begins one, with
the backup that it chose; the others join, so that all verify the same one whatever is backed up
meanwhile. It ends with a complete merge. It is no evidence: the merge goes by sealed records, and
takes of each shard the run that began last, or none.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from recovery_pipelines import manifest
from recovery_pipelines.audits.reader import Backup
from recovery_pipelines.drills.record import FILE_NAME, read_record, results_of
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.files import replacing
from recovery_pipelines.manifest import PathRange
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.sandbox import exclusive
from recovery_pipelines.sandbox.lease import private_directory
from recovery_pipelines.verdict import Verdict

_FOLDER = "rounds"
_LOCK_TIMEOUT_SECONDS = 600.0
"""Whoever holds it may be reading a large manifest's first rows."""


@dataclass(frozen=True)
class Round:
    """One round of one month."""

    round_id: str
    plan: str
    """SHA-256 of what the plan says."""
    backup_id: str
    backup_name: str
    seed: str
    manifest: str
    """Digest of the manifest that the shards are verified against."""
    edges: Sequence[str]
    """Where each shard but the first begins."""
    runs: Mapping[str, str] = field(default_factory=dict)
    """Of each shard, by its number, the run that began last."""
    merged: Mapping[str, str] = field(default_factory=dict)
    """The runs that a complete merge has joined."""

    def range_of(self, number: int) -> PathRange:
        edges = [b"", *(edge.encode() for edge in self.edges), None]
        return PathRange(edges[number - 1] or b"", edges[number])

    @property
    def key(self) -> str:
        """Differs whenever a shard has run again."""
        runs = json.dumps(sorted(self.runs.items()))
        return f"{self.round_id} {hashlib.sha256(runs.encode()).hexdigest()[:16]}"


Choice = tuple[Backup, bytes, Path]
"""A backup, the seed of this choice, and the manifest of what it should hold."""


def join(
    whole: DrillSpec,
    part: DrillSpec,
    month: str,
    run_id: str,
    backups: Sequence[Backup],
    choose: Callable[[], Choice],
    manifest_of: Callable[[Backup], Path],
) -> tuple[Round, Backup]:
    """The round that a shard takes part in; a new one if there is none, or none that still holds.

    One does not hold if it was merged, its plan has changed, its backup is gone, or its manifest
    is another one. Raises RecoveryError if the manifest cannot be used.
    """
    assert part.shard is not None
    by_id = {backup.backup_id: backup for backup in backups}
    plan = whole.plan.identity["sha256"]
    with _locked(whole):
        found = read_round(whole, month)
        holds = (
            found is not None
            and not found.merged
            and (found.plan, len(found.edges) + 1) == (plan, part.shard.count)
            and found.backup_id in by_id
            and _digest(manifest_of(by_id[found.backup_id])) == found.manifest
        )
        if not holds or found is None:
            backup, seed, file = choose()
            ranges = manifest.cut(file, part.shard.count)
            edges = [piece.start.decode() for piece in ranges[1:]]
            found = Round(
                round_id=secrets.token_hex(8),
                plan=plan,
                backup_id=backup.backup_id,
                backup_name=backup.name,
                seed=seed.hex(),
                manifest=_digest(file),
                edges=edges,
            )
        found = replace(found, runs={**found.runs, str(part.shard.number): run_id})
        _write(whole, month, found)
    return found, by_id[found.backup_id]


def note_begun(whole: DrillSpec, part: DrillSpec, month: str, run_id: str) -> None:
    """A shard has begun: what it found before does not count any more, whatever becomes of it."""
    assert part.shard is not None
    with _locked(whole):
        found = read_round(whole, month)
        if found and not found.merged:
            runs = {**found.runs, str(part.shard.number): run_id}
            _write(whole, month, replace(found, runs=runs))


def note_merged(whole: DrillSpec, month: str, merged: Round) -> None:
    """A merge was complete: the next shard begins another round."""
    with _locked(whole):
        if read_round(whole, month) == merged:
            _write(whole, month, replace(merged, merged=merged.runs))


def read_round(whole: DrillSpec, month: str) -> Round | None:
    """The round of a month; None if no shard has begun one. RecoveryError if it is damaged."""
    path = _path(whole, month)
    try:
        return Round(**json.loads(path.read_bytes())) if path.exists() else None
    except (ValueError, TypeError) as error:
        raise RecoveryError(
            f"{path} is damaged ({error}): remove it, and run all shards of {whole.name} again"
        ) from None


def verdict_of(part: DrillSpec, month: str, found: Round) -> Verdict | None:
    """What the newest run of a shard said; None if it has not ended, or there was none."""
    assert part.shard is not None
    run_id = found.runs.get(str(part.shard.number))
    folder = results_of(part, month, run_id) if run_id else None
    if folder is None or not (folder / FILE_NAME).exists():
        return None
    return read_record(folder).verdict


def due_merges(whole: DrillSpec, is_pending: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Month and key of each round that can be merged now.

    That is one whose shards all have a result, or in which nothing is gained by waiting: a shard
    has found something, ended in ERROR or was killed. `is_pending` tells whether a shard of a month
    runs, or will be retried.
    """
    due: list[tuple[str, str]] = []
    if not whole.plan.data_home.is_dir():
        return due
    for path in sorted(
        private_directory(whole.plan.data_home, _FOLDER).glob(f"{whole.name}.*.json")
    ):
        month = path.name.removeprefix(f"{whole.name}.").removesuffix(".json")
        found = read_round(whole, month)
        if found is None or found.merged or is_pending(month):
            continue
        verdicts = [verdict_of(part, month, found) for part in whole.shards]
        begun = [str(number) in found.runs for number in range(1, len(verdicts) + 1)]
        hopeless = [
            was_begun and verdict in (None, Verdict.FAIL, Verdict.INVALID, Verdict.ERROR)
            for was_begun, verdict in zip(begun, verdicts, strict=True)
        ]
        if all(begun) or any(hopeless):
            due.append((month, found.key))
    return due


def open_shards(whole: DrillSpec, month: str) -> list[DrillSpec]:
    """The shards that a merge still waits for: without a result, or ended in ERROR."""
    found = read_round(whole, month)
    if found is None or found.merged:
        return whole.shards
    open_ones = (None, Verdict.ERROR)
    return [part for part in whole.shards if verdict_of(part, month, found) in open_ones]


def _digest(file: Path) -> str:
    return str(manifest.read_info(file)["digest"])


def _path(whole: DrillSpec, month: str) -> Path:
    return private_directory(whole.plan.data_home, _FOLDER) / f"{whole.name}.{month}.json"


def _write(whole: DrillSpec, month: str, found: Round) -> None:
    with replacing(_path(whole, month)) as unfinished:
        unfinished.write_text(json.dumps(asdict(found), indent=2), encoding="utf-8")


@contextmanager
def _locked(whole: DrillSpec) -> Iterator[None]:
    name = f"{_FOLDER}-{whole.name}"
    with exclusive(whole.plan.data_home, name, _LOCK_TIMEOUT_SECONDS):
        yield
