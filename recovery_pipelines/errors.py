"""Errors for people: each message says what was wrong, where, and what to do."""


class RecoveryError(Exception):
    """A drill or command could not be carried out; the text is meant for the user."""


class PlanError(RecoveryError):
    """The plan is wrong; the text names the key, the line and the allowed values."""


class SandboxError(RecoveryError):
    """An operation would have left the sandbox, or the sandbox is not ours."""


class EngineError(RecoveryError):
    """A backup tool reported failure, or its result breaks the engine's contract."""


class MissingCapability(RecoveryError):
    """This machine lacks a program, a right, or a feature of the kernel that a drill needs.

    A drill that raises it at its start is UNVERIFIED; any other error makes it ERROR.
    """


class MissingProgram(EngineError, MissingCapability):
    """A program is not installed."""


class PreparationError(RecoveryError):
    """A requirement of the plan's `preparation` is not met; nothing was damaged."""


class DrillTimeout(RecoveryError):
    """The drill ran into `execution_controls.timeout`."""


class MissingRecord(RecoveryError):
    """A drill left no record: it did not start, or it was killed."""


class EvidenceError(RecoveryError):
    """Evidence is broken, or something cannot become evidence."""


class NetworkError(RecoveryError):
    """A drill's network, or the database on it, did not do what was asked."""


class ServiceError(RecoveryError):
    """A service or the machine that holds it did not do what was asked."""


class DatabaseError(RecoveryError):
    """A database cannot be opened, started or read whole."""
