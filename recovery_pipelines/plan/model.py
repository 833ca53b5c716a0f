"""The plan's schema. Every key here has an effect; what does not work yet is not a key."""

import graphlib
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    Tag,
    field_validator,
    model_validator,
)

from recovery_pipelines.plan.monitoring import Monitoring

if TYPE_CHECKING:
    import apprise

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]

SCENARIO_STEPS: dict[str, tuple[str, ...]] = {
    "corruption_recovery": (
        "create_test_dataset",
        "simulate_corruption",
        "trigger_recovery",
        "validate_data",
    ),
    "incremental_recovery": (
        "create_incremental_backups",
        "simulate_data_loss",
        "perform_incremental_restore",
        "verify_data_state",
    ),
    "complete_system_failure": (
        "shutdown_all_services",
        "power_off_simulation",
        "initiate_recovery",
        "validate_restoration",
    ),
    "network_isolation": (
        "simulate_network_failure",
        "activate_failover",
        "verify_connectivity",
        "restore_primary_network",
    ),
}
"""The seed's steps of each supported scenario."""

DataIntegrityCriterion = Literal["all_files_recovered", "checksums_match"]
StructureCriterion = Literal["directory_structure_intact", "permissions_correct"]
AccessibilityCriterion = Literal["files_accessible", "applications_functional"]
Category = Literal["process_improvements", "resource_needs", "risk_mitigation"]
Priority = Literal["critical", "high", "medium", "low"]
SystemStateCriterion = Literal["all_services_running", "data_accessible"]
ServiceDataCriterion = Literal["checksums_match", "no_corruption"]
PerformanceCriterion = Literal["response_times_normal", "no_degradation"]
ConnectivityCriterion = Literal["all_services_accessible", "no_packet_loss"]
NetworkPerformanceCriterion = Literal["latency_within_limits", "bandwidth_normal"]
ConsistencyCriterion = Literal["no_split_brain", "no_acknowledged_write_lost"]
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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _unique(values: tuple[str, ...]) -> tuple[str, ...]:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"named more than once: {', '.join(repeated)}")
    return values


class Criteria(_Strict):
    """The asset checks of a scenario, by the seed's groups."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for group in type(self).model_fields for name in getattr(self, group))

    @field_validator("*")
    @classmethod
    def _no_repeats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _unique(names)


class ValidationCriteria(Criteria):
    """The criteria of the data-recovery scenarios."""

    data_integrity: tuple[DataIntegrityCriterion, ...] = ("all_files_recovered", "checksums_match")
    structure: tuple[StructureCriterion, ...] = (
        "directory_structure_intact",
        "permissions_correct",
    )
    accessibility: tuple[AccessibilityCriterion, ...] = (
        "files_accessible",
        "applications_functional",
    )
    additional: tuple[Name, ...] = ()
    """Checks that other packages register under `recovery_pipelines.checks`."""


class SystemCriteria(Criteria):
    """The criteria of the system-failure scenarios."""

    system_state: tuple[SystemStateCriterion, ...] = ("all_services_running", "data_accessible")
    data_integrity: tuple[ServiceDataCriterion, ...] = ("checksums_match", "no_corruption")
    performance: tuple[PerformanceCriterion, ...] = ("response_times_normal", "no_degradation")


class NetworkCriteria(Criteria):
    """The criteria of the network-recovery scenarios."""

    connectivity: tuple[ConnectivityCriterion, ...] = ("all_services_accessible", "no_packet_loss")
    performance: tuple[NetworkPerformanceCriterion, ...] = (
        "latency_within_limits",
        "bandwidth_normal",
    )
    consistency: tuple[ConsistencyCriterion, ...] = (
        "no_split_brain",
        "no_acknowledged_write_lost",
    )


class Scenario(_Strict):
    """One scenario: what is done, in the seed's steps, and what must hold afterwards."""

    name: str
    description: str = ""
    steps: tuple[str, ...] = ()
    """In the seed's order; all of them if the key is left out."""
    validation_criteria: Criteria = Criteria()

    @model_validator(mode="before")
    @classmethod
    def _all_steps_by_default(cls, data: object) -> object:
        if isinstance(data, dict) and "steps" not in data:
            return {**data, "steps": SCENARIO_STEPS.get(data.get("name", ""), ())}
        return data

    @model_validator(mode="after")
    def _known_steps_in_order(self) -> Self:
        known = SCENARIO_STEPS[self.name]
        unknown = [step for step in self.steps if step not in known]
        if unknown:
            raise ValueError(f"unknown step {unknown[0]!r}; allowed, in order: {', '.join(known)}")
        if list(self.steps) != [step for step in known if step in self.steps]:
            raise ValueError(f"steps must keep their order: {', '.join(known)}")
        if known[0] not in self.steps:
            raise ValueError(f"the first step, {known[0]!r}, cannot be left out")
        return self

    @property
    def omitted_steps(self) -> tuple[str, ...]:
        return tuple(step for step in SCENARIO_STEPS[self.name] if step not in self.steps)


