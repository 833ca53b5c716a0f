"""A Dagster home that keeps its storage in SQLite, opened by Dagster in a process of its own.

The engine starts it (`databases.dagster_home`), tells it the folder, and asks one JSON object a
line. Whatever `dagster.yaml` lies in the folder is not obeyed: it may lead to the live storage.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any
from uuid import UUID

import dagster as dg
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
def opened(folder: str) -> Iterator[dg.DagsterInstance]:
    """The instance whose storage is in `folder`, by Dagster's defaults."""
    with (
        tempfile.TemporaryDirectory() as nothing,
        dg.DagsterInstance.from_ref(InstanceRef.from_dir(folder, config_dir=nothing)) as instance,
    ):
        yield instance


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


def main(folder: str) -> None:
    """Answer requests until there are no more."""
    doing: dict[str, Any] = {
        "describe": describe,
        "fill": fill,
        "change": change,
        "written": written,
    }
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            with opened(folder) as instance:
                said = {"said": doing[asked.pop("do")](instance, **asked)}
        except Exception as error:  # whatever Dagster and its database raise on damaged storage
            said = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        print(json.dumps(said), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main(sys.argv[1])
