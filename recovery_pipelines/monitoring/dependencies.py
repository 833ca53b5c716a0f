"""Dependency checks: a database (PostgreSQL), a cache (Redis), storage (a folder, or S3).

Three questions to each: `connectivity` (does it answer), `performance` (fast enough), and
`replication` (do its copies keep up). What nobody set up to be checked is unknown, not healthy.
"""

import os
import secrets
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from recovery_pipelines.monitoring.health import SideBySide, samples_of
from recovery_pipelines.monitoring.sample import Outcome, Sample, State
from recovery_pipelines.plan.monitoring import Dependency, Monitoring

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

TIMEOUT_SECONDS = 10

Answer = tuple[State, str, float | None]
"""State, what was found, and seconds: how long it took, or for `replication` the lag."""


class DependencyCollector:
    """Every check of the plan on every dependency, side by side."""

    def __init__(self, monitoring: Monitoring) -> None:
        settings = monitoring.health_checks.dependency_checks
        self._side_by_side = SideBySide(
            {
                f"{service} {check}": partial(
                    _check, f"{service} {check}", check, monitoring.dependencies.get(service)
                )
                for service in settings.services
                for check in settings.checks
            },
            settings.interval,
        )

    def collect(self) -> tuple[list[Sample], list[Outcome]]:
        outcomes = self._side_by_side.run()
        samples = []
        for sample in samples_of(outcomes):
            is_lag = sample.entity.endswith(" replication")
            if is_lag and sample.metric == "health.response_time":
                sample = sample._replace(metric="health.replication_lag")
            samples.append(sample)
        return samples, outcomes


def _check(name: str, check: str, dependency: Dependency | None) -> Outcome:
    if dependency is None:
        key = f"monitoring.dependencies.{name.split()[0]}"
        return Outcome(name, "unknown", f"the plan gives no {key}")
    if dependency.path:
        state, detail, seconds = _storage(check, dependency, dependency.path)
    else:
        state, detail, seconds = _server(check, dependency)
    return Outcome(name, state, detail, seconds)


def _server(check: str, dependency: Dependency) -> Answer:
    address = dependency.address or ""
    if address.startswith("env:"):
        variable = address.removeprefix("env:")
        address = os.environ.get(variable, "")
        if not address:
            return "unknown", f"the environment has no {variable}", None
    kind = address.split("://", 1)[0]
    if kind in ("postgresql", "postgres"):
        return _postgresql(check, dependency, address)
    if kind in ("redis", "rediss"):
        return _redis(check, dependency, address)
    if kind == "s3":
        return _s3(check, dependency, address)
    return "unknown", "the address is none of postgresql://…, redis://…, s3://…", None


def _speed(began: float, dependency: Dependency) -> Answer:
    seconds = time.monotonic() - began
    slow = seconds > dependency.slow_seconds
    limit = f"{seconds:.3f} s, at most {dependency.slow_seconds:g} s expected"
    return "failed" if slow else "ok", limit, seconds


# --- PostgreSQL ---------------------------------------------------------------------------

_STANDBY = """
SELECT (SELECT coalesce(status, 'in a state that only pg_monitor may see')
        FROM pg_stat_wal_receiver),
       CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
            ELSE extract(epoch FROM now() - coalesce(
                pg_last_xact_replay_timestamp(), pg_postmaster_start_time())) END
"""
_PRIMARY = """
SELECT count(*) FILTER (WHERE state = 'streaming'),
       coalesce(max(extract(epoch FROM replay_lag)) FILTER (WHERE state = 'streaming'), 0),
       count(*) FILTER (WHERE state IS NULL)
FROM pg_stat_replication
"""


def _postgresql(check: str, dependency: Dependency, address: str) -> Answer:
    import psycopg

    began = time.monotonic()
    try:
        with psycopg.connect(
            address,
            connect_timeout=TIMEOUT_SECONDS,
            options=f"-c statement_timeout={TIMEOUT_SECONDS}s",
            application_name="recovery-monitor",
            autocommit=True,
        ) as connection:
            if check == "replication":
                return _postgresql_replication(
                    dependency, lambda query: connection.execute(query).fetchone() or ()
                )
            row = connection.execute("SELECT 1").fetchone()
    except psycopg.ProgrammingError:
        # Not its text: it can quote the address with its password.
        return "failed", "the address is not valid, or a query was refused", None
    except psycopg.Error as error:
        return "failed", _first_line(error, address), None
    if row != (1,):
        return "failed", "SELECT 1 did not give 1", None
    if check == "performance":
        return _speed(began, dependency)
    return "ok", "answers", time.monotonic() - began


def _postgresql_replication(
    dependency: Dependency, ask: Callable[[Any], tuple[Any, ...]]
) -> Answer:
    if ask("SELECT pg_is_in_recovery()")[0]:
        status, lag = ask(_STANDBY)
        if status is None:
            return "failed", "a standby that receives nothing from its primary", None
        return judge_lag(float(lag or 0), dependency, f"standby, {status}")
    streaming, lag, hidden = ask(_PRIMARY)
    if hidden:
        return "unknown", "only a role with pg_monitor may see the state of replicas", None
    return judge_replicas(int(streaming), float(lag), dependency)


def judge_replicas(streaming: int, lag_seconds: float, dependency: Dependency) -> Answer:
    """The answer of a server whose replicas are `streaming`, the slowest of them behind."""
    if streaming < dependency.replicas:
        return "failed", f"{streaming} of {dependency.replicas} replicas are streaming", None
    if not streaming:
        return "unknown", "the plan expects no replicas, and there is none", None
    return judge_lag(lag_seconds, dependency, f"{streaming} replicas are streaming")


