"""Removing what is older than the plan keeps it, so that the evidence stays whole.

The bulk of a drill (tables, journals) goes first; its record and the reports stay longer; signed
entries always stay. A signed tombstone names each sealed file before it is removed. Never removed:
the newest drill of each name and the newest that passed, what is not as it was sealed, and what
was never sealed.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.evidence import clock, statement
from recovery_pipelines.evidence.chain import (
    CHAIN_NAME,
    FOLDER_NAME,
    Chain,
    Entry,
    append_entry,
    read_chain,
)
from recovery_pipelines.evidence.files import digests
from recovery_pipelines.evidence.signoff import standings_of
from recovery_pipelines.plan import Plan
from recovery_pipelines.plan.reporting import retention_days
from recovery_pipelines.verdict import Verdict

_RECORD = "record.json"
_MONTH = re.compile(r"\d{4}-\d{2}(-01)?")


@dataclass
class Removal:
    """What was removed, or would be."""

    sealed: dict[str, str] = field(default_factory=dict)
    """`folder/name` and SHA-256 of sealed files, for the tombstone."""
    others: list[Path] = field(default_factory=list)
    """Values between stages, and reports: these are not sealed."""
    bytes: int = 0
    kept_wrong: list[str] = field(default_factory=list)
    """Old drills that are not as they were sealed: they stay, for somebody to look at."""
    refused: str = ""
    """Why nothing was removed: the clock is in doubt."""
    tombstone: Entry | None = None

    @property
    def files(self) -> int:
        return len(self.sealed) + len(self.others)


def prune(
    plan: Plan,
    *,
    dry_run: bool = False,
    trust_clock: bool = False,
    now: clock.Clock | None = None,
) -> Removal:
    """Remove what is older than `retention` and `evidence.retention` of the plan say.

    Age counts from the seal. With a clock in doubt nothing is removed, unless `trust_clock`.
    Raises EvidenceError if the chain is broken.
    """
    home, now = plan.data_home, now or clock.Clock.read()
    if not (home / FOLDER_NAME / CHAIN_NAME).exists():
        return Removal()
    chain = read_chain(home)
    removal = _find(plan, chain, now.now)
    removal.refused = "" if trust_clock else _doubt(home, chain, now)
    if dry_run:
        return removal
    settled = not removal.refused or not clock.is_jump(home / FOLDER_NAME, now)
    if settled:
        clock.remember(home / FOLDER_NAME, now)
    if removal.refused:
        return removal
    _finish(home, chain)
    if removal.sealed:
        predicate = _predicate(plan, removal)
        removal.tombstone = append_entry(
            home, statement.TOMBSTONE_TYPE, lambda _: (removal.sealed, predicate)
        )
        _remove_sealed(home, removal.sealed)
    for path in removal.others:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return removal


def _doubt(home: Path, chain: Chain, now: clock.Clock) -> str:
    found = clock.doubt(home / FOLDER_NAME, now, _sealed_at(chain.head))
    return f"the clock shows {now.now:%Y-%m-%d %H:%M}Z, but {found}" if found else ""


def _find(plan: Plan, chain: Chain, now: datetime) -> Removal:
    """Everything that is too old. Reads the sealed files in question whole."""
    home, removal, removed = plan.data_home, Removal(), chain.removed
    bulk = retention_days(plan.test_framework.reporting.documentation.test_results.retention)
    records = retention_days(plan.evidence.retention)
    kept = _kept(chain)
    young: set[tuple[str, str]] = set()
    months: set[tuple[str, str]] = set()
    for entry, sealed_at in _with_times(chain):
        key = (_drill(entry), entry.month)
        months.add(key)
        days = (now - sealed_at).total_seconds() / 86400
        if entry.seq in kept or days <= bulk:
            young.add(key)
            continue
        names = [name for name in entry.files if days > records or name != _RECORD]
        names = [name for name in names if f"{entry.folder}/{name}" not in removed]
        if not names:
            continue
        wrong = _wrong(home, entry, removed)
        if wrong:
            removal.kept_wrong.append(wrong)
            young.add(key)
            continue
        for name in names:
            removal.sealed[f"{entry.folder}/{name}"] = entry.files[name]
            removal.bytes += (home / str(entry.folder) / name).stat().st_size
    removal.others = [
        *(path for drill, month in sorted(months - young) for path in _values(home, drill, month)),
        *_old_months(home / "reports", now, records),
        *_old_months(home / "detection_matrix", now, bulk),
    ]
    removal.bytes += sum(_size(path) for path in removal.others)
    return removal


def _kept(chain: Chain) -> set[int]:
    """The newest of each drill, by its seal and by its month, and the newest that passed."""
    standings = standings_of(chain)
    by_seal = {_drill(s.drill): s.drill.seq for s in standings}
    by_month = {
        _drill(s.drill): s.drill.seq for s in sorted(standings, key=lambda s: s.drill.month)
    }
    passed = {_drill(s.drill): s.drill.seq for s in standings if s.verdict is Verdict.PASS}
    return {*by_seal.values(), *by_month.values(), *passed.values()}


def _with_times(chain: Chain) -> Iterator[tuple[Entry, datetime]]:
    """Drills, each no older than anything sealed before it, whatever the clock showed then."""
    newest = datetime.min.replace(tzinfo=UTC)
    for entry in chain.entries:
        newest = max(newest, _sealed_at(entry))
        if entry.folder is not None:
            yield entry, newest


def _wrong(home: Path, entry: Entry, removed: Mapping[str, int]) -> str:
    """Why the files of a drill are not as they were sealed; empty if they are."""
    expected = {n: d for n, d in entry.files.items() if f"{entry.folder}/{n}" not in removed}
    try:
        found = digests(home / str(entry.folder))
    except (OSError, EvidenceError) as error:
        return f"{entry.folder} cannot be verified: {error}"
    left = {name: digest for name, digest in found.items() if name not in entry.files}
    same = all(found.get(name) == digest for name, digest in expected.items())
    return "" if same and not left else f"{entry.folder} is not as it was sealed"


def _values(home: Path, drill: str, month: str) -> list[Path]:
    """What the stages of a drill handed on in a month."""
    return sorted((home / "assets" / drill).glob(f"*/{month}.parquet"))


def _old_months(folder: Path, now: datetime, days: float) -> list[Path]:
    """What is kept by month and whose month ended too long ago; never the newest."""
    months = sorted(path for path in folder.glob("*") if _MONTH.fullmatch(path.stem))
    return [path for path in months[:-1] if (now - _end_of(path.stem)).days > days]


def _end_of(month: str) -> datetime:
    year, number = int(month[:4]), int(month[5:7])
    return datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)


def _predicate(plan: Plan, removal: Removal) -> dict[str, Any]:
    bulk = plan.test_framework.reporting.documentation.test_results.retention
    return {
        "retention": {"test_results": bulk, "evidence": plan.evidence.retention},
        "not_sealed": len(removal.others),
        "bytes": removal.bytes,
    }


def _finish(home: Path, chain: Chain) -> None:
    """Remove what an earlier tombstone names and a kill left, if it is as it was sealed."""
    sealed = {
        f"{e.folder}/{name}": digest for e in chain.drills for name, digest in e.files.items()
    }
    _remove_sealed(home, {name: sealed[name] for name in chain.removed if (home / name).exists()})


def _remove_sealed(home: Path, files: Mapping[str, str]) -> None:
    folders = {(home / name).parent for name in files}
    found = {folder: digests(folder) for folder in folders}
    for name, digest in files.items():
        path = home / name
        if found[path.parent].get(path.name) == digest:
            path.unlink()
    for folder in folders:
        with suppress(OSError):  # what is left in it stays
            folder.rmdir()
            folder.parent.rmdir()


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _drill(entry: Entry) -> str:
    return str(entry.predicate["drill"]["drill"])


def _sealed_at(entry: Entry) -> datetime:
    return datetime.fromisoformat(entry.predicate["sealed_at"])
