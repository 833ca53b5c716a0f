"""pgBackRest and pg_basebackup on a real cluster: they restore what was there, or it is no PASS."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from recovery_pipelines.checks import CRITERIA
from recovery_pipelines.databases.base import Contents, differences
from recovery_pipelines.databases.judge import judge, look_at
from recovery_pipelines.databases.opening import make_database
from recovery_pipelines.databases.postgres import PostgresDatabase, beside_of, serve
from recovery_pipelines.engines.base import Snapshot, engine_class
from recovery_pipelines.engines.postgres import PostgresEngine
from recovery_pipelines.errors import DatabaseError, EngineError, MissingCapability
from recovery_pipelines.matrix.bench import refill
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.tools import find_tool, postgres_programs
from recovery_pipelines.verdict import Verdict

ENGINES = ("pg_basebackup", "pgbackrest")
PAGE = 8192
NEWEST = 3


@dataclass
class Chain:
    """Four backups by one engine, in a sandbox; each test damages a copy of the repository."""

    name: str
    engine: PostgresEngine
    made: list[Snapshot]
    contents: list[Contents]

    @property
    def newest(self) -> Snapshot:
        return self.made[NEWEST]

    @property
    def copy(self) -> Path:
        """The files of the cluster in the repository of pg_basebackup."""
        (copy,) = (self.engine.repository / "base").iterdir()
        return copy

    @property
    def wal(self) -> list[Path]:
        """The archived segments, oldest first."""
        archived = self.engine._archived()
        return [archived[name] for name in sorted(archived)]


@dataclass
class Backed:
    """A made cluster that was backed up by both engines."""

    sandbox: Sandbox
    chains: dict[str, Chain]
    table: str
    """Where the rows of the largest table are, in the cluster's folder."""
    older: bytes
    """That file before the last rows were changed that the first backup holds."""
    refused: dict[tuple[str, str], str]
    """By engine and archive_command: what a backup said with it."""

    def outcome(self, chain: Chain, generation: int = NEWEST) -> dict[str, Verdict] | str:
        """Of each criterion on what is restored, or why nothing is."""
        staging = self.sandbox.tree("staging")
        staging.clear()
        try:
            chain.engine.restore(chain.made[generation], staging.path)
        except EngineError as error:
            return str(error)
        state = look_at("postgres", staging.path, self.sandbox, chain.contents[generation])
        return {result.name: result.verdict for result in judge(list(CRITERIA), state)}


ARCHIVES_NOTHING = "/bin/true"
TRUNCATES = "head -c 1000 %p > {wal}/%f"
GARBLES = "tr '\\0' x < %p > {wal}/%f"
ARCHIVES_BADLY = {
    "pg_basebackup": (ARCHIVES_NOTHING, TRUNCATES, GARBLES),
    "pgbackrest": (ARCHIVES_NOTHING,),
}


@pytest.fixture(scope="module")
def backed() -> Iterator[Backed]:
    try:
        postgres_programs()
        find_tool("pgbackrest")
    except MissingCapability as error:
        pytest.skip(str(error))
    memory = Path("/dev/shm")
    with ExitStack() as stack:
        home = stack.enter_context(TemporaryDirectory(dir=memory if memory.is_dir() else None))
        sandbox = stack.enter_context(Sandbox.create(Path(home), "postgres"))
        live = sandbox.tree("live").path
        engines = {name: _engine(name, sandbox) for name in ENGINES}
        database = stack.enter_context(
            make_database("postgres", live, sandbox, rows=2000, seed=1, taken_from=None)
        )
        assert isinstance(database, PostgresDatabase)
        ask = database.connection.execute
        row = ask("checkpoint; select pg_relation_filepath('recovery_sample.member')")
        while row.nextset():
            pass
        (table,) = row.fetchone() or ("",)
        older = (live / table).read_bytes()
        database.change(0)
        chains, refused = {}, {}
        for name, engine in engines.items():
            chains[name] = _chain(name, engine, database, live)
            wal = engine._site.seen(engine.repository / "wal")
            for command in ARCHIVES_BADLY[name]:
                with _kept(sandbox, engine):
                    _archive_with(database, command.format(wal=wal))
                    refused[name, command] = _refusal(engine, live, chains[name].newest)
        _archive_with(database, "/bin/false")
        yield Backed(sandbox, chains, table, older, refused)


def _engine(name: str, sandbox: Sandbox) -> PostgresEngine:
    make: Any = engine_class(name)
    engine = make(
        sandbox.tree(f"{name}-repository").path,
        sandbox.tree(f"{name}-work").path,
        timeout_seconds=120.0,
        environment=sandbox.environment,
    )
    assert isinstance(engine, PostgresEngine)
    engine.init()
    return engine


def _chain(name: str, engine: PostgresEngine, database: PostgresDatabase, live: Path) -> Chain:
    chain = Chain(name, engine, [], [])
    for generation in range(NEWEST + 1):
        if generation:
            database.change(generation)
        chain.contents.append(database.describe())
        parent = chain.made[-1] if chain.made else None
        chain.made.append(engine.backup(live, parent))
    engine.check()
    engine.full_check(chain.made)
    return chain


