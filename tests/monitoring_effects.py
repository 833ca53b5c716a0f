"""The effect of each key of the plan's `monitoring` section, for tests/test_plan.py."""

import os
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dagster as dg

from campaigns.servers import S3_KEYS
from recovery_pipelines.build import build_definitions
from recovery_pipelines.monitoring.alerts import Change, conditions
from recovery_pipelines.monitoring.application import ApplicationCollector
from recovery_pipelines.monitoring.dependencies import (
    DependencyCollector,
    judge_lag,
    judge_replicas,
)
from recovery_pipelines.monitoring.health import HealthCollector
from recovery_pipelines.monitoring.rollup import kept_days, prune
from recovery_pipelines.monitoring.sample import Collector, Sample
from recovery_pipelines.monitoring.service import ServiceCollector
from recovery_pipelines.monitoring.store import Tick, Writer, connect
from recovery_pipelines.monitoring.system import SystemCollector
from recovery_pipelines.plan.monitoring import Dependency, Monitoring
from recovery_pipelines.sensors.monitoring import tell
from tests.plans import make_plan
from tests.web_application import application

Effect = Callable[..., None]
CHECKS = "health_checks__service_checks"
LOG_LINE = '127.0.0.1 - - [1/Jan/2026:00:00:00 +0000] "GET / HTTP/1.1" 200 512 "-" "x" 0.2\n'


def monitoring(folder: Path, **changes: Any) -> Monitoring:
    """The shipped section, changed by dotted keys."""
    plan = make_plan(folder, **{f"monitoring__{key}": value for key, value in changes.items()})
    assert plan.monitoring
    return plan.monitoring


def values(collector: Collector) -> dict[tuple[str, str], float | None]:
    samples, _ = collector.collect()
    return {(sample.metric, sample.entity): sample.value for sample in samples}


def states(collector: Collector) -> list[str]:
    return [outcome.state for outcome in collector.collect()[1]]


def http_states(folder: Path, port: int, **changes: Any) -> list[str]:
    """The outcome of one HTTP check of a service, without retries."""
    service = {"service_port": port} | changes.pop("service", {})
    check = {"type": "http", "endpoint": "/health"} | changes.pop("check", {})
    settings = {f"{CHECKS}__retries": 0, f"{CHECKS}__checks": [check]} | changes
    found = monitoring(folder, services={"app": service}, **settings)
    return states(HealthCollector(found.services, found.health_checks.service_checks))


def effect_enabled(tmp_path: Path, drill: Any) -> None:
    for enabled, expected in (
        (False, dg.DefaultSensorStatus.STOPPED),
        (True, dg.DefaultSensorStatus.RUNNING),
    ):
        definitions = build_definitions(make_plan(tmp_path, monitoring__enabled=enabled))
        sensors = [s for s in definitions.sensors or [] if s.name.startswith("monitoring_")]
        assert len(sensors) == 6
        assert {sensor.default_status for sensor in sensors} == {expected}


def effect_notification(tmp_path: Path, drill: Any) -> None:
    plan = make_plan(
        tmp_path,
        monitoring__notification=["stakeholders"],
        teams__stakeholders=[{"file": "health.jsonl"}],
    )
    assert plan.monitoring
    change = Change("app http /health", "ok", "failed", "status 500")
    tell(plan, plan.monitoring, "service_checks", [change])
    assert "app http /health failed" in (tmp_path / "data" / "health.jsonl").read_text()


def effect_limits(tmp_path: Path, drill: Any) -> None:
    now = time.time()
    for value, expected in ((89.0, "ok"), (91.0, "failed")):
        with connect(tmp_path) as connection:
            tick = Tick("system_metrics", now, now, 0.0)
            Writer(connection).append(tick, [Sample("disk.usage", "/", value)], [])
        found = monitoring(tmp_path, limits={"disk.usage": 90})
        by_name = {c.name: c for c in conditions(tmp_path, found, "system_metrics", now)}
        assert by_name["disk.usage /"].states[-1] == expected


def effect_host(tmp_path: Path, drill: Any) -> None:
    with application() as app:
        assert http_states(tmp_path, app.port, service={"host": "127.0.0.1"}) == ["ok"]
        assert http_states(tmp_path, app.port, service={"host": "127.0.0.2"}) == ["failed"]


def effect_service_port(tmp_path: Path, drill: Any) -> None:
    with application() as app:
        assert http_states(tmp_path, app.port) == ["ok"]
    assert http_states(tmp_path, app.port) == ["failed"]


