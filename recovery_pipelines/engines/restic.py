"""restic: the engine for encrypted, deduplicated backups by the real restic program.

The password is a random one that only this object knows; restic gets it through a pipe.
What only reads takes no lock: it writes nothing into the repository, even when it is killed.
A snapshot's digest covers its id and its tree id, the SHA-256 hashes of the snapshot and of
everything below its root: equal ids and a clean `check --read-data` prove equal content.
"""

import contextlib
import json
import os
import re
import secrets
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import xxhash

from recovery_pipelines.engines.base import (
    Snapshot,
    ToolEngine,
    explained,
    require_empty,
    require_recorded,
    size_bytes,
    understood,
)
from recovery_pipelines.errors import EngineError
from recovery_pipelines.tools import Finished

_MAX_SELECTED = 500
_MAX_SELECTED_BYTES = 100_000
"""restic compares each entry with each pattern, and each pattern is an argument."""


class ResticEngine(ToolEngine):
    """restic with a private password and without a cache, which would hide damage."""

    name: ClassVar[str] = "restic"
    program: ClassVar[str] = "restic"
    exit_codes: ClassVar[Mapping[int, str]] = {
        1: "error",
        3: "partial backup: some of the source could not be read",
        10: "there is no repository",
        11: "the repository is locked",
        12: "wrong password",
        130: "interrupted",
        -9: "killed; we do so when it starts to retry, for 15 minutes, a local file that it cannot "
        "read or write",
    }
    give_up_on: ClassVar[bytes | None] = b"returned error, retrying after"
    _password = ""

    def version(self) -> str:
        """As `restic version` prints it."""
        return self._run("asking restic for its version", "version").stdout.decode().strip()

    def init(self) -> None:
        """`restic init`, with a new random password."""
        self._password = secrets.token_urlsafe(32)
        self._restic("making the repository", "init")

    def backup(self, source: Path, parent: Snapshot | None) -> Snapshot:
        """Of the directory by its name, from its parent directory: so its metadata is kept."""
        source = source.resolve()
        before_bytes = size_bytes(self.repository)
        upon = ["--force"] if parent is None else ["--parent", parent.snapshot_id]
        output = self._restic(
            f"backup of {source}", "backup", "--json", *upon, "--", source.name, cwd=source.parent
        ).stdout
        with understood(f"backup of {source}"):
            made = str(json.loads(output.splitlines()[-1])["snapshot_id"])
        listed = [each for each in self._snapshots() if made and each.id.startswith(made)]
        if len(listed) != 1:
            raise EngineError(
                f"restic reported snapshot {made}, but the repository lists "
                f"{len(listed)} snapshots of that id"
            )
        return Snapshot(
            snapshot_id=listed[0].id,
            kind="full" if parent is None else "incremental",
            parent_id=parent.snapshot_id if parent else None,
            created_at=listed[0].created_at,
            digest=_digest(listed[0]),
            added_bytes=size_bytes(self.repository) - before_bytes,
        )

    def snapshot_ids(self) -> list[str]:
        """As `restic snapshots` lists them."""
        return [each.id for each in sorted(self._snapshots(), key=lambda each: each.created_at)]

    def check(self) -> None:
        """`restic check`: structure only, it does not read the data."""
        self._restic("check", "check", "--no-lock")

    def full_check(self, snapshots: Sequence[Snapshot]) -> None:
        """The recorded ids and digests are there, and `restic check --read-data`."""
        found = {each.id: _digest(each) for each in self._snapshots()}
        require_recorded(snapshots, found)
        for snapshot in snapshots:
            if found[snapshot.snapshot_id] != snapshot.digest:
                raise EngineError(f"snapshot {snapshot.snapshot_id} has another tree than recorded")
        self._restic("full check", "check", "--read-data", "--no-lock")

    def restore(
        self, snapshot: Snapshot, staging: Path, paths: Collection[bytes] | None = None
    ) -> None:
        """Restore below `staging`, then move everything one level up."""
        require_empty(staging)
        below = staging / f".restoring-{secrets.token_hex(8)}"
        arguments: list[str | bytes | Path] = ["--no-lock", "--target", below]
        if paths is not None and _is_selectable(paths):
            for path in paths:
                arguments += ["--include", _pattern(path)]
        self._restic(
            f"restore of {snapshot.snapshot_id}",
            "restore",
            snapshot.snapshot_id,
            *arguments,
            into=staging,
        )
        restored = list(below.iterdir()) if below.exists() else []
        if len(restored) == 1:
            with explained(f"restore of {snapshot.snapshot_id}"):
                _move_up(restored[0], staging)
        elif restored or paths is None:
            raise EngineError(
                f"snapshot {snapshot.snapshot_id} holds {len(restored)} directories, not one"
            )

    def _restic(
        self,
        doing: str,
        *arguments: str | bytes | Path,
        cwd: Path | None = None,
        into: Path | None = None,
    ) -> Finished:
        return self._run(
            doing,
            *("--repo", self.repository, "--password-file", "/dev/stdin"),
            *("--no-cache", "--quiet"),
            *arguments,
            cwd=cwd,
            stdin=self._password.encode(),
            into=into,
        )

    def _snapshots(self) -> list["Listed"]:
        return read_snapshots(
            self._restic("listing the snapshots", "snapshots", "--json", "--no-lock").stdout
        )


@dataclass(frozen=True)
class Listed:
    """A snapshot, as `restic snapshots` lists it."""

    id: str
    tree: str
    created_at: datetime


def read_snapshots(said: bytes) -> list[Listed]:
    """What `restic snapshots --json` says."""
    with understood("listing the snapshots"):
        return [
            Listed(
                str(each["id"]),
                str(each["tree"]),
                datetime.fromisoformat(each["time"]).astimezone(UTC),
            )
            for each in json.loads(said)
        ]


def _digest(listed: Listed) -> str:
    digest: str = xxhash.xxh3_128_hexdigest(f"{listed.id} {listed.tree}".encode())
    return digest


def _is_selectable(paths: Collection[bytes]) -> bool:
    """Whether patterns can express it: the root as a pattern is everything anyway."""
    names_bytes = sum(len(path) for path in paths)
    return b"" not in paths and len(paths) <= _MAX_SELECTED and names_bytes <= _MAX_SELECTED_BYTES


def _pattern(path: bytes) -> bytes:
    """Matches `path` below the one directory that a snapshot holds."""
    return b"/*/" + re.sub(rb"([\\*?\[])", rb"\\\1", path)


def _rename(old: Path, new: Path) -> None:
    """Rename also a directory that its owner may not write to, which needs that right."""
    status = old.lstat()
    locked = stat.S_ISDIR(status.st_mode) and not status.st_mode & stat.S_IWUSR
    if locked:
        old.chmod(0o700)
    old.rename(new)
    if locked:
        new.chmod(stat.S_IMODE(status.st_mode))


def _move_up(restored: Path, staging: Path) -> None:
    """Make `staging`, which holds only the parent of `restored`, what `restored` is."""
    status = restored.stat()
    attributes = {name: os.getxattr(restored, name) for name in os.listxattr(restored)}
    restored.chmod(0o700)
    for child in restored.iterdir():
        _rename(child, staging / child.name)
    restored.rmdir()
    restored.parent.rmdir()
    with contextlib.suppress(PermissionError):  # as restic does: an ordinary user keeps his own
        os.chown(staging, status.st_uid, status.st_gid)
    for name, value in attributes.items():
        os.setxattr(staging, name, value)
    staging.chmod(stat.S_IMODE(status.st_mode))
    os.utime(staging, ns=(status.st_atime_ns, status.st_mtime_ns))
