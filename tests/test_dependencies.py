"""Dependency checks on real servers: each can go red, and says why."""

import shutil
from pathlib import Path
from typing import Any

import boto3
import pytest

from campaigns.servers import BUCKET, S3_KEYS, Server, ask_postgres, servers
from recovery_pipelines.errors import MissingProgram
from recovery_pipelines.monitoring.dependencies import DependencyCollector, judge_object
from recovery_pipelines.plan.monitoring import Dependency
from recovery_pipelines.tools import postgres_tool
from tests.dagster_dev import wait_for
from tests.monitoring_effects import monitoring

CHECKS = "health_checks__dependency_checks"


class Looks:
    """The checks of one dependency of a plan, repeated."""

    def __init__(self, folder: Path, name: str, **dependency: Any) -> None:
        changes = {"dependencies": {name: dependency}, f"{CHECKS}__services": [name]}
        self._collector = DependencyCollector(monitoring(folder, **changes))

    def states(self) -> dict[str, str]:
        return {o.name.split()[1]: o.state for o in self._collector.collect()[1]}

    def found(self, check: str) -> str:
        outcomes = {o.name.split()[1]: o for o in self._collector.collect()[1]}
        return f"{outcomes[check].state}: {outcomes[check].detail}"


def postgres(server: Server) -> dict[str, Any]:
    return {"address": f"postgresql://postgres@127.0.0.1:{server.port}/postgres"}


def redis(server: Server) -> dict[str, Any]:
    return {"address": f"redis://127.0.0.1:{server.port}"}


def has_postgres() -> bool:
    try:
        return bool(postgres_tool("postgres"))
    except MissingProgram:
        return False


@pytest.mark.skipif(not has_postgres(), reason="PostgreSQL is not installed")
def test_a_database_and_its_streaming_replica(tmp_path: Path) -> None:
    with servers("database", "database_replica") as running:
        primary, replica = running["database"], running["database_replica"]
        on_primary = Looks(tmp_path, "database", **postgres(primary), replicas=1)
        on_replica = Looks(tmp_path, "database", **postgres(replica), lag_seconds=0.5)
        wait_for(lambda: set(on_primary.states().values()) == {"ok"}, 30, "a streaming replica")
        assert on_replica.found("replication").startswith("ok: standby, streaming, 0.0 s behind")
        too_few = Looks(tmp_path, "database", **postgres(primary), replicas=2)
        assert too_few.found("replication") == "failed: 1 of 2 replicas are streaming"

        ask_postgres(replica.port, "select 1 from pg_wal_replay_pause()")
        impatient = Looks(tmp_path, "database", **postgres(primary), lag_seconds=0.5)
        begin = "select pg_logical_emit_message(true, 'x', 'x') is null"

        def is_behind(looks: Looks) -> bool:
            ask_postgres(primary.port, begin)
            return looks.states()["replication"] == "failed"

        wait_for(lambda: is_behind(on_replica), 30, "the standby to say that it is behind")
        assert on_primary.states()["replication"] == "ok", "30 s are allowed"
        ask_postgres(replica.port, "select 1 from pg_wal_replay_resume()")
        wait_for(lambda: on_replica.states()["replication"] == "ok", 30, "it to catch up")
        assert impatient.found("replication").endswith("s behind")

        primary.kill()
        assert set(on_primary.states().values()) == {"failed"}
        wait_for(
            lambda: "receives nothing" in on_replica.found("replication"), 30, "the loss to be seen"
        )
        primary.start()
        replica.kill()
        assert on_primary.found("replication") == "failed: 0 of 1 replicas are streaming"
        replica.start()
        wait_for(lambda: set(on_primary.states().values()) == {"ok"}, 30, "both to be well again")


@pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server is not installed")
def test_a_cache_and_its_replica(tmp_path: Path) -> None:
    with servers("cache", "cache_replica") as running:
        on_master = Looks(tmp_path, "cache", **redis(running["cache"]), replicas=1)
        on_replica = Looks(tmp_path, "cache", **redis(running["cache_replica"]))
        wait_for(lambda: set(on_master.states().values()) == {"ok"}, 30, "an online replica")
        assert on_replica.found("replication").startswith("ok: replica")
        running["cache_replica"].kill()
        wait_for(
            lambda: on_master.found("replication") == "failed: 0 of 1 replicas are streaming",
            30,
            "the loss to be seen",
        )
        running["cache_replica"].start()
        running["cache"].kill()
        assert set(on_master.states().values()) == {"failed"}
        assert on_replica.found("replication").startswith("failed: a replica without a link")


def test_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    with servers("storage") as running:
        endpoint = f"http://127.0.0.1:{running['storage'].port}"
        there = {"address": f"s3://{BUCKET}/probes/", "endpoint": endpoint, "slow_seconds": 60}
        looks = Looks(tmp_path, "storage", **there)
        well = {"connectivity": "ok", "performance": "ok", "replication": "unknown"}
        assert looks.states() == well
        client = boto3.client("s3", endpoint_url=endpoint)
        assert client.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0, "nothing is left behind"

        hurried = Looks(tmp_path, "storage", **there | {"slow_seconds": 1e-9})
        assert hurried.states()["performance"] == "failed"
        replicated = Looks(tmp_path, "storage", **there, replicas=1)
        assert replicated.found("replication") == "failed: 0 of 1 replicas are streaming"
        client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        rule = {"Status": "Enabled", "Destination": {"Bucket": "arn:aws:s3:::copies"}}
        client.create_bucket(Bucket="copies")
        client.put_bucket_versioning(Bucket="copies", VersioningConfiguration={"Status": "Enabled"})
        client.put_bucket_replication(
            Bucket=BUCKET, ReplicationConfiguration={"Role": "r", "Rules": [rule]}
        )
        assert replicated.found("replication").startswith("unknown"), "nothing was proven yet"

        elsewhere = Looks(tmp_path, "storage", **there | {"address": "s3://nowhere"})
        assert elsewhere.found("connectivity") == "failed: nowhere: NoSuchBucket"
        running["storage"].kill()
        assert set(looks.states().values()) == {"failed"}
        running["storage"].start()
        assert looks.states() == well


@pytest.mark.parametrize(
    ("state", "age_seconds", "expected"),
    [
        ("COMPLETED", 900, "ok"),
        ("PENDING", 20, "ok"),
        ("PENDING", 31, "failed"),
        ("FAILED", 1, "failed"),
        ("", 0, "unknown"),
        ("it does not say", 0, "unknown"),
    ],
)
def test_an_object_says_whether_it_was_replicated(
    state: str, age_seconds: float, expected: str
) -> None:
    assert judge_object(state, age_seconds, Dependency(address="s3://b"))[0] == expected