def _archive_with(database: PostgresDatabase, command: str) -> None:
    quoted = command.replace("'", "''")
    database.connection.execute(f"alter system set archive_command = '{quoted}'".encode())
    database.connection.execute("select pg_reload_conf()")
    while database.connection.execute("show archive_command").fetchone() != (command,):
        pass


def _refusal(engine: PostgresEngine, live: Path, parent: Snapshot) -> str:
    """What one more backup of WAL alone says, or else its full check."""
    wal_alone = Snapshot(**{**vars(parent), "kind": "incremental"})
    try:
        engine.full_check([engine.backup(live, wal_alone)])
    except EngineError as error:
        return str(error)
    return ""


@contextmanager
def _kept(sandbox: Sandbox, engine: PostgresEngine) -> Iterator[None]:
    """The repository is afterwards what it was."""
    repository, saved = sandbox.tree(engine.repository.name), sandbox.tree("saved")
    refill(saved, repository)
    try:
        yield
    finally:
        refill(repository, saved)


# --- sound backups --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "generation"), [("pg_basebackup", 0), ("pgbackrest", 1)])
def test_an_earlier_generation_comes_back(backed: Backed, name: str, generation: int) -> None:
    chain = backed.chains[name]
    kinds = {
        "pg_basebackup": ["full", "wal", "wal", "wal"],
        "pgbackrest": ["full", "differential", "incremental", "wal"],
    }
    assert [snapshot.kind for snapshot in chain.made] == kinds[name]
    assert set(backed.outcome(chain, generation).values()) == {Verdict.PASS}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ENGINES)
def test_the_repository_lists_each_recorded_id(backed: Backed, name: str) -> None:
    chain = backed.chains[name]
    assert {snapshot.snapshot_id for snapshot in chain.made} <= set(chain.engine.snapshot_ids())


def test_another_timeline_in_the_archive_is_not_followed(backed: Backed) -> None:
    """A server that was restored and promoted elsewhere archives into the same folder, and makes
    a restore point of the same name: to the `latest` timeline, PostgreSQL restores its rows."""
    chain = backed.chains["pg_basebackup"]
    engine, (name, _) = chain.engine, chain.newest.position.split()
    stray = backed.sandbox.tree("stray").path
    with _kept(backed.sandbox, engine):
        engine.restore(chain.made[1], stray)
        push = {"archive_mode": "on", "archive_command": engine._archive_command(stray)}
        with serve(stray, backed.sandbox.environment, push) as connection:
            connection.execute("delete from recovery_sample.member where id < 100")
            engine._archive_up_to(connection, name)
        expected = chain.contents[NEWEST]
        assert _naively_restored(backed, chain, name, timeline="latest") != expected
        assert set(backed.outcome(chain).values()) == {Verdict.PASS}  # type: ignore[union-attr]


# --- FAULTS E: what these tools, or PostgreSQL itself, restore wrong without a word ----------


def _naively_restored(backed: Backed, chain: Chain, point: str, timeline: str) -> Contents:
    """What a server holds that replays WAL to this point, or with none to the end of all WAL."""
    staging = backed.sandbox.tree("naive")
    staging.clear()
    beside_of(staging.path).mkdir(0o700, exist_ok=True)
    engine = chain.engine
    engine._site.give(staging.path, beside_of(staging.path))
    settings = engine._lay_out(chain.copy.name, staging.path, point, 1)
    settings |= {"recovery_target_timeline": timeline, "archive_mode": "off", "hot_standby": "off"}
    with serve(staging.path, backed.sandbox.environment, settings) as connection:
        return PostgresDatabase(staging.path, connection).describe()


def test_postgresql_takes_a_lost_segment_for_the_end_unless_it_has_a_target(
    backed: Backed,
) -> None:
    """E1: it starts, and rows are missing. With a restore point it refuses."""
    chain = backed.chains["pg_basebackup"]
    with _kept(backed.sandbox, chain.engine):
        chain.wal[-2].unlink()
        lacking = _naively_restored(backed, chain, "", timeline="current")
        wrong = differences(chain.contents[NEWEST], lacking)
        assert "rows recovery_sample.member" in wrong
        with pytest.raises(DatabaseError, match="before configured recovery target was reached"):
            _naively_restored(backed, chain, chain.newest.position.split()[0], timeline="1")


def _flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


def lose_a_segment(backed: Backed, chain: Chain) -> None:
    """E1."""
    chain.wal[-2].unlink()


def lose_the_last_segment(backed: Backed, chain: Chain) -> None:
    """E1: a restore to the latest state would end early."""
    chain.wal[-1].unlink()


def flip_a_bit_of_a_segment(backed: Backed, chain: Chain) -> None:
    """E1."""
    _flip(chain.wal[-1], at=0.01 if chain.name == "pg_basebackup" else 0.5)


def repeat_a_segment(backed: Backed, chain: Chain) -> None:
    """E1: the one before it under its name."""
    shutil.copyfile(chain.wal[-2], chain.wal[-1])


