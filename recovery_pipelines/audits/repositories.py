"""Repositories that others write, read through their own tools without a lock or a trace."""

import fnmatch
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

from recovery_pipelines.engines.base import explained
from recovery_pipelines.errors import EngineError
from recovery_pipelines.plan.repositories import Repository
from recovery_pipelines.tools import Finished, find_tool, run_tool

_PATTERNS_AT_ONCE = 500
_PATTERN_BYTES = 100_000
"""Each pattern is an argument, and restic compares each entry with each."""
_RETRYING = b"returned error, retrying after"
"""restic would go on for 15 minutes."""
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


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


class Reader(Protocol):
    """A repository. Whatever it cannot do is an EngineError, or Unrestorable for one backup."""

    def backups(self) -> list[Backup]:
        """Oldest first."""
        ...

    def contents(self, backup: Backup) -> Contents: ...

    def restore(
        self, backup: Backup, contents: Contents, staging: Path, paths: Collection[bytes] | None
    ) -> Path:
        """Restore below the empty `staging`, all or at least the files `paths`.

        Returns the folder that holds them under their paths.
        """
        ...

    def version(self) -> str: ...


def open_repository(
    repository: Repository,
    work: Path,
    timeout_seconds: Callable[[], float],
    environment: Mapping[str, str],
) -> Reader:
    """`work` is a private directory for the tool's own files. EngineError for a missing secret."""
    readers: Mapping[str, type[_ToolReader]] = {
        "restic": _Restic,
        "borg": _Borg,
        "directory": _Directory,
    }
    found = {name: os.environ.get(name, "") for name in repository.environment}
    if unset := [name for name, value in found.items() if not value]:
        raise EngineError(f"the environment has no {', '.join(unset)}, which the plan names")
    secret = b""
    if repository.password:
        variable = repository.password.removeprefix("env:")
        secret = os.environb.get(variable.encode(), b"")
        if not secret:
            raise EngineError(f"the environment has no {variable}, the password of the repository")
    reader = readers[repository.tool](
        repository, work, timeout_seconds, {"TMPDIR": str(work)} | dict(environment) | found, secret
    )
    if reader.is_local and not Path(reader.location).is_dir():
        raise EngineError(f"there is no folder {reader.location}")
    return reader


class _ToolReader:
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

    @property
    def is_local(self) -> bool:
        return Path(self.location).is_absolute()

    def version(self) -> str:
        argument = "version" if self.program == "restic" else "--version"
        return self._run("asking for the version", argument).stdout.decode().splitlines()[0]

    def backups(self) -> list[Backup]:
        raise NotImplementedError

    def contents(self, backup: Backup) -> Contents:
        raise NotImplementedError

    def restore(
        self, backup: Backup, contents: Contents, staging: Path, paths: Collection[bytes] | None
    ) -> Path:
        raise NotImplementedError

    def _run(
        self,
        doing: str,
        *arguments: str | bytes | Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        error: type[EngineError] = EngineError,
    ) -> Finished:
        finished = run_tool(
            [find_tool(self.program, self.package), *arguments],
            cwd=cwd,
            env={**self._environment, **(environment or {})},
            stdin=self._secret,
            timeout_seconds=self._timeout_seconds(),
            give_up_on=_RETRYING,
        )
        code = finished.returncode
        if code == 0:
            return finished
        complaint = " ".join(finished.complaint.split()) or "it said nothing"
        meaning = self.meanings.get(code, "failed")
        about_us = ("no space left", "permission denied", "read-only file system", "quota exceeded")
        if not self.is_local or any(words in complaint.lower() for words in about_us):
            error = EngineError
        raise error(f"{doing}: {self.program} exit code {code} ({meaning}): {complaint}")

    def _wanted(self, name: str) -> bool:
        return fnmatch.fnmatchcase(name, self.repository.match)