class DataScenario(Scenario):
    name: Literal["corruption_recovery", "incremental_recovery"]
    validation_criteria: ValidationCriteria = ValidationCriteria()


class SystemScenario(Scenario):
    name: Literal["complete_system_failure"]
    validation_criteria: SystemCriteria = SystemCriteria()


class NetworkScenario(Scenario):
    name: Literal["network_isolation"]
    validation_criteria: NetworkCriteria = NetworkCriteria()


Cron = Annotated[str, Field(pattern=r"^(\S+\s+){4}\S+$")]


class Automation(_Strict):
    """When a group's drills start by themselves, who hears of failures, what is kept."""

    schedule: Literal["monthly", "manual"] | Cron = "monthly"
    """`monthly` (03:00 on the 1st), `manual` (no schedule) or a five-field cron expression."""
    notification: tuple[Name, ...] = ()
    """Teams told of a drill that failed."""
    reporting: tuple[Literal["detailed_logs", "metrics", "recommendations"], ...] = (
        "detailed_logs",
        "metrics",
        "recommendations",
    )
    """Files kept with each drill's result (`journal.jsonl`, `metrics.parquet`), and whether there
    are recommendations for the group's drills."""

    @property
    def cron_schedule(self) -> str | None:
        return {"monthly": "0 3 1 * *", "manual": None}.get(self.schedule, self.schedule)


class ScenarioGroup(_Strict):
    scenarios: tuple[Scenario, ...] = ()
    automation: Automation = Automation()

    @field_validator("scenarios")
    @classmethod
    def _no_repeats(cls, scenarios: tuple[Scenario, ...]) -> tuple[Scenario, ...]:
        _unique(tuple(scenario.name for scenario in scenarios))
        return scenarios


class DataRecovery(ScenarioGroup):
    """What is done to file trees."""

    scenarios: tuple[DataScenario, ...] = (
        DataScenario(name="corruption_recovery"),
        DataScenario(name="incremental_recovery"),
    )


class SystemFailure(ScenarioGroup):
    """What is done to service stacks."""

    scenarios: tuple[SystemScenario, ...] = (SystemScenario(name="complete_system_failure"),)


class NetworkRecovery(ScenarioGroup):
    """What is done to replicated databases."""

    scenarios: tuple[NetworkScenario, ...] = (NetworkScenario(name="network_isolation"),)


class TestScenarios(_Strict):
    data_recovery: DataRecovery = DataRecovery()
    system_failure: SystemFailure = SystemFailure()
    network_recovery: NetworkRecovery = NetworkRecovery()


class PreparationNotifications(_Strict):
    start: tuple[Name, ...] = ()
    completion: tuple[Name, ...] = ()


class Preparation(_Strict):
    """What must hold before a drill damages anything."""

    requirements: tuple[
        Literal["backup_verification", "system_snapshot", "resource_availability"], ...
    ] = ("backup_verification", "system_snapshot", "resource_availability")
    notifications: PreparationNotifications = PreparationNotifications()


