"""A stack: the services of one system, how each is started, and which of them matter most.

Must not start anything: `supervisor` does.
"""

import sys
from collections.abc import Mapping, Sequence

import pandas as pd

from recovery_pipelines.plan.targets import Service as Declared
from recovery_pipelines.services.service import VOLUME, Health, Service, in_order
from recovery_pipelines.tools import existing_user, find_tool, postgres_tool

_POSTGRES_HEALTH = (
    "create table if not exists recovery_heartbeat (id int primary key, at timestamptz);"
    "insert into recovery_heartbeat values (1, now()) on conflict (id) do update set at = now()"
)
_POSTGRES_SETTINGS = {
    "listen_addresses": "*",
    "unix_socket_directories": "",
    "shared_buffers": "32MB",
    "max_connections": "40",
    "logging_collector": "off",
    "timezone": "UTC",
}
_REDIS_SETTINGS = {
    "bind": "0.0.0.0",
    "protected-mode": "no",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
}
_PORTS = {"postgres": 5432, "redis": 6379, "application": 8080}


def resolve(declared: Mapping[str, Declared]) -> list[Service]:
    """The services of a plan, in the order in which they start.

    Raises MissingCapability for a program or a user that is not on this machine.
    """
    ports = {name: service.port or _PORTS[service.kind or ""] for name, service in declared.items()}
    found = [_resolve(name, service, declared, ports) for name, service in declared.items()]
    return in_order(found)


def rank(services: Sequence[Service]) -> pd.DataFrame:
    """How critical each service is: by the number of services that fall with it.

    One row per service, the most critical first: `service`, `kind`, `dependants`,
    `falls_with_it` (the transitive dependants), `depends_on`, `critical` (it has dependants, or
    nothing in the stack has).
    """
    dependants = {service.name: _dependants(service.name, services) for service in services}
    some = any(dependants.values())
    table = pd.DataFrame(
        {
            "service": [service.name for service in services],
            "kind": [service.kind for service in services],
            "dependants": [len(dependants[service.name]) for service in services],
            "falls_with_it": [", ".join(sorted(dependants[s.name])) for s in services],
            "depends_on": [", ".join(service.depends_on) for service in services],
            "critical": [bool(dependants[s.name]) or not some for s in services],
        }
    )
    return table.sort_values("dependants", ascending=False, kind="stable", ignore_index=True)


def picture(ranked: pd.DataFrame) -> str:
    """The dependency graph as text: each service with nothing above it, and what it rests on."""
    below = {row.service: str(row.depends_on).split(", ") for row in ranked.itertuples()}
    critical = set(ranked["service"][ranked["critical"]])

    def lines(name: str, lead: str, turn: str) -> list[str]:
        own = f"{lead}{turn}{name}{' (critical)' if name in critical else ''}"
        beneath = [other for other in below[name] if other]
        deeper = lead + {"": "", "├─ ": "│  ", "└─ ": "   "}[turn]
        turns = ["├─ "] * (len(beneath) - 1) + ["└─ "]
        return [
            own,
            *(line for o, t in zip(beneath, turns, strict=False) for line in lines(o, deeper, t)),
        ]

    tops = ranked["service"][ranked["dependants"] == 0]
    return "\n".join(line for top in tops for line in lines(top, "", ""))


def _dependants(name: str, services: Sequence[Service]) -> set[str]:
    direct = {service.name for service in services if name in service.depends_on}
    return direct.union(*(_dependants(other, services) for other in direct))


def _resolve(
    name: str, declared: Declared, stack: Mapping[str, Declared], ports: Mapping[str, int]
) -> Service:
    port = ports[name]
    data = str(VOLUME / name)
    user = declared.user or ""
    health: Health | None = None
    prepare: tuple[str, ...] = ()
    if declared.kind == "postgres":
        settings = _POSTGRES_SETTINGS | {"port": str(port)} | declared.settings
        options = [f"--{key}={value}" for key, value in settings.items()]
        command: Sequence[str] = [postgres_tool("postgres"), "-D", data, *options]
        initdb = postgres_tool("initdb")
        prepare = (initdb, "-D", data, "-U", "postgres", "-A", "trust", "-k", "-E", "UTF8")
        # what it writes is synced with the whole volume once all services run: see System.start
        prepare += ("--no-sync",)
        user = user or existing_user("postgres", "nobody")
        health = Health("sql", _POSTGRES_HEALTH)
    elif declared.kind == "redis":
        settings = _REDIS_SETTINGS | {"port": str(port), "dir": data} | declared.settings
        options = [word for key, value in settings.items() for word in (f"--{key}", value)]
        command = [find_tool("redis-server"), *options]
        user = user or existing_user("redis", "nobody")
        health = Health("redis")
    elif declared.kind == "application":
        used = [
            f"--{stack[other].kind}={ports[other]}"
            for other in declared.depends_on
            if stack[other].kind in ("postgres", "redis")
        ]
        module = "recovery_pipelines.services.application"
        command = [sys.executable, "-m", module, f"--port={port}", *used]
        health = Health("http", "/alive")  # a broken store must not restart it
    else:
        values = {"{data}": data, "{port}": str(port)}
        command = [_filled(word, values) for word in declared.command]
    if declared.health:
        ((kind, detail),) = declared.health.model_dump(exclude_none=True).items()
        health = Health(kind, "" if detail is True else str(detail))
    assert health is not None  # the plan demands one of every command
    return Service(
        name=name,
        kind=declared.kind or "command",
        command=tuple(command),
        port=port,
        health=health,
        user=user,
        depends_on=declared.depends_on,
        prepare=prepare,
    )


def _filled(word: str, values: Mapping[str, str]) -> str:
    for placeholder, value in values.items():
        word = word.replace(placeholder, value)
    return word