class _Restic(_ToolReader):
    program = "restic"
    meanings: Mapping[int, str] = {
        1: "error",
        10: "there is no repository",
        11: "the repository is locked",
        12: "wrong password",
    }

    def backups(self) -> list[Backup]:
        path = self.repository.path
        listed = json.loads(self._restic("listing the backups", "snapshots", "--json").stdout)
        found = [
            Backup(each["id"], each["short_id"], _utc(each["time"]), tuple(each["paths"]))
            for each in listed
            if self._wanted(each.get("hostname", "")) and path in (None, *each["paths"])
        ]
        return sorted(found, key=lambda backup: backup.created_at)

    def contents(self, backup: Backup) -> Contents:
        output = self._restic(
            f"listing {backup.name}", "ls", "--json", backup.backup_id, error=Unrestorable
        ).stdout
        nodes = [node for line in output.splitlines() if (node := json.loads(line)).get("path")]
        folder = self.repository.path or _only(backup)
        folders = {node["path"] for node in nodes if node["type"] == "dir"}
        name = "/" + PurePosixPath(folder).name
        root = next((place for place in (folder, name) if place in folders), "")
        return _contents(
            root, [(node["path"], node["type"] == "file", node.get("size", 0)) for node in nodes]
        )

    def restore(
        self, backup: Backup, contents: Contents, staging: Path, paths: Collection[bytes] | None
    ) -> Path:
        root = os.fsencode(contents.root)
        batches = [[root]] if contents.root else [[]]
        if paths is not None:
            batches = _batches(paths, root + b"/")
        for batch in batches:
            chosen: list[str | bytes | Path] = []
            for path in batch:
                chosen += ["--include", _escaped(path)]
            self._restic(
                f"restore of {backup.name}",
                *("restore", backup.backup_id, "--target", staging),
                *chosen,
                error=Unrestorable,
            )
        return staging / contents.root.lstrip("/")

    def _restic(
        self, doing: str, *arguments: str | bytes | Path, error: type[EngineError] = EngineError
    ) -> Finished:
        return self._run(
            doing,
            *("--repo", self.location, "--password-file", "/dev/stdin"),
            *("--no-cache", "--no-lock", "--quiet"),
            *arguments,
            error=error,
        )


