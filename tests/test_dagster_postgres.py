"""A Dagster whose storage is in a team's PostgreSQL: restored and read, or it is no PASS."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from recovery_pipelines.checks import CRITERIA
from recovery_pipelines.databases.base import Contents
from recovery_pipelines.databases.dagster_postgres import DagsterPostgres
from recovery_pipelines.databases.dagster_process import start_dagster
from recovery_pipelines.databases.judge import judge, look_at
from recovery_pipelines.databases.opening import make_database
from recovery_pipelines.databases.postgres import beside_of, open_postgres
from recovery_pipelines.databases.postgres_contents import describe
from recovery_pipelines.drills.recoveries import carry_out
from recovery_pipelines.errors import DatabaseError
from recovery_pipelines.sandbox import Sandbox
from recovery_pipelines.verdict import Verdict
from tests.plans import MONTH, make_spec

pytestmark = pytest.mark.skipif(
    shutil.which("pgbackrest") is None or not Path("/usr/lib/postgresql").exists(),
    reason="PostgreSQL or pgbackrest is not installed",
)
ADDRESS = "RECOVERY_TEST_DAGSTER_DATABASE"


@dataclass
class Team:
    """Its server with a Dagster's storage, in a schema of a role that is no superuser."""

    sandbox: Sandbox
    address: str
    home: Path

    def describe(self) -> Contents:
        with psycopg.connect(self.address, autocommit=True) as connection:
            return describe(connection, without=("privilege",))

    @contextmanager
    def copied(self, name: str) -> Iterator[DagsterPostgres]:
        """As a drill takes it over."""
        folder = self.sandbox.tree(name).path
        taken = make_database(
            "dagster_postgres", folder, self.sandbox, rows=0, seed=0, taken_from=self.home
        )
        with taken as database:
            assert isinstance(database, DagsterPostgres)
            yield database


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    memory = Path("/dev/shm")
    with (
        TemporaryDirectory(dir=memory if memory.is_dir() else None) as home,
        Sandbox.create(Path(home), "team") as sandbox,
        pytest.MonkeyPatch.context() as patch,
    ):
        server, dagster = sandbox.tree("server").path, sandbox.tree("home").path
        with open_postgres(server, sandbox, new=True) as database:
            for statement in (
                "create role orchestrator login password 'not told'",
                "create database dagster owner orchestrator",
            ):
                database.connection.execute(statement.encode())
            words = f"host={beside_of(server)}&port=5432&options=-csearch_path%3Dorchestra"
            address = f"postgresql://orchestrator:not%20told@/dagster?{words}"
            with psycopg.connect(address, autocommit=True) as connection:
                connection.execute("create schema orchestra")
            with start_dagster(address.replace(":", "+psycopg2:", 1)) as process:
                process.ask("fill", rows=200, seed=1)
            patch.setenv(ADDRESS, address)
            settings = {"storage": {"postgres": {"postgres_url": {"env": ADDRESS}}}}
            (dagster / "dagster.yaml").write_text(json.dumps(settings))
            yield Team(sandbox, address, dagster)


def test_a_drill_restores_the_storage_that_dagster_yaml_names(team: Team, tmp_path: Path) -> None:
    before = team.describe()
    target = {"database": {"kind": "dagster", "path": str(team.home)}, "engines": ["pg_basebackup"]}
    record = carry_out(
        make_spec(tmp_path, "corruption_recovery", targets={"mine": target}), MONTH, "run"
    )
    assert record.verdict is Verdict.PASS, record.reason
    caught = {canary["check"] for canary in record.content["canaries"] if canary["caught"]}
    assert caught == set(CRITERIA)
    assert team.describe() == before, "it is only read"
    assert "not told" not in json.dumps(record.content)


def test_the_copy_holds_each_row_and_dagster_reads_it(team: Team) -> None:
    with team.copied("copy") as database:
        found = database.describe()
        assert database.written()
        assert database.describe() == found
    rows = {name: what for name, what in team.describe().items() if name.startswith("rows ")}
    assert rows and rows.items() <= found.items()
    readable = [name for name in found if name.startswith("readable ")]
    assert len([name for name in readable if name.startswith("readable run ")]) == 4
    assert {"readable asset revenue", "readable schedule monthly"} <= set(readable)


@pytest.mark.parametrize(
    "damage",
    [
        "drop table orchestra.runs cascade",
        "delete from orchestra.event_logs where id = (select max(id) from orchestra.event_logs)",
        "update orchestra.instigators set instigator_body = 'torn'",
    ],
)
def test_a_damaged_storage_fails(team: Team, damage: str) -> None:
    """Also one that a restore brought back so, and that PostgreSQL finds nothing wrong with."""
    folder = team.sandbox.tree("damaged").path
    with team.copied("damaged") as database:
        expected = database.describe()
        database.connection.execute(damage.encode())
    state = look_at("dagster_postgres", folder, team.sandbox, expected)
    verdicts = {result.verdict for result in judge(list(CRITERIA), state)}
    assert not state.is_right and Verdict.FAIL in verdicts
    team.sandbox.tree("damaged").clear()


def test_a_copy_that_lacks_a_row_is_refused(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = DagsterPostgres._copy

    def lossy(self: DagsterPostgres, *words: str) -> None:
        copy(self, *words)
        self.connection.execute("delete from orchestra.asset_keys where id = 1")

    monkeypatch.setattr(DagsterPostgres, "_copy", lossy)
    said = "not what was read there: rows orchestra.asset_keys"
    with pytest.raises(DatabaseError, match=said), team.copied("lossy"):
        pass


def _sqlite(home: Path) -> None:
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}")


def _nobody(home: Path) -> None:
    (home / "dagster.yaml").write_text(
        "storage: {postgres: {postgres_url: 'postgresql+psycopg2://a:secret@127.0.0.1:1/dagster'}}"
    )


def _unset(home: Path) -> None:
    (home / "dagster.yaml").write_text("storage: {postgres: {postgres_url: {env: NOT_SET_HERE}}}")


def _custom(home: Path) -> None:
    (home / "dagster.yaml").write_text(
        "storage: {mysql: {mysql_url: 'mysql+mysqlconnector://a@127.0.0.1:1/dagster'}}"
    )


@pytest.mark.parametrize(
    ("engine", "make", "said"),
    [
        ("pgbackrest", _sqlite, "is in sqlite .* such as tar"),
        ("tar", _nobody, "is in postgres .* such as pgbackrest"),
        ("pgbackrest", _nobody, "the storage that .*dagster.yaml names: .*refused"),
        ("tar", _unset, "NOT_SET_HERE"),
        ("pgbackrest", _custom, "write `storage:` with `sqlite` or `postgres`"),
    ],
)
def test_what_cannot_be_taken_over_is_one_clear_line(
    tmp_path: Path, engine: str, make: Callable[[Path], None], said: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    make(home)
    target = {"database": {"kind": "dagster", "path": "home"}, "engines": [engine]}
    spec = make_spec(tmp_path, "corruption_recovery", targets={"mine": target})
    record = carry_out(spec, MONTH, "run")
    assert record.verdict is Verdict.ERROR
    assert "secret" not in json.dumps(record.content)
    assert re.search(said, record.reason.replace("\n", " ")), record.reason
