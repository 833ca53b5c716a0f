"""One backup of a team's repository, restored into the sandbox and verified there."""

from abc import ABC, abstractmethod
from datetime import UTC, datetime

from recovery_pipelines.audits.reader import Backup, Reader, Unrestorable
from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.errors import EngineError
from recovery_pipelines.verdict import CheckResult, Verdict

HEADROOM = 1.2
SHOWN = 5


class Trial(ABC):
    """Restore, then verify; what is learnt stays here."""

    def __init__(self, run: DrillRun, reader: Reader, backup: Backup, seed: bytes) -> None:
        self.run = run
        self.target = run.spec.audited
        self.reader = reader
        self.backup = backup
        self.seed = seed
        self.refused = ""
        """Why the backup could not be restored."""
        self.wrong: dict[bytes, str] = {}
        """What is wrong with it, by what it is wrong with."""

    def restore(self) -> CheckResult:
        """Restore what is to be verified.

        What the tool cannot do is a finding, unless somebody changes the repository meanwhile.
        """
        expected = f"{self.reader.version()} restores {self.backup.name}"
        began = datetime.now(UTC)
        try:
            self._restore()
        except EngineError as error:
            self.close()  # the room is needed for the result
            if not isinstance(error, Unrestorable):
                raise
            self._require_undisturbed(error)
            self.refused = str(error)
            return CheckResult("backup_restores", Verdict.FAIL, expected, self.refused)
        seconds = (datetime.now(UTC) - began).total_seconds()
        return CheckResult("backup_restores", Verdict.PASS, expected, f"in {seconds:.1f} s")

    @property
    def holds_marks(self) -> bool:
        """Whether the marks that the plan names lie in what is restored."""
        return True

    @abstractmethod
    def _restore(self) -> None:
        """Raises Unrestorable if the tool cannot."""

    @abstractmethod
    def verify(self) -> CheckResult:
        """`data_match`; more checks go to the run. Only after a restore that was not refused."""

    @abstractmethod
    def newest_mark(self) -> datetime:
        """The newest time that a job of the team left in the data. RecoveryError without one."""

    @abstractmethod
    def measures(self) -> dict[str, object]:
        """Columns for the table of the audit, and how much was compared for the record."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what the restored data need."""

    def _require_undisturbed(self, found: EngineError) -> None:
        held = self.reader.lock()
        if held:
            raise EngineError(f"{held} holds a lock on the repository; repeat without. {found}")
        if self.backup not in self.reader.backups():
            raise EngineError(f"{self.backup.name} was changed or removed meanwhile. {found}")