def effect_tls(tmp_path: Path, drill: Any) -> None:
    with application() as app:
        assert http_states(tmp_path, app.port, service={"tls": True}) == ["failed"]


def effect_pid_file(tmp_path: Path, drill: Any) -> None:
    (tmp_path / "pid").write_text(f"{os.getpid()}\n")
    for pid_file, is_known in ((str(tmp_path / "pid"), True), (None, False)):
        found = monitoring(tmp_path, services={"app": {"service_port": 1, "pid_file": pid_file}})
        service = ServiceCollector(found.services, found.metrics_collection.service_metrics)
        uptime = values(service)["availability.uptime", "app"]
        assert (uptime is not None and uptime > 0) is is_known


def effect_prometheus(key: str, metric: str) -> Effect:
    """With a wrong name the metric is missing, with the right one it is there."""

    def effect(tmp_path: Path, drill: Any) -> None:
        with application() as app:
            app.metrics(0, 0, 0)
            for names, is_known in (({}, True), ({key: "/elsewhere"}, False)):
                service = {"service_port": app.port, "prometheus": names}
                found = monitoring(tmp_path, services={"app": service})
                app.metrics(0, 0, 0)
                collector = ApplicationCollector(
                    found.services, found.metrics_collection.application_metrics
                )
                app.metrics(100, 90, 10)
                assert (values(collector)[metric, "app"] is not None) is is_known

    return effect


def effect_access_log(tmp_path: Path, drill: Any) -> None:
    log = tmp_path / "access.log"
    log.write_text(LOG_LINE)
    services = {"app": {"service_port": 1, "access_log": str(log)}}
    found = monitoring(tmp_path, services=services)
    collector = ApplicationCollector(found.services, found.metrics_collection.application_metrics)
    with log.open("a") as file:
        file.write(LOG_LINE)
    found_values = values(collector)
    assert found_values["response_times.avg", "app"] == 0.2
    assert found_values["error_rates.total", "app"] == 0


def dependency_states(folder: Path, **changes: Any) -> dict[str, str]:
    found = monitoring(folder, **changes)
    return {o.name: o.state for o in DependencyCollector(found).collect()[1]}


def effect_address(tmp_path: Path, drill: Any) -> None:
    assert dependency_states(tmp_path)["cache connectivity"] == "unknown"
    closed = {"cache": {"address": "redis://127.0.0.1:1"}}
    assert dependency_states(tmp_path, dependencies=closed)["cache connectivity"] == "failed"


def effect_endpoint(tmp_path: Path, drill: Any) -> None:
    """boto3 talks to what the plan names."""
    with application() as app:
        for port, said in ((app.port, "501"), (1, "Could not connect")):
            bucket = {"address": "s3://b", "endpoint": f"http://127.0.0.1:{port}"}
            found = monitoring(
                tmp_path,
                dependencies={"storage": bucket},
                health_checks__dependency_checks__services=["storage"],
                health_checks__dependency_checks__checks=["connectivity"],
            )
            with patch.dict(os.environ, S3_KEYS):
                outcomes = DependencyCollector(found).collect()[1]
            assert said in outcomes[0].detail


def effect_storage(key: str, value: object, check: str) -> Effect:
    def effect(tmp_path: Path, drill: Any) -> None:
        for changed, expected in (({}, "ok"), ({key: value}, "failed")):
            storage = {"storage": {"path": str(tmp_path)} | changed}
            assert dependency_states(tmp_path, dependencies=storage)[check] == expected

    return effect


def effect_replicas(tmp_path: Path, drill: Any) -> None:
    for expected, state in ((1, "ok"), (2, "failed")):
        dependency = Dependency(address="redis://db", replicas=expected)
        assert judge_replicas(1, 0.0, dependency)[0] == state
    assert judge_replicas(0, 0.0, Dependency(address="redis://db"))[0] == "unknown"


def effect_lag(tmp_path: Path, drill: Any) -> None:
    for allowed, state in ((10, "ok"), (5, "failed")):
        dependency = Dependency(address="redis://db", lag_seconds=allowed)
        assert judge_lag(7.0, dependency, "replica")[0] == state


def effect_resources(key: str, kept: str, left_out: str) -> Effect:
    def effect(tmp_path: Path, drill: Any) -> None:
        name = f"metrics_collection__system_metrics__resources__{key}"
        found = monitoring(tmp_path, **{name: [kept]})
        collector = SystemCollector(found.metrics_collection.system_metrics)
        metrics = {metric for metric, _ in values(collector)}
        assert f"{key}.{kept}" in metrics
        assert f"{key}.{left_out}" not in metrics

    return effect