class ExecutionControls(_Strict):
    parallel_tests: bool = False
    timeout: PositiveInt = 3600
    """Seconds that one drill may take."""
    retry_attempts: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a drill that ended in ERROR is run again; a finding (FAIL) never is."""
    failure_handling: Literal["stop_and_notify", "continue_and_notify"] = "stop_and_notify"


class AutomatedChecks(_Strict):
    data_integrity: tuple[Literal["checksums", "structure", "permissions"], ...] = (
        "checksums",
        "structure",
        "permissions",
    )


ManualCheck = Literal["critical_functionality", "user_access"]
SignOffText = Literal["test_results", "issues_found", "resolutions"]


class ManualVerification(_Strict):
    """What a named person must verify, and write down, before a drill can PASS."""

    required_checks: tuple[ManualCheck, ...] = ()
    documentation: tuple[SignOffText, ...] = ("test_results", "issues_found", "resolutions")

    _no_repeats = field_validator("required_checks", "documentation")(_unique)


class Validation(_Strict):
    automated_checks: AutomatedChecks = AutomatedChecks()
    manual_verification: ManualVerification = ManualVerification()


class TestExecution(_Strict):
    preparation: Preparation = Preparation()
    execution_controls: ExecutionControls = ExecutionControls()
    validation: Validation = Validation()


class MetricsCollection(_Strict):
    """The columns of a drill's metrics row, by the seed's groups."""

    performance_metrics: tuple[Literal["recovery_time", "success_rate"], ...] = (
        "recovery_time",
        "success_rate",
    )
    resource_metrics: tuple[Literal["cpu_usage", "memory_usage", "io_operations"], ...] = (
        "cpu_usage",
        "memory_usage",
        "io_operations",
    )
    error_metrics: tuple[Literal["failure_count", "error_types", "resolution_time"], ...] = (
        "failure_count",
        "error_types",
        "resolution_time",
    )

    @property
    def names(self) -> frozenset[str]:
        return frozenset((*self.performance_metrics, *self.resource_metrics, *self.error_metrics))


class MetricsAnalysis(_Strict):
    """Which tables are made of all drills together."""

    trend_analysis: bool = True
    comparison_with_baseline: bool = True
    anomaly_detection: bool = True


class Metrics(_Strict):
    collection: MetricsCollection = MetricsCollection()
    analysis: MetricsAnalysis = MetricsAnalysis()


Retention = Annotated[str, Field(pattern=r"^([1-9][0-9]{0,4}d|forever)$")]
"""How long something is kept: days, such as `365d`, or `forever`."""


def retention_days(retention: Retention) -> float:
    """Days; infinity for `forever`."""
    return float("inf") if retention == "forever" else float(retention.removesuffix("d"))


class TestResults(_Strict):
    """The reports that are made of every month, who gets them, how long the bulk is kept."""

    format: tuple[Literal["detailed_report", "executive_summary"], ...] = (
        "detailed_report",
        "executive_summary",
    )
    distribution: tuple[Name, ...] = ()
    retention: Retention = "365d"
    """Of tables, journals and the values between stages. Records stay: see `Evidence`."""

    _no_repeats = field_validator("format", "distribution")(_unique)


class Recommendations(_Strict):
    """Which recommendations are shown, and in which order."""

    categories: tuple[Category, ...] = (
        "process_improvements",
        "resource_needs",
        "risk_mitigation",
    )
    prioritization: tuple[Priority, ...] = ("critical", "high", "medium", "low")
    """Most urgent first."""

    _no_repeats = field_validator("categories", "prioritization")(_unique)


class ReportDocumentation(_Strict):
    test_results: TestResults = TestResults()
    recommendations: Recommendations = Recommendations()


class Reporting(_Strict):
    metrics: Metrics = Metrics()
    documentation: ReportDocumentation = ReportDocumentation()


class TestFramework(_Strict):
    test_scenarios: TestScenarios = TestScenarios()
    test_execution: TestExecution = TestExecution()
    reporting: Reporting = Reporting()


class TimestampAuthority(_Strict):
    """A third party that signs digests with its own time (RFC 3161)."""

    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    ca: Path
    """Its root certificates in PEM; relative to the plan's own folder."""


class Evidence(_Strict):
    """How long small things are kept that audits of several years need."""

    retention: Retention = "forever"
    """Of records and reports. Signed entries of the chain always stay."""
    timestamp_authority: TimestampAuthority | None = None
    """Stamps the chain's head after each drill, if given."""


class Dataset(_Strict):
    """Seeded synthetic data that looks like a data team's."""

    size: Annotated[ByteSize, Field(ge=1_000_000)]
    """Such as `64MB` or `10GB`; at least 1 MB."""
    seed: int = 1


class Faults(_Strict):
    """The damage that `simulate_corruption` does."""

    kinds: tuple[str, ...] | Literal["all"] = "all"
    count: PositiveInt | None = None
    """How many faults are injected, kinds taken in turn; if left out, each kind once."""


