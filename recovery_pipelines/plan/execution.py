"""The plan's `test_execution`: before, around and after a drill."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from recovery_pipelines.plan.base import Name, Strict, unique


class PreparationNotifications(Strict):
    start: tuple[Name, ...] = ()
    """Teams told that a drill starts."""
    completion: tuple[Name, ...] = ()
    """Teams told how it ended."""


class Preparation(Strict):
    """What must hold before a drill damages anything."""

    requirements: tuple[
        Literal["backup_verification", "system_snapshot", "resource_availability"], ...
    ] = ("backup_verification", "system_snapshot", "resource_availability")
    """`backup_verification`: the repository is read back whole before any damage;
    `system_snapshot`: kept with the result; `resource_availability`: a drill without the room that
    it needs is refused with the numbers."""
    notifications: PreparationNotifications = PreparationNotifications()


class ExecutionControls(Strict):
    parallel_tests: bool = False
    """`false`: one drill at a time."""
    timeout: PositiveInt = 3600
    """Seconds that one drill may take."""
    retry_attempts: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a drill that ended in ERROR is run again; a finding (FAIL) never is."""
    failure_handling: Literal["stop_and_notify", "continue_and_notify"] = "stop_and_notify"
    """`stop_and_notify` cancels the month's other drills, `continue_and_notify` does not."""


class AutomatedChecks(Strict):
    data_integrity: tuple[Literal["checksums", "structure", "permissions"], ...] = (
        "checksums",
        "structure",
        "permissions",
    )
    """Aspects that are compared; the check of an aspect that is off is UNVERIFIED."""


ManualCheck = Literal["critical_functionality", "user_access"]
SignOffText = Literal["test_results", "issues_found", "resolutions"]


class ManualVerification(Strict):
    """What a named person must verify, and write down, before a drill can PASS."""

    required_checks: tuple[ManualCheck, ...] = ()
    """A drill is UNVERIFIED until a named person has signed each."""
    documentation: tuple[SignOffText, ...] = ("test_results", "issues_found", "resolutions")
    """What each sign-off must write down."""

    _no_repeats = field_validator("required_checks", "documentation")(unique)


class Validation(Strict):
    automated_checks: AutomatedChecks = AutomatedChecks()
    manual_verification: ManualVerification = ManualVerification()


class TestExecution(Strict):
    preparation: Preparation = Preparation()
    execution_controls: ExecutionControls = ExecutionControls()
    validation: Validation = Validation()