def effect_interval(key: str, section: str) -> Effect:
    def effect(tmp_path: Path, drill: Any) -> None:
        plan = make_plan(tmp_path, **{f"monitoring__{key}": 77})
        sensors = {sensor.name: sensor for sensor in build_definitions(plan).sensors or []}
        assert sensors[f"monitoring_{section}"].minimum_interval_seconds == 77
        assert plan.monitoring and plan.monitoring.interval_seconds(section) == 77

    return effect


def effect_latency_probe(tmp_path: Path, drill: Any) -> None:
    with application() as app:
        address = f"127.0.0.1:{app.port}"
        key = "metrics_collection__system_metrics__latency_probe"
        found = monitoring(tmp_path, **{key: address})
        collector = SystemCollector(found.metrics_collection.system_metrics)
        assert values(collector)["network.latency", address] is not None


def effect_retention(key: str, folder: str) -> Effect:
    def effect(tmp_path: Path, drill: Any) -> None:
        for days, left in (("9d", 9), ("8d", 8)):
            for age in range(1, 12):
                for name in ("raw", "aggregated"):
                    path = tmp_path / "monitoring" / name / f"{date(2026, 6, 20) - timedelta(age)}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.with_name(f"{path.name}.parquet").touch()
            keys = {f"metrics_collection__system_metrics__retention__{key}": days}
            found = monitoring(tmp_path, **keys)
            now = datetime(2026, 6, 20, 12, tzinfo=UTC).timestamp()
            prune(tmp_path, found.metrics_collection.system_metrics.retention, now)
            assert sum(of == folder for of, _ in kept_days(tmp_path)) == left

    return effect


def effect_metrics(section: str, key: str, kept: str, left_out: str) -> Effect:
    def effect(tmp_path: Path, drill: Any) -> None:
        name = f"metrics_collection__{section}__{key}"
        found = monitoring(tmp_path, services={"app": {"service_port": 1}}, **{name: [kept]})
        settings: Any = getattr(found.metrics_collection, section)
        kind: Any = ServiceCollector if section == "service_metrics" else ApplicationCollector
        metrics = {metric for metric, _ in values(kind(found.services, settings))}
        assert f"{key}.{kept}" in metrics
        assert f"{key}.{left_out}" not in metrics

    return effect


def effect_error_rates(tmp_path: Path, drill: Any) -> None:
    key = "metrics_collection__application_metrics__error_rates"
    for kept in ("total", "by_type"):
        found = monitoring(tmp_path, services={"app": {"service_port": 1}}, **{key: [kept]})
        settings = found.metrics_collection.application_metrics
        metrics = {metric for metric, _ in values(ApplicationCollector(found.services, settings))}
        assert {name for name in metrics if name.startswith("error")} == {f"error_rates.{kept}"}


def effect_timeout(where: str) -> Effect:
    def effect(tmp_path: Path, drill: Any) -> None:
        with application() as app:
            app.hang.set()
            began = time.monotonic()
            changes: dict[str, Any] = (
                {"check": {"timeout": 0.2}} if where == "check" else {f"{CHECKS}__timeout": 0.2}
            )
            assert http_states(tmp_path, app.port, **changes) == ["failed"]
            assert time.monotonic() - began < 9, "the default timeout is 10 s"

    return effect


def effect_retries(tmp_path: Path, drill: Any) -> None:
    changes = {f"{CHECKS}__retries": 1, f"{CHECKS}__checks": [{"type": "tcp", "port": 1}]}
    found = monitoring(tmp_path, services={"app": {"service_port": 1}}, **changes)
    health = HealthCollector(found.services, found.health_checks.service_checks)
    assert "(2 attempts)" in health.collect()[1][0].detail


def effect_check(right: dict[str, Any], wrong: dict[str, Any]) -> Effect:
    def effect(tmp_path: Path, drill: Any) -> None:
        with application() as app:
            app.pages["/health"] = (200, "ok")
            assert http_states(tmp_path, app.port, check=right) == ["ok"]
            assert http_states(tmp_path, app.port, check=wrong) == ["failed"]

    return effect


def effect_check_port(tmp_path: Path, drill: Any) -> None:
    with application() as app:
        for port, expected in (("service_port", "ok"), (1, "failed")):
            changes = {
                f"{CHECKS}__retries": 0,
                f"{CHECKS}__checks": [{"type": "tcp", "port": port}],
            }
            found = monitoring(tmp_path, services={"app": {"service_port": app.port}}, **changes)
            health = HealthCollector(found.services, found.health_checks.service_checks)
            assert states(health) == [expected]


