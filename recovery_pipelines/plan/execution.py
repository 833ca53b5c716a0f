"""The plan's `test_execution`: before, around and after a drill."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from recovery_pipelines.plan.base import Name, Strict, unique


class PreparationNotifications(Strict):
    start: tuple[Name, ...] = ()
    completion: tuple[Name, ...] = ()


class Preparation(Strict):
    """What must hold before a drill damages anything."""

    requirements: tuple[
        Literal["backup_verification", "system_snapshot", "resource_availability"], ...
    ] = ("backup_verification", "system_snapshot", "resource_availability")
    notifications: PreparationNotifications = PreparationNotifications()


class ExecutionControls(Strict):
    parallel_tests: bool = False
    timeout: PositiveInt = 3600
    """Seconds that one drill may take."""
    retry_attempts: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a drill that ended in ERROR is run again; a finding (FAIL) never is."""
    failure_handling: Literal["stop_and_notify", "continue_and_notify"] = "stop_and_notify"


class AutomatedChecks(Strict):
    data_integrity: tuple[Literal["checksums", "structure", "permissions"], ...] = (
        "checksums",
        "structure",
        "permissions",
    )


ManualCheck = Literal["critical_functionality", "user_access"]
SignOffText = Literal["test_results", "issues_found", "resolutions"]


class ManualVerification(Strict):
    """What a named person must verify, and write down, before a drill can PASS."""

    required_checks: tuple[ManualCheck, ...] = ()
    documentation: tuple[SignOffText, ...] = ("test_results", "issues_found", "resolutions")

    _no_repeats = field_validator("required_checks", "documentation")(unique)


class Validation(Strict):
    automated_checks: AutomatedChecks = AutomatedChecks()
    manual_verification: ManualVerification = ManualVerification()


class TestExecution(Strict):
    preparation: Preparation = Preparation()
    execution_controls: ExecutionControls = ExecutionControls()
    validation: Validation = Validation()