def cut_a_segment(backed: Backed, chain: Chain) -> None:
    """E1."""
    with chain.wal[-1].open("r+b") as file:
        file.truncate(chain.wal[-1].stat().st_size // 2)


def zero_pages(backed: Backed, chain: Chain) -> None:
    """E14: checksums, amcheck and pg_dump are content. More than one: WAL mends some."""
    with (chain.copy / backed.table).open("r+b") as file:
        file.write(bytes(10 * PAGE))


def put_an_old_file_back(backed: Backed, chain: Chain) -> None:
    """E14: a lost write."""
    assert (chain.copy / backed.table).read_bytes()[: len(backed.older)] != backed.older
    (chain.copy / backed.table).write_bytes(backed.older)


def shorten_a_file(backed: Backed, chain: Chain) -> None:
    """E14: by five pages."""
    with (chain.copy / backed.table).open("r+b") as file:
        file.truncate((chain.copy / backed.table).stat().st_size - 5 * PAGE)


def flip_a_bit_of_a_page(backed: Backed, chain: Chain) -> None:
    _flip(chain.copy / backed.table, at=0.3)


def tear_what_new_databases_are_made_of(backed: Backed, chain: Chain) -> None:
    """template1, which holds no rows of anybody's."""
    largest = max((chain.copy / "base" / "1").iterdir(), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(-2048, 2)
        file.write(bytes(2048))


def lose_the_label(backed: Backed, chain: Chain) -> None:
    """E15: files of a running server, copied without the server's knowing."""
    (chain.copy / "backup_label").unlink()


def change_a_setting(backed: Backed, chain: Chain) -> None:
    """E16: pg_verifybackup leaves postgresql.auto.conf out."""
    with (chain.copy / "postgresql.auto.conf").open("a") as file:
        file.write("work_mem = '3MB'\n")


def flip_a_bit_of_the_backup(backed: Backed, chain: Chain) -> None:
    """E2: `pgbackrest verify` exits with 0."""
    files = chain.engine.repository.glob("backup/main/*F/bundle/*")
    _flip(max(files, key=lambda path: path.stat().st_size))


def lose_the_newest_backup(backed: Backed, chain: Chain) -> None:
    shutil.rmtree(max(chain.engine.repository.glob("backup/main/*I")))


REFUSED = "refused"
TRAPS: dict[tuple[str, Callable[[Backed, Chain], None]], str] = {
    ("pg_basebackup", lose_a_segment): REFUSED,
    ("pg_basebackup", lose_the_last_segment): REFUSED,
    ("pg_basebackup", flip_a_bit_of_a_segment): REFUSED,
    ("pg_basebackup", repeat_a_segment): REFUSED,
    ("pg_basebackup", cut_a_segment): REFUSED,
    ("pg_basebackup", zero_pages): "checksums_match",
    ("pg_basebackup", put_an_old_file_back): "checksums_match",
    ("pg_basebackup", shorten_a_file): "checksums_match",
    ("pg_basebackup", flip_a_bit_of_a_page): "files_accessible",
    ("pg_basebackup", tear_what_new_databases_are_made_of): "files_accessible",
    ("pg_basebackup", lose_the_label): REFUSED,
    ("pg_basebackup", change_a_setting): "directory_structure_intact",
    ("pgbackrest", lose_a_segment): REFUSED,
    ("pgbackrest", lose_the_last_segment): REFUSED,
    ("pgbackrest", flip_a_bit_of_a_segment): REFUSED,
    ("pgbackrest", repeat_a_segment): REFUSED,
    ("pgbackrest", cut_a_segment): REFUSED,
    ("pgbackrest", flip_a_bit_of_the_backup): REFUSED,
    ("pgbackrest", lose_the_newest_backup): REFUSED,
}
"""By engine and damage: the criterion that fails, or that nothing is restored at all."""


@pytest.mark.parametrize(
    ("name", "damage"), TRAPS, ids=lambda each: getattr(each, "__name__", each)
)
def test_what_would_be_restored_wrong_without_complaint_never_passes(
    backed: Backed, name: str, damage: Callable[[Backed, Chain], None]
) -> None:
    chain = backed.chains[name]
    with _kept(backed.sandbox, chain.engine):
        damage(backed, chain)
        with pytest.raises(EngineError):
            chain.engine.full_check(chain.made)
        found, expected = backed.outcome(chain), TRAPS[name, damage]
    if expected == REFUSED:
        assert isinstance(found, str), found
    else:
        assert not isinstance(found, str), found
        assert found[expected] is Verdict.FAIL


@pytest.mark.parametrize(
    ("name", "command", "said"),
    [
        ("pgbackrest", ARCHIVES_NOTHING, "does not hold it whole"),
        ("pg_basebackup", ARCHIVES_NOTHING, "does not hold it whole"),
        ("pg_basebackup", TRUNCATES, "does not hold it whole"),
        ("pg_basebackup", GARBLES, "WAL"),
    ],
)
def test_an_archive_command_that_does_not_keep_wal_is_found_out(
    backed: Backed, name: str, command: str, said: str
) -> None:
    assert said in backed.refused[name, command]
