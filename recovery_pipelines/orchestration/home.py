"""The storage of a Dagster instance, opened by Dagster in a process of its own.

The engine starts it (`databases.dagster_process`), tells it a folder of SQLite databases or the
address of a PostgreSQL database, and asks one JSON object a line. Whatever `dagster.yaml` lies in
the folder is not obeyed: it may lead to the live storage.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import dagster as dg
from dagster._config import process_config, resolve_to_config_type
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_origin import (
    GrpcServerCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)

_JOB = "nightly"
_ASSETS = ("orders", "customers", "revenue")
_MONTHS = tuple(f"2026-{month:02d}-01" for month in range(1, 13))
_WRITE_TEST = str(UUID(int=7))


@contextmanager
def opened(place: str, *, new: bool = False) -> Iterator[dg.DagsterInstance]:
    """The instance whose storage is in a folder, by Dagster's defaults, or at an address.

    In PostgreSQL it makes the tables that it lacks only if it is `new`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch) / "settings"
        settings.mkdir()
        folder = place
        if "://" in place:
            folder = scratch
            postgres = {"postgres_url": place, "should_autocreate_tables": new}
            (settings / "dagster.yaml").write_text(json.dumps({"storage": {"postgres": postgres}}))
        ref = InstanceRef.from_dir(folder, config_dir=str(settings))
        with dg.DagsterInstance.from_ref(ref) as instance:
            yield instance


def locate(home: str) -> tuple[str, str]:
    """Where the `dagster.yaml` of a home keeps its storage: `sqlite` and the folder, or `postgres`
    and the address. It is only read."""
    data = InstanceRef.from_dir(home).storage_data
    name = data.class_name if data else "none"
    if data is None or name not in ("DagsterSqliteStorage", "DagsterPostgresStorage"):
        raise dg.DagsterInvariantViolationError(
            f"{home}/dagster.yaml names {name}: write `storage:` with `sqlite` or `postgres`"
        )
    kept = getattr(importlib.import_module(data.module_name), name)
    done = process_config(resolve_to_config_type(kept.config_type()), data.config_dict)
    if not done.success or done.value is None:
        said = "; ".join(error.message for error in done.errors or ())
        raise dg.DagsterInvariantViolationError(f"{home}/dagster.yaml, `storage`: {said}")
    if name == "DagsterSqliteStorage":
        return "sqlite", done.value["base_dir"]
    from dagster_postgres.utils import pg_url_from_config

    return "postgres", pg_url_from_config(done.value)


def describe(instance: dg.DagsterInstance) -> dict[str, str]:
    """What people look up in it: runs, the history of assets, schedules and sensors."""
    found = {
        f"run {run.run_id}": f"{run.job_name} {run.status.value}" for run in instance.get_runs()
    }
    for key in instance.all_asset_keys():
        name = key.to_user_string()
        newest = instance.get_latest_materialization_event(key)
        parts = sorted(instance.get_materialized_partitions(key))
        found[f"asset {name}"] = json.dumps([newest and newest.timestamp, parts])
    for state in instance.all_instigator_state():
        ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
        newest_tick = ticks[0].timestamp if ticks else None
        found[f"{state.instigator_type.value.lower()} {state.instigator_name}"] = json.dumps(
            [state.status.value, newest_tick]
        )
    return found


def fill(instance: dg.DagsterInstance, rows: int, seed: int) -> None:
    """A schedule, a run for each 50 rows, a materialization for each 10."""
    chance = Random(seed)
    _schedule(instance)
    for _ in range(max(rows // 50, 2)):
        _run(instance, chance)
    for _ in range(max(rows // 10, len(_ASSETS))):
        _materialize(instance, chance)


def change(instance: dg.DagsterInstance, seed: int) -> None:
    """What a day brings: a run and a materialization."""
    chance = Random(seed)
    _run(instance, chance)
    _materialize(instance, chance)


def written(instance: dg.DagsterInstance) -> bool:
    """A run is added, found again and deleted."""
    runs = instance.run_storage
    runs.add_run(dg.DagsterRun(job_name=_JOB, run_id=_WRITE_TEST))
    found = runs.has_run(_WRITE_TEST)
    runs.delete_run(_WRITE_TEST)
    return found and not runs.has_run(_WRITE_TEST)


def _run(instance: dg.DagsterInstance, chance: Random) -> None:
    run_id = str(UUID(int=chance.getrandbits(128), version=4))
    status = chance.choice((dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE))
    run = dg.DagsterRun(job_name=_JOB, run_id=run_id, status=status, tags={"made": "yes"})
    instance.add_run(run)
    for number in range(5):
        instance.report_engine_event(f"step {number} of {chance.random()}", run)


def _materialize(instance: dg.DagsterInstance, chance: Random) -> None:
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            chance.choice(_ASSETS),
            partition=chance.choice(_MONTHS),
            metadata={"rows": chance.randrange(1_000_000)},
        )
    )


def _schedule(instance: dg.DagsterInstance) -> None:
    location = GrpcServerCodeLocationOrigin(host="localhost", port=1, location_name="made")
    origin = RemoteInstigatorOrigin(
        repository_origin=RemoteRepositoryOrigin(
            code_location_origin=location, repository_name="made"
        ),
        instigator_name="monthly",
    )
    data = ScheduleInstigatorData("0 3 1 * *", start_timestamp=1.0)
    state = InstigatorState(origin, InstigatorType.SCHEDULE, InstigatorStatus.RUNNING, data)
    instance.add_instigator_state(state)
    instance.create_tick(
        TickData(
            instigator_origin_id=origin.get_id(),
            instigator_name="monthly",
            instigator_type=InstigatorType.SCHEDULE,
            status=TickStatus.SUCCESS,
            timestamp=2.0,
            run_ids=[],
            run_keys=[],
            selector_id=state.selector_id,
        )
    )


def main(place: str) -> None:
    """Answer requests until there are no more."""
    doing: dict[str, Any] = {
        "describe": describe,
        "fill": fill,
        "change": change,
        "written": written,
    }
    for line in sys.stdin:
        asked = json.loads(line)
        do, answer = asked.pop("do"), dict[str, Any]()
        try:
            if do == "locate":
                answer = {"said": locate(**asked)}
            else:
                with opened(place, new=do == "fill") as instance:
                    answer = {"said": doing[do](instance, **asked)}
        except Exception as error:  # whatever Dagster and its database raise on damaged storage
            answer = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        print(json.dumps(answer), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main(sys.argv[1])
