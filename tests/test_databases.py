"""Drills on databases, with the real programs: sound backups pass, silent wrong restores fail."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from recovery_pipelines.databases.judge import look_at, show_that_they_fail
from recovery_pipelines.databases.opening import faults_of, make_database
from recovery_pipelines.drills.database_recovery import (
    create_incremental_backups,
    create_test_dataset,
    recover,
    simulate_damage,
    validate,
)
from recovery_pipelines.drills.lifecycle import open_drill
from recovery_pipelines.drills.record import DrillRecord
from recovery_pipelines.drills.recoveries import carry_out
from recovery_pipelines.engines.base import engine_class
from recovery_pipelines.errors import EngineError
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.verdict import Verdict
from tests.plans import MONTH, make_spec

KINDS = {"sqlite": "sqlite", "redis_rdb": "redis", "redis_aof": "redis"}
KINDS |= {"pgbackrest": "postgres", "pg_basebackup": "postgres"}
CRITERIA = {
    "all_files_recovered",
    "checksums_match",
    "directory_structure_intact",
    "permissions_correct",
    "files_accessible",
    "applications_functional",
}
HAS_REDIS = shutil.which("redis-server") is not None
HAS_POSTGRES = shutil.which("pgbackrest") is not None and Path("/usr/lib/postgresql").exists()


def spec_of(
    folder: Path, engine: str, scenario: str = "incremental_recovery", **database: Any
) -> DrillSpec:
    if KINDS[engine] == "redis" and not HAS_REDIS:
        pytest.skip("redis-server is not installed")
    if KINDS[engine] == "postgres" and not HAS_POSTGRES:
        pytest.skip("PostgreSQL or pgbackrest is not installed")
    target = {"database": {"kind": KINDS[engine], "rows": 200} | database, "engines": [engine]}
    return make_spec(folder, scenario, targets={"mine": target})


def failed(record: DrillRecord) -> set[str]:
    return {check.name for check in record.checks if check.verdict is Verdict.FAIL}


@pytest.mark.parametrize(
    ("engine", "scenario"),
    [
        ("sqlite", "corruption_recovery"),
        ("sqlite", "incremental_recovery"),
        ("redis_rdb", "corruption_recovery"),
        ("redis_aof", "incremental_recovery"),
        ("pgbackrest", "corruption_recovery"),
    ],
)
def test_a_sound_backup_passes(tmp_path: Path, engine: str, scenario: str) -> None:
    record = carry_out(spec_of(tmp_path, engine, scenario), MONTH, "run")
    assert record.verdict is Verdict.PASS, record.reason
    names = {check.name for check in record.checks}
    assert names == CRITERIA | {"backup_verification", "all_faults_detected", "self_test"}
    metrics = record.metrics
    phases = [metrics[f"{name}_seconds"] for name in ("detect", "fetch", "verify", "publish")]
    assert metrics["recovery_seconds"] == pytest.approx(sum(phases))
    assert metrics["files"] > 0 and metrics["bytes"] > 0
    assert (metrics["lost_entries"] > 0) == (scenario == "incremental_recovery")
    caught = {canary["check"] for canary in record.content["canaries"] if canary["caught"]}
    assert caught == CRITERIA
    assert list((tmp_path / "data" / "sandboxes").iterdir()) == []


# --- FAULTS E: what these tools restore wrong without a word ---------------------------------


def _newest(repository: Path) -> Path:
    return max(repository.iterdir())


def _flip_in(file: Path, known: bytes) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(known) + len(known)] ^= 1
    file.write_bytes(content)


def flip_an_unindexed_value(repository: Path) -> None:
    """E13: integrity_check says ok."""
    copy = _newest(repository)
    with closing(sqlite3.connect(copy)) as connection:
        row = connection.execute("select note from member order by length(note) desc").fetchone()
    _flip_in(copy, row[0][:8])
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)


def copy_without_its_journal(repository: Path) -> None:
    """E13: a copy of the file alone, while its newest writes are in the journal beside it."""
    copy = _newest(repository)
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("create temp table newest as select * from member where id > 100")
        connection.execute("delete from member where id > 100")
        connection.commit()
        connection.execute("pragma wal_checkpoint(truncate)")
        connection.execute("insert into member select * from newest")
        connection.commit()
        alone = copy.with_suffix(".alone")
        shutil.copy(copy, alone)
        assert connection.execute("select max(id) > 100 from member").fetchone() == (1,)
    shutil.move(alone, copy)


def older_generation_instead(repository: Path) -> None:
    first, newest = min(repository.iterdir()), _newest(repository)
    if first.is_dir():
        shutil.rmtree(newest)
        shutil.copytree(first, newest)
    else:
        shutil.copyfile(first, newest)


def flip_in_the_log(repository: Path) -> None:
    """E12: redis-check-aof says nothing, and Redis starts."""
    log = max((_newest(repository) / "appendonlydir").glob("*.aof"), key=_size)
    _flip_in(log, b"$60\r\n")


def cut_the_log(repository: Path) -> None:
    """E12: by default Redis starts without the last keys (aof-load-truncated)."""
    log = max((_newest(repository) / "appendonlydir").glob("*.aof"), key=_size)
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size - 40)


def lose_the_logs_manifest(repository: Path) -> None:
    """E12: Redis starts with no keys at all."""
    for path in (_newest(repository) / "appendonlydir").glob("*.manifest"):
        path.unlink()


def lose_the_log(repository: Path) -> None:
    shutil.rmtree(_newest(repository) / "appendonlydir")


def lose_the_dump(repository: Path) -> None:
    (_newest(repository) / "dump.rdb").unlink()


def flip_in_the_dump(repository: Path) -> None:
    _flip_in(_newest(repository) / "dump.rdb", b"session:")


def lose_the_users(repository: Path) -> None:
    (_newest(repository) / "users.acl").unlink()


def _size(path: Path) -> int:
    return path.stat().st_size


TRAPS: dict[Callable[[Path], None], tuple[str, str]] = {
    flip_an_unindexed_value: ("sqlite", "checksums_match"),
    copy_without_its_journal: ("sqlite", "checksums_match"),
    older_generation_instead: ("sqlite", "checksums_match"),
    flip_in_the_log: ("redis_aof", "checksums_match"),
    cut_the_log: ("redis_aof", "files_accessible"),
    lose_the_logs_manifest: ("redis_aof", "all_files_recovered"),
    lose_the_log: ("redis_aof", "files_accessible"),
    lose_the_dump: ("redis_rdb", "files_accessible"),
    flip_in_the_dump: ("redis_rdb", "files_accessible"),
    lose_the_users: ("redis_rdb", "permissions_correct"),
}


@pytest.mark.parametrize("damage", TRAPS, ids=lambda damage: damage.__name__)
def test_what_is_restored_wrong_without_complaint_fails(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """The damage is done after the backups were verified, and before they are needed."""
    engine, criterion = TRAPS[damage]
    spec = spec_of(tmp_path, engine)
    with open_drill(spec, MONTH, "run") as run:
        create_test_dataset(run)
        snapshots = create_incremental_backups(run)
        assert run.verdict is not Verdict.FAIL
        damage(run.repository.path)
        faults = simulate_damage(run)
        recover(run, snapshots)
        assert not run.published
        validate(run, faults)
        assert run.verdict is Verdict.FAIL
        found = {check.name for check in run.checks if check.verdict is Verdict.FAIL}
        assert criterion in found


@pytest.mark.parametrize("damage", TRAPS, ids=lambda damage: damage.__name__)
def test_the_full_check_finds_it_before(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    engine, _ = TRAPS[damage]
    kind = KINDS[engine]
    if kind == "redis" and not HAS_REDIS:
        pytest.skip("redis-server is not installed")
    with Sandbox.create(tmp_path, "engine") as sandbox:
        live = sandbox.tree("live").path
        repository = sandbox.tree("repository").path
        make: Any = engine_class(engine)
        tool = make(repository, sandbox.tree("work").path, timeout_seconds=60.0)
        tool.init()
        made = []
        with make_database(kind, live, sandbox, rows=200, seed=1, taken_from=None) as database:
            for generation in range(2):
                database.change(generation)
                made.append(tool.backup(live, None))
        tool.check()
        tool.full_check(made)
        damage(repository)
        with pytest.raises(EngineError):
            tool.full_check(made)


# --- your own data, and the checks themselves ---------------------------------------------


def test_a_sqlite_database_of_your_own(tmp_path: Path) -> None:
    own = tmp_path / "orders.db"
    with closing(sqlite3.connect(own)) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("create table orders (id integer primary key, what text, price real)")
        connection.execute('create table "odd ""name" (x unique) ')
        connection.executemany("insert into orders (what, price) values (?, ?)", [("a", 1.5)] * 50)
        connection.commit()
        before = own.read_bytes()
        record = carry_out(
            spec_of(tmp_path, "sqlite", "corruption_recovery", path="orders.db", rows=100),
            MONTH,
            "run",
        )
        assert record.verdict is Verdict.PASS, record.reason
        assert own.read_bytes() == before
        kinds = record.content["faults"]
        assert {"row_deleted", "row_changed", "table_dropped"} <= set(kinds)
        assert "fault view_dropped: the data has no place for it" in record.not_tested


@pytest.mark.skipif(not HAS_REDIS, reason="redis-server is not installed")
def test_a_dump_of_your_own(tmp_path: Path) -> None:
    with Sandbox.create(tmp_path, "own") as sandbox:
        live = sandbox.tree("live").path
        with make_database("redis", live, sandbox, rows=200, seed=1, taken_from=None) as database:
            expected = database.describe()
            make: Any = engine_class("redis_rdb")
            tool = make(tmp_path, sandbox.tree("work").path, timeout_seconds=60.0)
            made = tool.backup(live, None)
        shutil.copy(tmp_path / made.snapshot_id / "dump.rdb", tmp_path / "own.rdb")
    record = carry_out(
        spec_of(tmp_path, "redis_aof", "corruption_recovery", path="own.rdb"), MONTH, "run"
    )
    assert record.verdict is Verdict.PASS, record.reason
    entries = record.content["sampling"][0]["entries"]
    assert entries == len([name for name in expected if not name.startswith("privilege")]) + 1


def test_an_orchestrator_in_use_is_backed_up_and_restored(tmp_path: Path) -> None:
    with Sandbox.create(tmp_path, "own") as sandbox:
        trees = [sandbox.tree(name).path for name in ("own", "copy", "restored", "work")]
        own, copy, restored, work = trees
        with make_database("dagster", own, sandbox, rows=100, seed=1, taken_from=None):
            pass
        (own / "dagster.yaml").write_text(f"storage: {{sqlite: {{base_dir: {own}}}}}")
        with closing(sqlite3.connect(own / "schedules" / "schedules.db")) as in_use:
            in_use.execute("pragma journal_mode = wal")
            in_use.execute("update instigators set status = 'STOPPED'")
            in_use.commit()
            taken = make_database("dagster", copy, sandbox, rows=0, seed=0, taken_from=own)
            with taken as database:
                expected = database.describe()
        shutil.rmtree(own)
        with closing(sqlite3.connect(copy / "schedules" / "schedules.db")) as copied:
            state = copied.execute("select status from instigators").fetchone()
            assert state == ("STOPPED",), "what lay in the journal is taken along"
        assert json.loads(expected["readable schedule monthly"])[1] == 2.0
        assert len([name for name in expected if name.startswith("readable run ")]) == 2
        make: Any = engine_class("tar")
        tool = make(sandbox.tree("repository").path, work, timeout_seconds=60.0)
        tool.init()
        tool.restore(tool.backup(copy, None), restored)
        assert look_at("dagster", restored, sandbox, expected).is_right
        (restored / "schedules" / "schedules.db").unlink()
        found = look_at("dagster", restored, sandbox, expected)
        assert "lacks schedules/schedules.db" in found.problem
        assert not own.exists(), "its dagster.yaml leads there"


def test_a_database_that_is_absent_is_one_clear_line(tmp_path: Path) -> None:
    record = carry_out(spec_of(tmp_path, "sqlite", path="nowhere.db"), MONTH, "run")
    assert record.verdict is Verdict.ERROR
    assert "nowhere.db cannot be read: No such file or directory" in record.reason


@pytest.mark.parametrize("kind", ["sqlite", "redis", "dagster"])
def test_each_criterion_is_seen_to_fail(tmp_path: Path, kind: str) -> None:
    if kind == "redis" and not HAS_REDIS:
        pytest.skip("redis-server is not installed")
    with Sandbox.create(tmp_path, "canaries") as sandbox:
        scratch = sandbox.tree("scratch")
        shown = show_that_they_fail(kind, sorted(CRITERIA), sandbox, scratch, 7)
    assert {each.criterion for each in shown if each.kind is None} == CRITERIA
    planted = {each.kind: each.result.verdict for each in shown if each.kind}
    assert set(planted) == {*faults_of(kind), "file_cut"}
    assert set(planted.values()) == {Verdict.FAIL}
    assert {e.result.verdict for e in shown if e.kind is None} == {Verdict.PASS}


def test_equal_rows_in_another_order_are_equal(tmp_path: Path) -> None:
    """And whatever differs in one value is not."""
    with Sandbox.create(tmp_path, "order") as sandbox:
        found = []
        for name, rows in (("one", [1, 2, 3]), ("two", [3, 1, 2]), ("three", [3, 1, "2"])):
            tree = sandbox.tree(name)
            with closing(sqlite3.connect(tree.path / "database.sqlite")) as connection:
                connection.execute("create table t (x)")
                connection.executemany("insert into t values (?)", [(row,) for row in rows])
                connection.commit()
            found.append(look_at("sqlite", tree.path, sandbox, {}).found)
        assert found[0] == found[1]
        assert found[0] != found[2]


def test_faults_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    with Sandbox.create(tmp_path, "seeds") as sandbox:
        done = []
        for name in ("one", "two"):
            tree = sandbox.tree(name)
            with make_database(
                "sqlite", tree.path, sandbox, rows=100, seed=1, taken_from=None
            ) as database:
                faults = faults_of("sqlite").values()
                done.append([fault.inject(database, Random(5)) for fault in faults])
        assert done[0] == done[1] and all(done[0])