class Objectives(_Strict):
    """What recovery must achieve. A miss is a finding of its own; it does not undo a restore."""

    rto_seconds: PositiveFloat | None = None
    """Longest acceptable time from the detection of damage to verified, published data."""
    rpo_seconds: NonNegativeFloat | None = None
    """Longest acceptable stretch of lost writes."""


def _engine_names(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class Target(_Strict):
    """What must be recoverable: a real tree (`path`, copied, never touched) or test data."""

    path: Path | None = None
    dataset: Dataset | None = None
    engines: Annotated[tuple[str, ...], BeforeValidator(_engine_names), Field(min_length=1)] = (
        "tar",
    )
    increments: Annotated[int, Field(ge=3, le=100)] = 3
    """Incremental backups after the full one, with changes between them."""
    recovery: Literal["selective", "full"] = "selective"
    """What `trigger_recovery` restores: only what is damaged, or everything."""
    repeats: Annotated[int, Field(ge=1, le=9)] = 1
    """How often the newest generation is fetched and verified in one drill; the median counts."""
    faults: Faults = Faults()
    objectives: Objectives = Objectives()
    not_kept: tuple[Aspect, ...] = ()
    """Aspects that the target does not promise to keep; recorded in every result."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either `path` (a real tree to copy) or `dataset` (test data)")
        return self


MailAddress = Annotated[
    str, Field(pattern=r"^[!#-'*+\-./0-9=?A-Z^_`a-z{|}~]{1,64}@[A-Za-z0-9.\-]{1,255}$")
]
Secret = Annotated[str, Field(pattern=r"^env:[A-Za-z_][A-Za-z0-9_]*$")]
"""`env:NAME`: the value is in the environment, never in the plan."""
WebAddress = Annotated[str, Field(pattern=r"^(https?://\S+|env:[A-Za-z_][A-Za-z0-9_]*)$")]


def apprise_service(address: str) -> "apprise.NotifyBase":
    """The service that an apprise address stands for. ValueError, without the address, if none."""
    import apprise  # slow, and seldom needed

    asset = apprise.AppriseAsset(storage_mode=apprise.PersistentStoreMode.MEMORY)
    logger = logging.getLogger("apprise")
    was_off, logger.disabled = logger.disabled, True  # it would log an address it cannot read
    try:
        service = apprise.Apprise.instantiate(address, asset=asset)
    finally:
        logger.disabled = was_off
    if service is None:
        raise ValueError("not an address that apprise knows")
    if len(service) > service.retry + 1:
        raise ValueError("several recipients in one apprise address: give each its own channel")
    return service


def _known_to_apprise(address: str) -> str:
    if not address.startswith("env:"):
        apprise_service(address)
    return address


AppriseAddress = Annotated[str, AfterValidator(_known_to_apprise)]
_SMTP_PORTS = {"starttls": 587, "ssl": 465, "none": 25}


class Smtp(_Strict):
    """The server that takes the teams' e-mail."""

    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:\-]{1,255}$")]
    port: Annotated[int, Field(ge=1, le=65535)] = 0
    """If left out: 587 for starttls, 465 for ssl, 25 for none."""
    security: Literal["starttls", "ssl", "none"] = "starttls"
    sender: MailAddress
    username: str | None = None
    password: Secret | None = None

    @model_validator(mode="before")
    @classmethod
    def _usual_port(cls, data: object) -> object:
        if isinstance(data, dict) and "port" not in data:
            port = _SMTP_PORTS.get(str(data.get("security", "starttls")))
            return {**data, "port": port} if port else data
        return data

    @model_validator(mode="after")
    def _safe_login(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("give both `username` and `password` (as env:NAME), or neither")
        if self.username is not None and self.security == "none":
            raise ValueError(
                "a password is not sent in the clear: security must be starttls or ssl"
            )
        return self


class HealthCheck(_Strict):
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


class Service(_Strict):
    """One service of a stack: a kind that we know, or a command of yours."""

    kind: Literal["postgres", "redis", "application"] | None = None
    """`application` is a small HTTP server that reads and writes what it depends on."""
    settings: dict[str, str] = {}
    """Of postgres or redis, added to the defaults."""
    command: tuple[str, ...] = ()
    """Stays in the foreground; `{data}` is its directory on the volume, `{port}` its port."""
    user: str | None = None
    """Whom it runs as where drills run as root."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    health: HealthCheck | None = None
    depends_on: tuple[Name, ...] = ()
    may_lose_seconds: NonNegativeFloat = 0
    """Acknowledged writes that a power cut may cost: how long before the cut they may be."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.kind is None) == (not self.command):
            raise ValueError("give either `kind` (postgres, redis, application) or `command`")
        if self.command and (self.port is None or self.health is None):
            raise ValueError("a `command` needs its `port` and a `health` check")
        if self.settings and self.kind not in ("postgres", "redis"):
            raise ValueError("`settings` belong to the kinds postgres and redis")
        return self


class ServicesTarget(_Strict):
    """A stack of services that must be recoverable."""

    services: Annotated[dict[Name, Service], Field(min_length=1)]
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


class ReplicationTarget(_Strict):
    """A database on a primary and a standby, which takes over when the primary is cut off."""

    replication: Literal["synchronous", "asynchronous"]
    fencing: bool = True
    """Stop the primary before the standby is promoted."""
    failures: Annotated[tuple[NetworkFailure, ...], Field(min_length=1)] = ("drop",)
    """What happens to the primary's network; one drill for each."""
    failover_seconds: PositiveFloat = 10
    """From the failure to a standby that takes writes."""
    latency_seconds: PositiveFloat = 0.05
    """Within this, 95 % of the echoes must come back after the restoration."""
    may_lose_seconds: NonNegativeFloat = 0
    """Asynchronous only: the longest acceptable stretch of acknowledged writes that are lost."""
    objectives: Objectives = Objectives()

    @property
    def not_kept(self) -> tuple[str, ...]:
        return ()

    @model_validator(mode="after")
    def _synchronous_loses_nothing(self) -> Self:
        if self.replication == "synchronous" and self.may_lose_seconds:
            raise ValueError("may_lose_seconds belongs to asynchronous replication")
        return self

    _no_repeats = field_validator("failures")(_unique)


def _target_tag(value: object) -> str:
    keys = value if isinstance(value, dict) else vars(value)
    tags = {"services": SERVICES_TAG, "replication": REPLICATION_TAG}
    return next((tag for key, tag in tags.items() if key in keys), TREE_TAG)


TREE_TAG, SERVICES_TAG, REPLICATION_TAG = "file-tree", "service-stack", "replicated-database"
AnyTarget = Annotated[
    Annotated[Target, Tag(TREE_TAG)]
    | Annotated[ServicesTarget, Tag(SERVICES_TAG)]
    | Annotated[ReplicationTarget, Tag(REPLICATION_TAG)],
    Discriminator(_target_tag),
]


class Channel(_Strict):
    """One way to reach a team: exactly one key."""

    log: Literal[True] | None = None
    """The log of the process."""
    file: Path | None = None
    """A file of JSON lines, relative to `data_home`."""
    webhook: WebAddress | None = None
    """An http(s) address that takes a JSON body, or `env:NAME` for an address that is secret."""
    email: Annotated[tuple[MailAddress, ...], Field(min_length=1)] | None = None
    """Addresses, reached through the plan's `smtp`."""
    apprise: AppriseAddress | None = None
    """An address of a service that apprise knows, or `env:NAME`; one recipient each."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(ways) != 1:
            raise ValueError(f"a channel has exactly one of: {', '.join(type(self).model_fields)}")
        return self


@dataclass(frozen=True)
class DrillSpec:
    """One drill of the plan: a scenario applied to one target with one engine."""

    name: str
    group: str
    scenario: Scenario
    automation: Automation
    target_name: str
    target: Target | ServicesTarget | ReplicationTarget
    engine: str
    """The backup tool; for a service stack, the way in which it recovers; for a replicated
    database, what happens to its network."""
    plan: "Plan"

    @property
    def tree(self) -> Target:
        """The target of a drill on a file tree."""
        assert isinstance(self.target, Target)
        return self.target

    @property
    def stack(self) -> ServicesTarget:
        """The target of a drill on services."""
        assert isinstance(self.target, ServicesTarget)
        return self.target

    @property
    def pair(self) -> ReplicationTarget:
        """The target of a drill on a replicated database."""
        assert isinstance(self.target, ReplicationTarget)
        return self.target

    @property
    def controls(self) -> ExecutionControls:
        return self.plan.test_framework.test_execution.execution_controls

    @property
    def manual_verification(self) -> ManualVerification:
        return self.plan.test_framework.test_execution.validation.manual_verification


class Plan(_Strict):
    """The whole configuration of a project's drills."""

    data_home: Path = Path("data")
    """The folder for everything that drills write; relative to the plan's own folder."""
    targets: dict[Name, AnyTarget]
    teams: dict[Name, Annotated[tuple[Channel, ...], Field(min_length=1)]] = {}
    smtp: Smtp | None = None
    """Needed by channels with `email`."""
    evidence: Evidence = Evidence()
    test_framework: TestFramework = TestFramework()
    monitoring: Monitoring | None = None

    _file_name: str = PrivateAttr("")

    @property
    def identity(self) -> dict[str, str]:
        """`name` of the plan's file, and `sha256` of what it says (`data_home` left out)."""
        content = self.model_dump(mode="json", exclude={"data_home"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return {"name": self._file_name, "sha256": hashlib.sha256(text.encode()).hexdigest()}

    @model_validator(mode="after")
    def _teams_exist(self) -> Self:
        notifications = self.test_framework.test_execution.preparation.notifications
        distribution = self.test_framework.reporting.documentation.test_results.distribution
        named = {*notifications.start, *notifications.completion, *distribution}
        for _, group in self.groups():
            named |= set(group.automation.notification)
        if self.monitoring:
            named |= set(self.monitoring.notification)
        unknown = sorted(named - set(self.teams))
        if unknown:
            raise ValueError(
                f"notifications name {', '.join(unknown)}, which `teams` does not define; "
                f"defined: {', '.join(sorted(self.teams)) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _mail_has_a_server(self) -> Self:
        mailed = [name for name, channels in self.teams.items() if any(c.email for c in channels)]
        if mailed and self.smtp is None:
            raise ValueError(
                f"`teams` reach {', '.join(mailed)} by e-mail: `smtp` must name a server "
                "(host, sender)"
            )
        return self

    @model_validator(mode="after")
    def _records_outlive_the_bulk(self) -> Self:
        bulk = self.test_framework.reporting.documentation.test_results.retention
        if retention_days(self.evidence.retention) < retention_days(bulk):
            raise ValueError(
                f"evidence.retention ({self.evidence.retention}) is shorter than "
                f"reporting.documentation.test_results.retention ({bulk}): records stay longer "
                "than the tables that they explain"
            )
        return self

    @model_validator(mode="after")
    def _drill_names_differ(self) -> Self:
        _unique(tuple(drill.name for drill in self.drills()))
        return self

    def groups(self) -> Iterator[tuple[str, ScenarioGroup]]:
        scenarios = self.test_framework.test_scenarios
        for name in type(scenarios).model_fields:
            yield name, getattr(scenarios, name)

    def drills(self) -> list[DrillSpec]:
        """Every scenario × fitting target × engine, in the plan's order."""
        return [
            DrillSpec(
                name=drill_name(scenario.name, target_name, engine),
                group=group_name,
                scenario=scenario,
                automation=group.automation,
                target_name=target_name,
                target=target,
                engine=engine,
                plan=self,
            )
            for group_name, group in self.groups()
            for scenario in group.scenarios
            for target_name, target in self.targets.items()
            for engine in _engines(scenario, target)
        ]


def _engines(
    scenario: Scenario, target: Target | ServicesTarget | ReplicationTarget
) -> tuple[str, ...]:
    """With what a scenario recovers a target; nothing if it is not for such targets."""
    if isinstance(target, Target):
        return target.engines if isinstance(scenario, DataScenario) else ()
    if isinstance(target, ReplicationTarget):
        return target.failures if isinstance(scenario, NetworkScenario) else ()
    return (SAME_VOLUME,) if scenario.name == "complete_system_failure" else ()


SAME_VOLUME = "same_volume"


_BUILT_IN = ("test_dataset", "test_services", "test_replication")


def drill_name(scenario: str, target: str, engine: str) -> str:
    """`corruption_recovery_tar` on a built-in target, else with the target's name in the middle."""
    parts = (scenario, engine) if target in _BUILT_IN else (scenario, target, engine)
    return "_".join(parts)