def effect_check_type(tmp_path: Path, drill: Any) -> None:
    with application() as app:
        app.pages["/health"] = (500, "broken")
        checks = [{"type": "http", "endpoint": "/health"}, {"type": "tcp", "port": "service_port"}]
        changes = {f"{CHECKS}__retries": 0, f"{CHECKS}__checks": checks}
        found = monitoring(tmp_path, services={"app": {"service_port": app.port}}, **changes)
        health = HealthCollector(found.services, found.health_checks.service_checks)
        assert states(health) == ["failed", "ok"]


def effect_dependency(key: str, names: set[str]) -> Effect:
    def effect(tmp_path: Path, drill: Any) -> None:
        value = {"services": ["storage"], "checks": ["connectivity"]}[key]
        found = dependency_states(tmp_path, **{f"health_checks__dependency_checks__{key}": value})
        assert set(found) == names

    return effect


_PROMETHEUS = {
    "endpoint": "throughput.requests_per_second",
    "response_times": "response_times.p95",
    "requests": "throughput.requests_per_second",
    "status_label": "error_rates.total",
    "data_transfer": "throughput.data_transfer",
}
_SYSTEM = "metrics_collection.system_metrics"
EFFECTS: dict[str, Effect] = {
    "enabled": effect_enabled,
    "notification": effect_notification,
    "limits": effect_limits,
    "services.host": effect_host,
    "services.service_port": effect_service_port,
    "services.tls": effect_tls,
    "services.pid_file": effect_pid_file,
    "services.access_log": effect_access_log,
    "dependencies.address": effect_address,
    "dependencies.endpoint": effect_endpoint,
    "dependencies.path": effect_storage("path", "/nonexistent", "storage connectivity"),
    "dependencies.slow_seconds": effect_storage("slow_seconds", 1e-9, "storage performance"),
    "dependencies.replicas": effect_replicas,
    "dependencies.lag_seconds": effect_lag,
    f"{_SYSTEM}.resources.cpu": effect_resources("cpu", "load", "usage"),
    f"{_SYSTEM}.resources.memory": effect_resources("memory", "cache", "usage"),
    f"{_SYSTEM}.resources.disk": effect_resources("disk", "usage", "io"),
    f"{_SYSTEM}.resources.network": effect_resources("network", "latency", "errors"),
    f"{_SYSTEM}.latency_probe": effect_latency_probe,
    f"{_SYSTEM}.retention.raw_data": effect_retention("raw_data", "raw"),
    f"{_SYSTEM}.retention.aggregated": effect_retention("aggregated", "aggregated"),
    "metrics_collection.application_metrics.error_rates": effect_error_rates,
    "health_checks.service_checks.timeout": effect_timeout("all"),
    "health_checks.service_checks.retries": effect_retries,
    "health_checks.service_checks.checks.type": effect_check_type,
    "health_checks.service_checks.checks.endpoint": effect_check({}, {"endpoint": "/none"}),
    "health_checks.service_checks.checks.expected_status": effect_check(
        {}, {"expected_status": 204}
    ),
    "health_checks.service_checks.checks.port": effect_check_port,
    "health_checks.service_checks.checks.timeout": effect_timeout("check"),
    "health_checks.dependency_checks.services": effect_dependency(
        "services", {"storage connectivity", "storage performance", "storage replication"}
    ),
    "health_checks.dependency_checks.checks": effect_dependency(
        "checks", {"database connectivity", "cache connectivity", "storage connectivity"}
    ),
}
EFFECTS |= {
    f"services.prometheus.{key}": effect_prometheus(key, metric)
    for key, metric in _PROMETHEUS.items()
}
EFFECTS |= {
    f"metrics_collection.{section}.{key}": effect_metrics(section, key, kept, left_out)
    for section, key, kept, left_out in (
        ("service_metrics", "availability", "uptime", "response_time"),
        ("service_metrics", "performance", "throughput", "error_rate"),
        ("service_metrics", "resources", "cpu_usage", "memory_usage"),
        ("application_metrics", "response_times", "avg", "p95"),
        ("application_metrics", "throughput", "data_transfer", "requests_per_second"),
    )
}
EFFECTS |= {
    key: effect_interval(key.replace(".", "__"), key.split(".")[1])
    for key in (
        "metrics_collection.system_metrics.collection_interval",
        "metrics_collection.service_metrics.collection_interval",
        "metrics_collection.application_metrics.collection_interval",
        "health_checks.service_checks.interval",
        "health_checks.dependency_checks.interval",
    )
}
