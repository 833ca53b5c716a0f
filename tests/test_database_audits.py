"""Audits of PostgreSQL backups that the plain tools made: by pgBackRest and by pg_dump."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recovery_pipelines.drills import database_trial
from recovery_pipelines.drills.record import DrillRecord
from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.plan import load_plan
from recovery_pipelines.verdict import Verdict
from tests.audit_effects import found_by, verdict_of
from tests.database_team import SECRET, cluster
from tests.mounts import needs_root, small_disk
from tests.plans import MONTH
from tests.test_audits import digest

COUNT = "select count(*) > 500, count(*) from orders"


class Team:
    """Its backups, in a copy that a test may damage, and some lines of YAML."""

    def __init__(self, home: Path, tool: str) -> None:
        self.home, self.tool = home, tool
        made = cluster().folder
        self.backups = made.parent / f"{made.name}-{home.name}"
        source = made / ("repository" if tool == "pgbackrest" else "dumps")
        subprocess.run(["cp", "-a", source, self.backups], check=True)

    def audit(
        self, *, queries: tuple[str, ...] = (COUNT,), generations: int = 0, **keys: Any
    ) -> DrillRecord:
        plan = self.home / "recovery.yaml"
        secret = ", password: env:TEAM_PASSWORD" if self.tool == "pgbackrest" else ""
        more = "".join(f", {key}: {value}" for key, value in keys.items())
        plan.write_text(
            f"""
data_home: home
targets:
  orders:
    repository: {{{self.tool}: {self.backups}{secret}{more}}}
    verify_against: {{queries: {list(queries)}}}
    marks: select max(at) from marks
    objectives: {{rpo_seconds: 86400}}
    generations: {generations}
"""
        )
        (spec,) = load_plan(plan).drills()
        return carry_out_steps(spec, MONTH, f"run-{len(list(self.home.rglob('record.json')))}")


@pytest.fixture
def team(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Team]:
    monkeypatch.setenv("TEAM_PASSWORD", SECRET)
    made = Team(tmp_path, request.param)
    yield made
    subprocess.run(["rm", "-rf", made.backups], check=True)


of_both = pytest.mark.parametrize("team", ["pgbackrest", "pg_dump"], indirect=True)
of_pgbackrest = pytest.mark.parametrize("team", ["pgbackrest"], indirect=True)
of_pg_dump = pytest.mark.parametrize("team", ["pg_dump"], indirect=True)


@of_pgbackrest
def test_a_cluster_comes_back_whole_and_its_repository_is_untouched(team: Team) -> None:
    before = digest(team.backups)
    record = team.audit()
    assert record.verdict is Verdict.PASS, record.reason
    assert ": True, 501" in found_by(record, "data_match")
    for name in ("pages_and_indexes_intact", "marks_are_fresh", "backup_is_fresh"):
        assert verdict_of(record, name) is Verdict.PASS, name
    assert record.metrics["rows"] == 502
    assert "content beyond what the queries look at" in record.not_tested
    assert digest(team.backups) == before


@of_pgbackrest
def test_lost_wal_is_a_finding_and_the_full_backup_is_the_last_good_one(team: Team) -> None:
    """The newest backup is not consistent without the segment; a search goes back to the other."""
    segments = sorted(team.backups.glob("archive/main/*/*/*-*.gz"))
    segments[-1].unlink()
    record = team.audit(generations=1, queries=("select count(*) = 500 from orders",))
    assert record.verdict is Verdict.FAIL
    assert "recovery of" in found_by(record, "backup_restores")
    assert str(record.metrics["last_good_backup"]).endswith("F")
    assert record.metrics["loss_window_seconds"] > 0


@of_pg_dump
@pytest.mark.parametrize("name", ["a.dump", "b.sql.gz", "c", "d.tar"])
def test_each_format_of_pg_dump_comes_back(team: Team, name: str) -> None:
    before = digest(team.backups)
    record = team.audit(match=name)
    assert record.verdict is Verdict.PASS, record.reason
    assert digest(team.backups) == before


def torn(folder: Path) -> str:
    """Within the rows: psql would take what is there, and exit with 0."""
    dump = folder / "b.sql"
    content = dump.read_bytes()
    dump.write_bytes(content[: content.index(b"item 300")])
    return "b.sql"


def one_part_lost(folder: Path) -> str:
    max((folder / "c").glob("*.gz"), key=lambda path: path.stat().st_size).unlink()
    return "c"


def one_byte_changed(folder: Path) -> str:
    dump = folder / "a.dump"
    content = bytearray(dump.read_bytes())
    content[-len(content) // 3] ^= 0xFF
    dump.write_bytes(content)
    return "a.dump"


@of_pg_dump
@pytest.mark.parametrize("damage", [torn, one_part_lost, one_byte_changed])
def test_a_damaged_dump_is_a_finding(team: Team, damage: Callable[[Path], str]) -> None:
    record = team.audit(match=damage(team.backups))
    assert record.verdict is Verdict.FAIL, record.reason


@of_pg_dump
def test_sql_that_does_not_hold_is_a_finding_and_without_any_nothing_is_proven(team: Team) -> None:
    queries = (COUNT, "select count(*) = 7, count(*) from orders", "select 1 from nowhere")
    found = found_by(team.audit(match="b.sql", queries=queries), "data_match")
    assert "2 of 3 do not hold" in found
    assert "False, 501" in found
    assert '"nowhere" does not exist' in found
    assert team.audit(match="b.sql", queries=()).verdict is Verdict.UNVERIFIED


def wrong_password(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_PASSWORD", "wrong")


def missing(team: Team, _: pytest.MonkeyPatch) -> None:
    team.backups = team.backups / "not-here"


def half_deleted(team: Team, _: pytest.MonkeyPatch) -> None:
    subprocess.run(["rm", "-r", team.backups / "backup/main"], check=True)


def empty(team: Team, _: pytest.MonkeyPatch) -> None:
    subprocess.run(["sh", "-c", 'rm -r "$0"/*', team.backups], check=True)


@pytest.mark.parametrize(
    ("team", "bad"),
    [
        ("pgbackrest", wrong_password),
        ("pgbackrest", half_deleted),
        *((tool, bad) for tool in ("pgbackrest", "pg_dump") for bad in (missing, empty)),
    ],
    indirect=["team"],
)
def test_what_cannot_be_read_is_an_error_in_one_line(
    team: Team, bad: Callable[[Team, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backups = team.backups
    bad(team, monkeypatch)
    before = digest(backups)
    record = team.audit()
    assert record.verdict is Verdict.ERROR
    (message,) = record.messages
    assert "\n" not in message and SECRET not in message
    assert digest(backups) == before


@of_pg_dump
@needs_root
def test_a_full_disk_is_an_error(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(team.home / "home", "30M"):
        record = team.audit(match="b.sql")
        assert record.verdict is Verdict.ERROR
        assert "not enough room" in record.reason
        monkeypatch.setattr(database_trial, "require_resources", lambda *_: None)
        record = team.audit(match="b.sql")
        assert record.verdict is Verdict.ERROR
        assert "no space left on device" in record.reason.lower()
