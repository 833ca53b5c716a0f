"""What readers of PostgreSQL backups have in common."""

from abc import abstractmethod
from pathlib import Path

from recovery_pipelines.audits.reader import Backup, Reader
from recovery_pipelines.audits.scratch import ScratchServer


class DatabaseReader(Reader):
    """A repository of PostgreSQL backups."""

    database = ""
    """Which one a restored cluster is asked about; empty: the only one that it has."""

    @property
    @abstractmethod
    def server_user(self) -> str:
        """Whom a server runs as that restores from it, where we are root."""

    @property
    @abstractmethod
    def read_only(self) -> dict[str, Path]:
        """Folders that the server's machine must see."""

    @abstractmethod
    def programs(self, backup: Backup) -> Path:
        """The folder of PostgreSQL's programs for a backup. MissingProgram if there is none."""

    @abstractmethod
    def needed_bytes(self, backup: Backup) -> int:
        """What the restored data take at least."""

    @abstractmethod
    def restore(self, backup: Backup, server: ScratchServer) -> None:
        """Restore into the server, which runs afterwards."""
