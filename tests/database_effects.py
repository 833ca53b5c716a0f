"""The effect of each key of the plan that is about databases; see test_plan."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recovery_pipelines.drills.database_recovery import create_test_dataset
from recovery_pipelines.drills.lifecycle import open_drill
from recovery_pipelines.errors import PlanError
from tests.plans import MONTH, make_plan, make_spec


def described(folder: Path, run_id: str = "run", **database: Any) -> dict[str, str]:
    """What the made or taken database holds before anything happens."""
    target = {"database": {"kind": "sqlite"} | database}
    spec = make_spec(folder, "corruption_recovery", targets={"mine": target})
    with open_drill(spec, MONTH, run_id) as run:
        table = pd.read_parquet(create_test_dataset(run))
    return dict(zip(table["name"], table["what"], strict=True))


def effect_kind(folder: Path, drill: object) -> None:
    for kind, engine in (
        ("sqlite", "sqlite"),
        ("redis", "redis_rdb"),
        ("postgres", "pgbackrest"),
        ("dagster", "tar"),
    ):
        plan = make_plan(folder, targets={"mine": {"database": {"kind": kind}}})
        assert {spec.engine for spec in plan.drills()} == {engine}
    engines = {"engines": ["restic", "pgbackrest"]}
    plan = make_plan(folder, targets={"mine": {"database": {"kind": "dagster"}, **engines}})
    kinds = {spec.engine: spec.database_kind for spec in plan.drills()}
    assert kinds == {"restic": "dagster", "pgbackrest": "dagster_postgres"}
    with pytest.raises(PlanError, match="allowed: redis_rdb, redis_aof"):
        target = {"database": {"kind": "redis"}, "engines": ["tar"]}
        make_plan(folder, targets={"mine": target})
    with pytest.raises(PlanError, match="are audited"):
        make_plan(folder, targets={"mine": {"database": {"kind": "postgres", "path": "a.sql"}}})


def effect_path(folder: Path, drill: object) -> None:
    with closing(sqlite3.connect(folder / "own.db")) as connection:
        connection.execute("create table only (x)")
    assert 'rows "only"' in described(folder, path="own.db")


def effect_rows(folder: Path, drill: object) -> None:
    found = [described(folder, str(rows), rows=rows)['rows "member"'] for rows in (100, 300)]
    assert [text.split()[0] for text in found] == ["100", "300"]


def effect_seed(folder: Path, drill: object) -> None:
    one, again, other = (
        described(folder, f"run{number}", seed=seed)['rows "member"']
        for number, seed in enumerate((1, 1, 2))
    )
    assert one == again != other


DATABASE_EFFECTS: dict[str, Callable[..., None]] = {
    "targets.database.kind": effect_kind,
    "targets.database.path": effect_path,
    "targets.database.rows": effect_rows,
    "targets.database.seed": effect_seed,
}
