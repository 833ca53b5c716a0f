"""The plan's `targets`: what must be recoverable."""

import graphlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from recovery_pipelines.plan.base import Name, Strict, unique

Recovery = Literal["same_volume", "volume_destroyed"]
ServiceFault = Literal["kill", "hang", "out_of_memory", "file_descriptors", "disk_full"]
NetworkFailure = Literal["link_down", "drop", "one_sided_drop", "loss", "rate_limit"]
Aspect = Literal[
    "content",
    "device",
    "hard_link_group",
    "link_target",
    "mode",
    "mtime",
    "owner",
    "type",
    "xattr",
]


class Dataset(Strict):
    """Seeded synthetic data that looks like a data team's."""

    size: Annotated[ByteSize, Field(ge=1_000_000)]
    """Synthetic data, such as `64MB` or `10GB`; at least 1 MB."""
    seed: int = 1
    """The same seed gives the same bytes."""


class Faults(Strict):
    """The damage that `simulate_corruption` does."""

    kinds: tuple[str, ...] | Literal["all"] = "all"
    """Kinds of damage, or `all`."""
    count: PositiveInt | None = None
    """How many faults are injected, kinds taken in turn; if left out, each kind once."""


class Objectives(Strict):
    """What recovery must achieve. A miss is a finding of its own; it does not undo a restore."""

    rto_seconds: PositiveFloat | None = None
    """Longest acceptable time from the detection of damage to verified, published data: the check
    `rto_met`, which warns."""
    rpo_seconds: NonNegativeFloat | None = None
    """Longest acceptable stretch of lost writes, or age of an audited repository's newest backup:
    the check `rpo_met` or `backup_is_fresh`, which warns."""