class _Borg(_ToolReader):
    program = "borg"
    package = "borgbackup"
    meanings: Mapping[int, str] = {1: "warning: not all was read or restored", 2: "error"}

    def backups(self) -> list[Backup]:
        output = self._borg("listing the backups", "list", "--json", self._place).stdout
        found = [
            Backup(each["id"], each["name"], _utc(each["start"]))
            for each in json.loads(output)["archives"]
            if self._wanted(each["name"])
        ]
        return sorted(found, key=lambda backup: backup.created_at)

    def contents(self, backup: Backup) -> Contents:
        output = self._borg(
            f"listing {backup.name}",
            *("list", "--json-lines", self._archive(backup)),
            error=Unrestorable,
        ).stdout
        nodes = [json.loads(line) for line in output.splitlines()]
        root = (self.repository.path or "").strip("/")
        if root and not any(node["path"] == root for node in nodes):
            raise EngineError(f"{backup.name} holds no folder {root}; mend `path` in the plan")
        return _contents(root, [(n["path"], n["type"] == "-", n.get("size", 0)) for n in nodes])

    def restore(
        self, backup: Backup, contents: Contents, staging: Path, paths: Collection[bytes] | None
    ) -> Path:
        root = os.fsencode(contents.root)
        if paths is not None:
            below = root + b"/" if root else b""
            batches = [[b"+pf:" + path for path in part] for part in _batches(paths, below)]
        elif root:
            batches = [[b"+pp:" + root]]
        else:  # the root's own metadata last: borg would restore it before what is in it
            batches = [[b"-pf:.", b"+fm:*"], [b"+pf:."]]
        for batch in batches:
            self._borg(
                f"restore of {backup.name}",
                *("extract", "--numeric-ids"),
                *(b"--pattern=" + pattern for pattern in [*batch, b"-fm:*"]),
                self._archive(backup),
                cwd=staging,
                error=Unrestorable,
            )
        return staging / contents.root

    def _archive(self, backup: Backup) -> str:
        return f"{self._place}::{backup.name}"

    @cached_property
    def _place(self) -> str:
        """What borg is given: of a local repository a view that shares only the data.

        borg writes a damaged index anew, even where it only reads.
        """
        if not self.is_local:
            return self.location
        repository, view = Path(self.location), self._work / "view"
        view.mkdir(exist_ok=True)
        with explained(f"reading {repository}"):
            for entry in repository.iterdir():
                if entry.is_dir():
                    (view / entry.name).symlink_to(entry)
                else:
                    shutil.copyfile(entry, view / entry.name)
        return str(view)

    def _borg(
        self,
        doing: str,
        *arguments: str | bytes,
        cwd: Path | None = None,
        error: type[EngineError] = EngineError,
    ) -> Finished:
        """As a client that never saw this repository, and that takes no lock."""
        with tempfile.TemporaryDirectory(prefix="new-client-", dir=self._work) as client:
            environment = {
                "BORG_BASE_DIR": client,
                "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
                "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            } | ({"BORG_PASSPHRASE_FD": "0"} if self._secret else {})
            return self._run(
                doing,
                "--bypass-lock",
                *arguments,
                cwd=cwd,
                environment=environment,
                error=error,
            )


class _Directory(_ToolReader):
    program = "tar"

    def backups(self) -> list[Backup]:
        with explained("listing the backups"):
            found = [
                Backup(path.name, path.name, datetime.fromtimestamp(path.stat().st_mtime, UTC))
                for path in Path(self.location).iterdir()
                if path.name.endswith(_ARCHIVES) and self._wanted(path.name) and path.is_file()
            ]
        return sorted(found, key=lambda backup: (backup.created_at, backup.name))

    def contents(self, backup: Backup) -> Contents:
        output = self._tar(
            f"listing {backup.name}", "--list", "--verbose", "--quoting-style=escape", backup=backup
        ).stdout
        nodes = []
        for line in output.decode(errors="surrogateescape").splitlines():
            kind, _owner, size, _day, _time, path = line.split(maxsplit=5)
            nodes.append((path.removeprefix("./").rstrip("/"), kind[0] == "-", _number(size)))
        return _contents((self.repository.path or "").strip("/"), nodes)

    def restore(
        self, backup: Backup, contents: Contents, staging: Path, paths: Collection[bytes] | None
    ) -> Path:
        self._tar(
            f"restore of {backup.name}",
            *("--extract", "--preserve-permissions", "--numeric-owner", "--xattrs"),
            *("--xattrs-include=*", "--directory", staging),
            backup=backup,
        )
        return staging / contents.root

    def _tar(self, doing: str, *arguments: str | Path, backup: Backup) -> Finished:
        archive = Path(self.location) / backup.backup_id
        return self._run(doing, *arguments, "--file", archive, error=Unrestorable)


def _contents(root: str, nodes: Sequence[tuple[str, bool, int]]) -> Contents:
    below = f"{root}/" if root else "/" if any(path.startswith("/") for path, _, _ in nodes) else ""
    inside = [node for node in nodes if node[0].startswith(below)]
    sizes = {path.removeprefix(below): size for path, is_file, size in inside if is_file}
    return Contents(root, sizes, len(inside))


def _only(backup: Backup) -> str:
    if len(backup.folders) != 1:
        raise EngineError(
            f"{backup.name} holds {len(backup.folders)} folders ({', '.join(backup.folders)}): "
            "name one as `path` of the repository in the plan"
        )
    return backup.folders[0]


def _batches(paths: Collection[bytes], below: bytes) -> list[list[bytes]]:
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


def _escaped(path: bytes) -> bytes:
    for special in (b"\\", b"*", b"?", b"["):
        path = path.replace(special, b"\\" + special)
    return path


def _utc(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
