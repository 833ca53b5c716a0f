"""The plan's `test_scenarios`: what is done, in which steps, and what must hold afterwards."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from recovery_pipelines.plan.base import Name, Strict, unique

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
    "partial_failure": (
        "identify_critical_services",
        "simulate_service_crash",
        "verify_automated_recovery",
        "validate_service_state",
    ),
    "network_isolation": (
        "simulate_network_failure",
        "activate_failover",
        "verify_connectivity",
        "restore_primary_network",
    ),
    "repository_audit": ("audit_restore", "audit_verification", "audit_metrics"),
}
"""The steps of each supported scenario; the seed's, but for the audit of a team's own backups."""
DataIntegrityCriterion = Literal["all_files_recovered", "checksums_match"]
StructureCriterion = Literal["directory_structure_intact", "permissions_correct"]
AccessibilityCriterion = Literal["files_accessible", "applications_functional"]
SystemStateCriterion = Literal["all_services_running", "data_accessible"]
ServiceDataCriterion = Literal["checksums_match", "no_corruption"]
PerformanceCriterion = Literal["response_times_normal", "no_degradation"]
ConnectivityCriterion = Literal["all_services_accessible", "no_packet_loss"]
NetworkPerformanceCriterion = Literal["latency_within_limits", "bandwidth_normal"]
RecoverabilityCriterion = Literal["backup_restores", "data_match"]
ConsistencyCriterion = Literal["no_split_brain", "no_acknowledged_write_lost"]


class Criteria(Strict):
    """The asset checks of a scenario, by the seed's groups."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for group in type(self).model_fields for name in getattr(self, group))

    @field_validator("*")
    @classmethod
    def _no_repeats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return unique(names)


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


class AuditCriteria(Criteria):
    """The criteria of the audits of existing repositories."""

    recoverability: tuple[RecoverabilityCriterion, ...] = ("backup_restores", "data_match")


class Scenario(Strict):
    """One scenario: what is done, in the seed's steps, and what must hold afterwards."""

    name: str
    """Each at most once."""
    description: str = ""
    """Shown in Dagster."""
    steps: tuple[str, ...] = ()
    """In their order; all if left out. What is left out is not done, and the drill is UNVERIFIED
    at best."""
    validation_criteria: Criteria = Criteria()
    """What must hold afterwards; each is a check."""

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
    name: Literal["complete_system_failure", "partial_failure"]
    validation_criteria: SystemCriteria = SystemCriteria()


class NetworkScenario(Scenario):
    name: Literal["network_isolation"]
    validation_criteria: NetworkCriteria = NetworkCriteria()


class AuditScenario(Scenario):
    name: Literal["repository_audit"]
    validation_criteria: AuditCriteria = AuditCriteria()


Cron = Annotated[str, Field(pattern=r"^(\S+\s+){4}\S+$")]


class Automation(Strict):
    """When a group's drills start by themselves, who hears of failures, what is kept."""

    schedule: Literal["monthly", "manual"] | Cron = "monthly"
    """`monthly` (03:00 UTC on the 1st), `manual`, or five cron fields. The schedule is switched on
    in Dagster."""
    notification: tuple[Name, ...] = ()
    """Teams told of a drill that failed for good."""
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


class ScenarioGroup(Strict):
    scenarios: tuple[Scenario, ...] = ()
    automation: Automation = Automation()

    @field_validator("scenarios")
    @classmethod
    def _no_repeats(cls, scenarios: tuple[Scenario, ...]) -> tuple[Scenario, ...]:
        unique(tuple(scenario.name for scenario in scenarios))
        return scenarios


class DataRecovery(ScenarioGroup):
    """What is done to file trees."""

    scenarios: tuple[DataScenario, ...] = (
        DataScenario(name="corruption_recovery"),
        DataScenario(name="incremental_recovery"),
    )


class SystemFailure(ScenarioGroup):
    """What is done to service stacks."""

    scenarios: tuple[SystemScenario, ...] = (
        SystemScenario(name="complete_system_failure"),
        SystemScenario(name="partial_failure"),
    )


class NetworkRecovery(ScenarioGroup):
    """What is done to replicated databases."""

    scenarios: tuple[NetworkScenario, ...] = (NetworkScenario(name="network_isolation"),)


class BackupAudit(ScenarioGroup):
    """What is done to the repositories that others write."""

    scenarios: tuple[AuditScenario, ...] = (AuditScenario(name="repository_audit"),)


class TestScenarios(Strict):
    data_recovery: DataRecovery = DataRecovery()
    system_failure: SystemFailure = SystemFailure()
    network_recovery: NetworkRecovery = NetworkRecovery()
    backup_audit: BackupAudit = BackupAudit()