def judge_lag(seconds: float, dependency: Dependency, what: str) -> Answer:
    """The answer of a copy that is `seconds` behind."""
    state: State = "ok" if seconds <= dependency.lag_seconds else "failed"
    return state, f"{what}, {seconds:.1f} s behind", seconds


# --- Redis --------------------------------------------------------------------------------


def _redis(check: str, dependency: Dependency, address: str) -> Answer:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    began = time.monotonic()
    try:
        with redis.Redis.from_url(
            address,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),  # the checks' own retries are enough
        ) as client:
            if check == "replication":
                return _redis_replication(dependency, dict(client.info("replication")))
            client.ping()
            if check == "performance":
                return _speed(began, dependency)
    except ValueError:
        return "failed", "the address is not valid", None
    except redis.RedisError as error:
        return "failed", _first_line(error, address), None
    return "ok", "answers", time.monotonic() - began


def _redis_replication(dependency: Dependency, info: dict[str, Any]) -> Answer:
    if info["role"] != "master":
        if info.get("master_link_status") != "up":
            return "failed", "a replica without a link to its master", None
        return judge_lag(float(info.get("master_last_io_seconds_ago", 0)), dependency, "replica")
    copies = [value for key, value in info.items() if key[5:].isdigit() and key[:5] == "slave"]
    online = [copy for copy in copies if copy["state"] == "online"]
    lag = max((float(copy.get("lag", 0)) for copy in online), default=0.0)
    return judge_replicas(len(online), lag, dependency)


# --- storage ------------------------------------------------------------------------------


def _read_back(where: str, same: bool, began: float, check: str, dependency: Dependency) -> Answer:
    """The answer of a storage on which something was written and read."""
    if not same:
        return "failed", f"{where}: what was written reads back differently", None
    if check == "performance":
        return _speed(began, dependency)
    return "ok", "writable and readable", time.monotonic() - began


# --- storage: a folder --------------------------------------------------------------------


def _storage(check: str, dependency: Dependency, path: Path) -> Answer:
    """Write a small file through to the disk, read it back, remove it."""
    if check == "replication":
        return "unknown", "a folder does not tell whether it is replicated", None
    probe = path / f".recovery-monitor-{secrets.token_hex(8)}"
    content = secrets.token_bytes(4096)
    began = time.monotonic()
    try:
        try:
            with probe.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            same = probe.read_bytes() == content
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        return "failed", f"{path}: {error.strerror}", None
    return _read_back(str(path), same, began, check, dependency)


# --- storage: S3 --------------------------------------------------------------------------

_MARKER = ".recovery-monitor-replication"


def _s3(check: str, dependency: Dependency, address: str) -> Answer:
    """Write a small object, read it back, remove it; or ask whether objects are replicated."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return "unknown", "boto3 is missing: pip install recovery-pipelines[s3]", None
    parts = urlsplit(address)
    bucket, prefix = parts.netloc, parts.path.lstrip("/")
    began = time.monotonic()
    try:
        client = _s3_client(dependency.endpoint)
        if check == "replication":
            return _s3_replication(client, bucket, prefix + _MARKER, dependency)
        key, content = (
            f"{prefix}.recovery-monitor-{secrets.token_hex(8)}",
            secrets.token_bytes(4096),
        )
        try:
            client.put_object(Bucket=bucket, Key=key, Body=content)
            same = client.get_object(Bucket=bucket, Key=key)["Body"].read() == content
        finally:
            client.delete_object(Bucket=bucket, Key=key)
    except ClientError as error:
        return "failed", f"{bucket}: {error.response['Error'].get('Code', 'refused')}", None
    except (BotoCoreError, ValueError) as error:
        return "failed", f"{bucket}: {_first_line(error, address)}", None
    return _read_back(bucket, same, began, check, dependency)


@cache
def _s3_client(endpoint: str | None) -> "S3Client":
    """One for all looks: making it costs more than using it. boto3 finds the credentials itself:
    in the environment, its files, or the machine's role."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=TIMEOUT_SECONDS,
        read_timeout=TIMEOUT_SECONDS,
        retries={"total_max_attempts": 1},  # more would hide what a user sees
    )
    session = boto3.session.Session()  # of our own: checks run in threads, boto3's is shared
    return session.client("s3", endpoint_url=endpoint, config=config)


def _s3_replication(client: "S3Client", bucket: str, marker: str, dependency: Dependency) -> Answer:
    """What the bucket says of an object that the look before wrote."""
    from botocore.exceptions import ClientError

    try:
        client.get_bucket_replication(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"].get("Code") != "ReplicationConfigurationNotFoundError":
            raise
        return judge_replicas(0, 0.0, dependency)
    state, age_seconds = "", 0.0
    try:
        found = client.head_object(Bucket=bucket, Key=marker)
        state = found.get("ReplicationStatus", "it does not say")
        age_seconds = time.time() - found["LastModified"].timestamp()
    except ClientError as error:
        if error.response["Error"].get("Code") != "404":
            raise
    if state != "PENDING":
        client.put_object(Bucket=bucket, Key=marker, Body=b"")
    return judge_object(state, age_seconds, dependency)


def judge_object(state: str, age_seconds: float, dependency: Dependency) -> Answer:
    """The answer of a bucket with replication: the state of an object written `age_seconds` ago,
    empty if there was none yet."""
    if state == "COMPLETED":
        return "ok", "the newest object was replicated", None
    if state == "PENDING":
        return judge_lag(age_seconds, dependency, "an object waits to be replicated")
    if state == "FAILED":
        return "failed", "an object was not replicated", None
    return "unknown", f"replication is configured; of an object: {state or 'none yet'}", None


def _first_line(error: Exception, address: str) -> str:
    text = str(error).strip().split("\n", 1)[0] or type(error).__name__
    return "connection failed" if address and address in text else text