def engine_names(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class Target(Strict):
    """What must be recoverable: a real tree (`path`, copied, never touched) or test data."""

    path: Path | None = None
    """A real tree; it is copied into the sandbox and never touched. Instead of `dataset`."""
    dataset: Dataset | None = None
    engines: Annotated[tuple[str, ...], BeforeValidator(engine_names), Field(min_length=1)] = (
        "tar",
    )
    """Backup tools; one drill for each."""
    increments: Annotated[int, Field(ge=3, le=100)] = 3
    """3 to 100 incremental backups after the full one, with changes between them."""
    recovery: Literal["selective", "full"] = "selective"
    """What corruption_recovery restores: what is damaged (`selective`) or everything (`full`)."""
    repeats: Annotated[int, Field(ge=1, le=9)] = 1
    """How often (1 to 9) the newest generation is fetched and verified in one drill: each must be
    right,
    each value is kept in `repeats.parquet`, the median counts. CPU and I/O include all."""
    faults: Faults = Faults()
    objectives: Objectives = Objectives()
    not_kept: tuple[Aspect, ...] = ()
    """Aspects that the target does not promise to keep; recorded in every result."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either `path` (a real tree to copy) or `dataset` (test data)")
        return self


class HealthCheck(Strict):
    """How a service is seen to work: exactly one key."""

    http: Annotated[str, Field(pattern=r"^/\S*$")] | None = None
    """A path that must answer 200."""
    tcp: Literal[True] | None = None
    """The port accepts connections."""
    sql: str | None = None
    """A statement, sent to a PostgreSQL server."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(way is not None for way in (self.http, self.tcp, self.sql)) != 1:
            raise ValueError("a health check has exactly one of: http, tcp, sql")
        return self


class Service(Strict):
    """One service of a stack: a kind that we know, or a command of yours."""

    kind: Literal["postgres", "redis", "application"] | None = None
    """What we know how to run; `application` is a small HTTP server that reads and writes what it
    depends on. Instead of `command`."""
    settings: dict[str, str] = {}
    """Of postgres or redis, added to the defaults."""
    command: tuple[str, ...] = ()
    """A program of yours that stays in the foreground; `{data}` is its directory on the volume,
    `{port}` its port. Instead of `kind`."""
    user: str | None = None
    """Whom it runs as where drills run as root: postgres, redis or nobody; a command as the drill's
    own user."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Inside the drill's own network, so it collides with nothing; that of the kind."""
    health: HealthCheck | None = None
    depends_on: tuple[Name, ...] = ()
    """Services that are started first."""
    may_lose_seconds: NonNegativeFloat = 0
    """How old acknowledged writes may be that a power cut costs."""
    volume_may_lose_seconds: NonNegativeFloat = 0
    """The same where the volume is destroyed and only backups are left."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.kind is None) == (not self.command):
            raise ValueError("give either `kind` (postgres, redis, application) or `command`")
        if self.command and (self.port is None or self.health is None):
            raise ValueError("a `command` needs its `port` and a `health` check")
        if self.settings and self.kind not in ("postgres", "redis"):
            raise ValueError("`settings` belong to the kinds postgres and redis")
        return self


class ServicesTarget(Strict):
    """A stack of services that must be recoverable."""

    services: Annotated[dict[Name, Service], Field(min_length=1)]
    recoveries: Annotated[tuple[Recovery, ...], Field(min_length=1)] = ("same_volume",)
    """What complete_system_failure leaves, the volume or only the backups; one drill for each."""
    faults: Annotated[tuple[ServiceFault, ...], Field(min_length=1)] = ("kill",)
    """What partial_failure does to the critical services; one drill for each."""
    response_seconds: PositiveFloat = 0.5
    """Within this, 95 % of the requests must be answered after a recovery."""
    objectives: Objectives = Objectives()

    @property
    def not_kept(self) -> tuple[str, ...]:
        return ()

    @model_validator(mode="after")
    def _can_be_started(self) -> Self:
        for name, service in self.services.items():
            unknown = sorted(set(service.depends_on) - set(self.services))
            if unknown:
                raise ValueError(f"{name} depends on {unknown[0]}, which is no service here")
        try:
            graph = {name: service.depends_on for name, service in self.services.items()}
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            raise ValueError(
                f"services depend on each other: {' → '.join(error.args[1])}"
            ) from None
        return self

    _no_repeats = field_validator("recoveries", "faults")(unique)


_PATRONI_SECONDS = 30


class ReplicationTarget(Strict):
    """A database on a primary and a standby, which takes over when the primary is cut off."""

    replication: Literal["synchronous", "asynchronous"]
    """`synchronous` (nothing is acknowledged that the standby lacks) or `asynchronous`."""
    patroni: str | None = None
    """The program, as a path or a name on PATH: Patroni and etcd see to the failover instead of our
    own. See [networks](network.md#patroni)."""
    fencing: bool = True
    """Stop the primary before the standby is promoted. Patroni does so by itself."""
    failures: Annotated[tuple[NetworkFailure, ...], Field(min_length=1)] = ("drop",)
    """What happens to the primary's network; one drill for each."""
    failover_seconds: PositiveFloat = 10
    """Longest time from the failure to a standby that takes writes; the check
    `failed_over_in_time`. With `patroni` 30 if left out: its shortest lease is 20 s."""
    latency_seconds: PositiveFloat = 0.05
    """Within this, 95 % of the echoes must come back after the restoration."""
    may_lose_seconds: NonNegativeFloat = 0
    """Asynchronous only: the longest acceptable stretch of acknowledged writes that are lost."""
    objectives: Objectives = Objectives()

    @property
    def not_kept(self) -> tuple[str, ...]:
        return ()

    def anchored(self, folder: Path) -> Self:
        """Its paths, which the plan gives relative to its own folder."""
        if self.patroni is None or "/" not in self.patroni:
            return self
        return self.model_copy(update={"patroni": str(folder / Path(self.patroni).expanduser())})

    @model_validator(mode="before")
    @classmethod
    def _patroni_takes_its_time(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("patroni"):
            return {"failover_seconds": _PATRONI_SECONDS} | data
        return data

    @model_validator(mode="after")
    def _patroni_fences(self) -> Self:
        if self.patroni and not self.fencing:
            raise ValueError("fencing is up to Patroni where `patroni` is given: leave it out")
        return self

    @model_validator(mode="after")
    def _synchronous_loses_nothing(self) -> Self:
        if self.replication == "synchronous" and self.may_lose_seconds:
            raise ValueError("may_lose_seconds belongs to asynchronous replication")
        return self

    _no_repeats = field_validator("failures")(unique)
