"""Retention: what is old goes, what is newest stays, and the evidence is whole all the time."""

import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import time_machine
import yaml

from recovery_pipelines import evidence
from recovery_pipelines.assets import evidence_retention
from recovery_pipelines.drills.record import result_folders
from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.evidence import Report, keys, retention, statement
from recovery_pipelines.evidence.chain import append_entry, read_chain
from recovery_pipelines.evidence.clock import Clock
from recovery_pipelines.plan import Plan
from tests.plans import content, make_plan
from tests.test_evidence import chain_path, is_accepted, record_of, results

RECOVERY = str(Path(sys.executable).with_name("recovery"))
BULK = "test_framework__reporting__documentation__test_results__retention"
START = datetime(2024, 1, 1, 3, tzinfo=UTC)
MONTHS = 24
TODAY = START + timedelta(days=31 * MONTHS)


def seal_at(home: Path, number: int, at: datetime, **changes: Any) -> None:
    record = record_of(number, f"{at:%Y-%m}-01") | changes
    folder = results(home, number, record["month"])
    with time_machine.travel(at, tick=False):
        evidence.seal(home, folder, record)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drill a month for two years, one each 31 days, with values of stages and reports."""
    home = tmp_path_factory.mktemp("made")
    for number in range(MONTHS):
        at = START + timedelta(days=31 * number)
        seal_at(home, number, at)
        month = f"{at:%Y-%m}-01"
        for path in (
            home / "assets" / "corruption_recovery_tar" / "restore" / f"{month}.parquet",
            home / "reports" / month / "report.html",
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x" * 1000)
    return home


@pytest.fixture
def plan(made: Path, tmp_path: Path) -> Plan:
    shutil.copytree(made, tmp_path / "data")
    return make_plan(tmp_path)


def clock(now: datetime = TODAY, boot: str = "first", since_boot_days: float = 10) -> Clock:
    return Clock(boot, since_boot_days * 86400, now)


def prune(plan: Plan, **options: Any) -> retention.Removal:
    options = {"now": clock(), "trust_clock": True} | options
    return retention.prune(plan, **options)


def verify(home: Path) -> Report:
    trusted = keys.read_public(home / "evidence" / "key.pub.pem")
    return evidence.verify(home, trusted, results=result_folders(home))


def names(home: Path) -> set[str]:
    return {path.name for folder in result_folders(home) for path in folder.iterdir()}


def test_the_bulk_goes_and_the_evidence_stays_whole(plan: Plan) -> None:
    home = plan.data_home
    would = prune(plan, dry_run=True)
    before = sorted(home.rglob("*"))
    assert would.files == prune(plan, dry_run=True).files > 0
    assert sorted(home.rglob("*")) == before
    removal = prune(plan)
    assert removal.sealed == would.sealed
    assert removal.others == would.others
    old = [n for n in range(MONTHS) if (TODAY - START).days - 31 * n > 365]
    assert len(removal.sealed) == 2 * len(old), "journal and table; the record stays"
    assert len(removal.others) == len(old), "values between stages; reports stay"
    report = verify(home)
    assert report.is_verified, report.broken
    assert len(report.verified) == MONTHS
    assert removal.tombstone == read_chain(home).head
    assert removal.tombstone.files == removal.sealed
    assert len(list((home / "reports").iterdir())) == MONTHS
    again = prune(plan)
    assert (again.files, again.tombstone) == (0, None)
    assert len(read_chain(home).entries) == MONTHS + 2


def test_records_and_reports_go_after_their_own_time(plan: Plan) -> None:
    kept_for = make_plan(plan.data_home.parent, evidence__retention="500d")
    home = plan.data_home
    prune(kept_for)
    report = verify(home)
    assert report.is_verified, report.broken
    gone = [n for n in range(MONTHS) if (TODAY - START).days - 31 * n > 500]
    assert len(report.removed) == len(gone) > 0
    assert len(result_folders(home)) == MONTHS - len(gone)
    assert len(list((home / "reports").iterdir())) < MONTHS
    assert verify(home).is_verified
    folder = home / str(report.removed[0].folder)
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{}")
    assert verify(home).broken, "what is put back must be what was sealed"


def test_old_rows_of_the_detection_matrix_go_and_the_newest_stay(plan: Plan) -> None:
    folder = plan.data_home / "detection_matrix"
    folder.mkdir()
    old, young = (f"{at:%Y-%m}-01.parquet" for at in (START, TODAY - timedelta(days=60)))
    (folder / old).write_text("rows")
    prune(plan)
    assert [path.name for path in folder.iterdir()] == [old], "there is none newer"
    (folder / young).write_text("rows")
    removal = prune(plan)
    assert folder / old in removal.others
    assert [path.name for path in folder.iterdir()] == [young]


def test_forever_removes_nothing(plan: Plan) -> None:
    for_ever = make_plan(plan.data_home.parent, **{BULK: "forever"})
    assert prune(for_ever, now=clock(TODAY + timedelta(days=36500))).files == 0


def test_the_newest_and_the_newest_that_passed_stay(plan: Plan) -> None:
    home = plan.data_home
    seal_at(home, 99, TODAY, drill="other_drill", verdict="FAIL")
    for number, verdict in ((100, "PASS"), (101, "FAIL"), (102, "ERROR")):
        at = TODAY + timedelta(days=number)
        seal_at(home, number, at, verdict=verdict)
    prune(plan, now=clock(TODAY + timedelta(days=9999)))
    assert verify(home).is_verified
    whole = {f.name for f in result_folders(home) if (f / "journal.jsonl").exists()}
    assert whole == {"run-99", "run-100", "run-102"}


def test_what_was_changed_is_kept_and_still_found(plan: Plan) -> None:
    home = plan.data_home
    first, second, third = (home / str(e.folder) for e in read_chain(home).drills[:3])
    (first / "journal.jsonl").write_text("changed")
    (second / "faults.parquet").unlink()
    (third / "added.txt").write_text("added")
    removal = prune(plan)
    assert len(removal.kept_wrong) == 3
    assert not any(name.startswith(str(first.relative_to(home))) for name in removal.sealed)
    assert len(verify(home).broken) == 3


def test_a_kill_before_the_removal_is_finished_by_the_next(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = plan.data_home
    with monkeypatch.context() as patch:
        patch.setattr(retention, "_remove_sealed", lambda *_: None)
        removal = prune(plan)
    assert all((home / name).exists() for name in removal.sealed)
    assert verify(home).is_verified, "a file with a tombstone may still be there"
    victim = home / next(iter(removal.sealed))
    sound = victim.read_bytes()
    victim.write_bytes(b"changed")
    assert verify(home).broken == [f"{victim} was changed"]
    victim.write_bytes(sound)
    assert prune(plan).sealed == {}
    assert not any((home / name).exists() for name in removal.sealed)
    assert verify(home).is_verified


def test_only_the_named_files_may_be_absent(plan: Plan) -> None:
    home = plan.data_home
    prune(plan)
    first, last = read_chain(home).drills[0], read_chain(home).drills[-1]
    for entry, name in ((first, "record.json"), (last, "journal.jsonl")):
        path = home / str(entry.folder) / name
        kept = path.read_bytes()
        path.unlink()
        assert verify(home).broken == [f"{path} is missing"]
        path.write_bytes(kept)
    assert verify(home).is_verified


def test_every_flipped_byte_of_a_tombstone_is_seen(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    for number in range(2):
        seal_at(plan.data_home, number, START + timedelta(days=31 * number))
    assert prune(plan).tombstone
    sound = chain_path(plan.data_home).read_bytes()
    start = sound.rindex(b"\n", 0, -1) + 1
    for position in range(start, len(sound)):
        flipped = bytearray(sound)
        flipped[position] ^= 1 << position % 8
        assert not is_accepted(bytes(flipped)), position


@pytest.mark.parametrize("lie", ["never sealed", "another digest", "the newest"])
def test_a_tombstone_cannot_excuse_anything_else(lie: str, plan: Plan) -> None:
    home, drills = plan.data_home, read_chain(plan.data_home).drills
    entry = drills[-1] if lie == "the newest" else drills[0]
    name = "salaries.csv" if lie == "never sealed" else "journal.jsonl"
    digest = "0" * 64 if lie == "another digest" else entry.files.get(name, "0" * 64)
    subjects = {f"{entry.folder}/{name}": digest}
    append_entry(home, statement.TOMBSTONE_TYPE, lambda _: (subjects, {}))
    with pytest.raises(EvidenceError, match="it says that"):
        read_chain(home)


def test_a_clock_in_doubt_removes_nothing(plan: Plan) -> None:
    home = plan.data_home
    newest = START + timedelta(days=31 * (MONTHS - 1))
    day = timedelta(days=1)

    def look(now: Clock) -> str:
        before = sorted(home.rglob("*.parquet"))
        with time_machine.travel(now.now, tick=False):
            refused = prune(plan, now=now, trust_clock=False).refused
        assert not refused or sorted(home.rglob("*.parquet")) == before
        return refused

    assert "behind the newest seal" in look(clock(newest - 2 * day))
    assert "before the host was started" in look(clock(newest + 40 * day, "second", 1))
    assert look(clock(newest + 41 * day, "second", 2)) == "", "the next day settles it"
    jumped = clock(newest + 441 * day, "second", 3)
    assert "jumped by +399" in look(jumped)
    later = replace(jumped, since_boot_seconds=5 * 86400, now=newest + 443 * day)
    assert "jumped" in look(later), "waiting does not make it right"
    assert look(clock(newest + 46 * day, "second", 7)) == "", "put right"
    assert "behind" in look(clock(newest + 20 * day, "second", 8))
    assert look(clock(newest + 47 * day, "third", 0)) == "", "a restart"
    assert look(clock(newest + 47 * day, "third", 0.5)) == "", "within the tolerance of a day"


def test_the_command_and_the_asset(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "recovery.yaml").write_text(yaml.safe_dump(content(), sort_keys=False))

    def command(*options: str) -> subprocess.CompletedProcess[str]:
        argv = [RECOVERY, "evidence", "prune", "--plan", tmp_path / "recovery.yaml", *options]
        return subprocess.run(argv, capture_output=True, text=True, cwd="/")

    asset, _ = evidence_retention.build(plan)
    with dg.DagsterInstance.ephemeral() as instance:
        failed = dg.materialize([asset], instance=instance, raise_on_error=False)
        assert not failed.success, "the newest seal is long ago, and the clock is new"
    (plan.data_home / "evidence" / "clock.json").unlink()
    refused = command()
    assert (refused.returncode, "--trust-clock" in refused.stderr) == (2, True)
    assert "journal.jsonl" in command("--dry-run", "--trust-clock").stdout
    done = command("--trust-clock")
    assert done.returncode == 0, done.stderr
    assert "tombstone: entry" in done.stdout
    assert verify(plan.data_home).is_verified
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([asset], instance=instance)
        (made,) = result.asset_materializations_for_node("evidence_retention")
        assert made.metadata["removed_files"].value == 0
