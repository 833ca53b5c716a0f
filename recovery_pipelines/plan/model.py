"""The plan as a whole. Every key of its schema has an effect; what does not work yet is no key."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PrivateAttr, model_validator

from recovery_pipelines.plan.any_target import AnyTarget, TaggedTarget
from recovery_pipelines.plan.base import Name, Strict, unique
from recovery_pipelines.plan.channels import Channel, Smtp
from recovery_pipelines.plan.databases import DatabaseTarget
from recovery_pipelines.plan.execution import ExecutionControls, ManualVerification, TestExecution
from recovery_pipelines.plan.matrix import DetectionMatrix
from recovery_pipelines.plan.monitoring import Monitoring
from recovery_pipelines.plan.reporting import Reporting, Retention, retention_days
from recovery_pipelines.plan.repositories import RepositoryTarget
from recovery_pipelines.plan.scenarios import (
    AuditScenario,
    Automation,
    DataScenario,
    NetworkScenario,
    Scenario,
    ScenarioGroup,
    TestScenarios,
)
from recovery_pipelines.plan.targets import ReplicationTarget, ServicesTarget, Target


class TestFramework(Strict):
    test_scenarios: TestScenarios = TestScenarios()
    test_execution: TestExecution = TestExecution()
    reporting: Reporting = Reporting()


class TimestampAuthority(Strict):
    """A third party that signs digests with its own time (RFC 3161)."""

    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    """An RFC 3161 authority that stamps the chain's head after each drill."""
    ca: Path
    """Its root certificates in PEM, relative to the plan."""


class Evidence(Strict):
    """How long small things are kept that audits of several years need."""

    retention: Retention = "forever"
    """How long records and reports are kept, `2557d` or `forever`. Signed entries always stay."""
    timestamp_authority: TimestampAuthority | None = None
    """Stamps the chain's head after each drill, if given."""


@dataclass(frozen=True)
class Shard:
    """One part of a drill that is carried out in parts."""

    number: int
    """From 1."""
    count: int

    @property
    def name(self) -> str:
        return f"{self.number}of{self.count}"

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"


@dataclass(frozen=True)
class DrillSpec:
    """One drill of the plan: a scenario applied to one target with one engine."""

    name: str
    group: str
    scenario: Scenario
    automation: Automation
    target_name: str
    target: AnyTarget
    engine: str
    """The backup tool, or that of an existing repository; for a service stack, the way in which it
    recovers or what is done to its services; for a replicated database, what happens to its
    network."""
    plan: "Plan"
    shard: Shard | None = None
    """If this is only one part of the drill."""

    @property
    def shards(self) -> "list[DrillSpec]":
        """The parts that this drill merges; none if it is carried out in one piece."""
        count = self.target.shards if isinstance(self.target, RepositoryTarget) else None
        if count is None or self.shard is not None:
            return []
        parts = [Shard(number, count) for number in range(1, count + 1)]
        return [replace(self, name=f"{self.name}_shard_{part.name}", shard=part) for part in parts]

    @property
    def tree(self) -> Target:
        """The target of a drill on a file tree."""
        assert isinstance(self.target, Target)
        return self.target

    @property
    def database(self) -> DatabaseTarget:
        """The target of a drill on a database."""
        assert isinstance(self.target, DatabaseTarget)
        return self.target

    @property
    def database_kind(self) -> str:
        """What kind of database the drill runs."""
        return self.database.kind_for(self.engine)

    @property
    def increments(self) -> int:
        """How many backups follow the first one. Only of drills in stages."""
        assert isinstance(self.target, Target | DatabaseTarget)
        return self.target.increments

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
    def audited(self) -> RepositoryTarget:
        """The target of an audit."""
        assert isinstance(self.target, RepositoryTarget)
        return self.target

    @property
    def controls(self) -> ExecutionControls:
        return self.plan.test_framework.test_execution.execution_controls

    @property
    def manual_verification(self) -> ManualVerification:
        if self.shard is not None:
            return ManualVerification()  # people verify the whole
        return self.plan.test_framework.test_execution.validation.manual_verification


class Plan(Strict):
    """The whole configuration of a project's drills."""

    data_home: Path = Path("data")
    """The folder for everything that drills write, relative to the plan."""
    host: Name | None = None
    """Where several hosts share one Dagster, each with a plan of its own: this one's name. Drills
    and assets carry it, so that those of two hosts are never taken for one another."""
    targets: dict[Name, TaggedTarget]
    """What must be recoverable."""
    teams: dict[Name, Annotated[tuple[Channel, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """How to reach a team: a list of channels."""
    smtp: Smtp | None = None
    """Needed by channels with `email`."""
    evidence: Evidence = Evidence()
    test_framework: TestFramework = TestFramework()
    detection_matrix: DetectionMatrix | None = None
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
        unique(tuple(drill.name for drill in self.drills()))
        return self

    def groups(self) -> Iterator[tuple[str, ScenarioGroup]]:
        scenarios = self.test_framework.test_scenarios
        for name in type(scenarios).model_fields:
            yield name, getattr(scenarios, name)

    def drills(self) -> list[DrillSpec]:
        """Every scenario × fitting target × engine, in the plan's order."""
        return [
            DrillSpec(
                name=drill_name(self.host, scenario.name, target_name, engine),
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


def _engines(scenario: Scenario, target: AnyTarget) -> tuple[str, ...]:
    """With what a scenario recovers a target; nothing if it is not for such targets."""
    if isinstance(target, Target | DatabaseTarget):
        return target.engines if isinstance(scenario, DataScenario) else ()
    if isinstance(target, RepositoryTarget):
        return (target.repository.tool,) if isinstance(scenario, AuditScenario) else ()
    if isinstance(target, ReplicationTarget):
        return target.failures if isinstance(scenario, NetworkScenario) else ()
    ways = {"complete_system_failure": target.recoveries, "partial_failure": target.faults}
    return ways.get(scenario.name, ())


VOLUME_DESTROYED = "volume_destroyed"
_BUILT_IN = ("test_dataset", "test_services", "test_replication")


def drill_name(host: str | None, scenario: str, target: str, engine: str) -> str:
    """`corruption_recovery_tar` on a built-in target, else with the target's name in the middle.

    Begins with the plan's `host`, if it has one.
    """
    parts = (host, scenario, None if target in _BUILT_IN else target, engine)
    return "_".join(part for part in parts if part)
