"""What audits need of a repository, and what readers over a command-line tool share."""

import fnmatch
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recovery_pipelines.errors import EngineError
from recovery_pipelines.plan.repositories import Repository
from recovery_pipelines.secrecy import masked
from recovery_pipelines.tools import Finished, find_tool, run_tool

_PATTERNS_AT_ONCE = 500
_PATTERN_BYTES = 100_000
"""Each pattern is an argument, and restic compares each entry with each."""
_RETRYING = b"returned error, retrying after"
"""restic would go on for 15 minutes."""
_ABOUT_US = re.compile(
    "no space left|wrote only|permission denied|read-only file system|quota exceeded|"
    "could not extend file|"
    'role ".*" does not exist|extension .* is not available|could not open extension control|'
    "unsupported version",
    re.IGNORECASE,
)
"""What tools say where not the backup is to blame."""

Node = tuple[str, bool, int]
"""Path, whether it is a regular file, size in bytes."""


class Unrestorable(EngineError):
    """The tool reads the repository, but cannot bring this backup back: a finding."""


@dataclass(frozen=True)
class Backup:
    """One backup, as its repository lists it."""

    backup_id: str
    name: str
    created_at: datetime
    """When it began, UTC."""
    folders: tuple[str, ...] = ()
    """What was backed up, if the tool says so."""


@dataclass(frozen=True)
class Contents:
    """What a backup holds by its tool's own record."""

    root: str
    """Where the audited folder lies in it; empty if it is all of it."""
    sizes_bytes: Mapping[str, int]
    """Of each regular file below the root, by its path relative to that."""
    entries: int


class Reader(ABC):
    """A repository. Whatever it cannot do is an EngineError, or Unrestorable for one backup."""

    program: str
    package: str | None = None
    meanings: Mapping[int, str] = {}

    def __init__(
        self,
        repository: Repository,
        work: Path,
        timeout_seconds: Callable[[], float],
        environment: Mapping[str, str],
        secret: bytes,
    ) -> None:
        self.repository = repository
        self.location = repository.location
        self._work = work
        self._timeout_seconds = timeout_seconds
        self._environment = environment
        self._secret = secret
        given = [environment[name] for name in repository.environment]
        self._secrets = [os.fsdecode(secret), *given]

    @property
    def is_local(self) -> bool:
        return Path(self.location).is_absolute()

    def version(self) -> str:
        argument = "version" if self.program == "restic" else "--version"
        return self._run("asking for the version", argument).stdout.decode().splitlines()[0]

    @abstractmethod
    def backups(self) -> list[Backup]:
        """Oldest first."""

    def lock(self) -> str:
        """Who else holds the repository, by its own lock; empty if nobody does."""
        return ""

    def _run(
        self,
        doing: str,
        *arguments: str | bytes | Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        into: Path | None = None,
        error: type[EngineError] = EngineError,
    ) -> Finished:
        """Run the tool; it can write nowhere but into its own files and the folder `into`."""
        finished = run_tool(
            [find_tool(self.program, self.package), *arguments],
            cwd=cwd,
            env={**self._environment, **(environment or {})},
            stdin=self._secret,
            timeout_seconds=self._timeout_seconds(),
            give_up_on=_RETRYING,
            writable=[self._work, *([into] if into else [])],
        )
        self.require_success(finished, doing, error)
        return finished

    def require_success(
        self, finished: Finished, doing: str, error: type[EngineError] = EngineError
    ) -> None:
        """Raise what an exit code but 0 means: `error`, unless the reason lies on our side."""
        code = finished.returncode
        if code == 0:
            return
        complaint = " ".join(masked(finished.complaint, self._secrets).split())
        complaint = complaint or "it said nothing"
        meaning = self.meanings.get(code, "failed")
        if not self.is_local or _ABOUT_US.search(complaint):
            error = EngineError
        raise error(f"{doing}: {self.program} exit code {code} ({meaning}): {complaint}")

    def _wanted(self, name: str) -> bool:
        return fnmatch.fnmatchcase(name, self.repository.match)


class TreeReader(Reader):
    """A repository of file trees."""

    @abstractmethod
    def contents(self, backup: Backup) -> Contents:
        """By the tool's own record."""

    @abstractmethod
    def restore(
        self, backup: Backup, contents: Contents, staging: Path, paths: Collection[bytes] | None
    ) -> Path:
        """Restore below the empty `staging`, all or at least the files `paths`.

        Returns the folder that holds them under their paths.
        """


def contents_below(root: str, nodes: Sequence[Node]) -> Contents:
    below = f"{root}/" if root else "/" if any(path.startswith("/") for path, _, _ in nodes) else ""
    inside = [node for node in nodes if node[0].startswith(below)]
    sizes = {path.removeprefix(below): size for path, is_file, size in inside if is_file}
    return Contents(root, sizes, len(inside))


def in_batches(paths: Collection[bytes], below: bytes) -> list[list[bytes]]:
    """As many at once as one command can take."""
    batches: list[list[bytes]] = [[]]
    used = 0
    for path in (below + path for path in paths):
        if len(batches[-1]) == _PATTERNS_AT_ONCE or used + len(path) > _PATTERN_BYTES:
            batches.append([])
            used = 0
        batches[-1].append(path)
        used += len(path)
    return batches


def moment(text: str) -> datetime:
    """A time in ISO 8601; without a zone it is UTC. Raises ValueError."""
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=found.tzinfo or UTC)


def utc(text: str) -> datetime:
    return moment(text).astimezone(UTC)


def node(said: Mapping[str, Any], file: str) -> Node:
    """What a line of JSON tells about one entry; `file` is how the tool calls a regular file."""
    return str(said["path"]), said["type"] == file, int(said.get("size") or 0)
