"""borg: the engine for encrypted, deduplicated backups by the real borg program (1.x).

The passphrase is a random one that only this object knows; borg gets it through a pipe.
Whatever reads does so as a new machine would, without the cache and the memory of the client that
made the backups: what it finds is what would be left after a disaster. Such a client cannot see
that the newest archives are gone, so every archive is looked up by its recorded id.
"""

import json
import secrets
import tempfile
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import xxhash

from recovery_pipelines.engines.base import (
    Snapshot,
    ToolEngine,
    require_empty,
    require_recorded,
    size_bytes,
    understood,
)
from recovery_pipelines.errors import EngineError
from recovery_pipelines.tools import Finished

_ROOT, _NOT_ROOT, _NOTHING_ELSE = b"--pattern=+pf:.", b"--pattern=-pf:.", b"--pattern=-fm:*"
"""borg restores the root's metadata before what is in it, so we extract the root afterwards."""
_MAX_SELECTED_BYTES = 500_000
"""Each selected path is an argument."""


class BorgEngine(ToolEngine):
    """borg with a repository key, a private passphrase and no client state worth trusting."""

    name: ClassVar[str] = "borg"
    program: ClassVar[str] = "borg"
    package: ClassVar[str | None] = "borgbackup"
    exit_codes: ClassVar[Mapping[int, str]] = {
        1: "warning: not everything was read, found or restored as it should be",
        2: "error",
    }
    _passphrase = ""

    def version(self) -> str:
        """As `borg --version` prints it."""
        return self._run("asking borg for its version", "--version").stdout.decode().strip()

    def init(self) -> None:
        """`borg init --encryption repokey-blake2`, with a new random passphrase."""
        self._passphrase = secrets.token_urlsafe(32)
        self._borg(
            "making the repository", "init", "--encryption=repokey-blake2", str(self.repository)
        )

    def backup(self, source: Path, parent: Snapshot | None) -> Snapshot:
        """One archive. A full backup reads every file; an increment those whose ctime changed."""
        if parent is not None:
            require_recorded([parent], self.snapshot_ids())
        before_bytes = size_bytes(self.repository)
        output = self._borg(
            f"backup of {source}",
            *("create", "--json", "--numeric-ids", "--noflags"),
            f"--files-cache={'disabled' if parent is None else 'ctime,size,inode'}",
            f"{self.repository}::{secrets.token_hex(16)}",
            ".",
            cwd=source,
        ).stdout
        with understood(f"backup of {source}"):
            made = json.loads(output)["archive"]
            archive_id, created_at = str(made["id"]), datetime.fromisoformat(made["start"])
        return Snapshot(
            snapshot_id=archive_id,
            kind="full" if parent is None else "incremental",
            parent_id=parent.snapshot_id if parent else None,
            created_at=created_at.replace(tzinfo=UTC),
            digest=_digest(archive_id),
            added_bytes=size_bytes(self.repository) - before_bytes,
        )

    def snapshot_ids(self) -> list[str]:
        """As `borg list` lists them."""
        return list(self._names())

    def check(self) -> None:
        """`borg check`: segments and archive metadata, without decrypting the data."""
        self._borg_anew("check", "check", str(self.repository))

    def full_check(self, snapshots: Sequence[Snapshot]) -> None:
        """The recorded ids are there, and `borg check --verify-data`.

        `borg check --repair` puts zeros in the place of lost chunks, and no later check complains;
        but it writes the archive anew, under another id.
        """
        require_recorded(snapshots, self._names())
        for snapshot in snapshots:
            if _digest(snapshot.snapshot_id) != snapshot.digest:
                raise EngineError(f"snapshot {snapshot.snapshot_id} is not the recorded one")
        self._borg_anew("full check", "check", "--verify-data", str(self.repository))

    def restore(
        self, snapshot: Snapshot, staging: Path, paths: Collection[bytes] | None = None
    ) -> None:
        """`borg extract` of the archive with the recorded id, whatever its name is now."""
        require_empty(staging)
        names = self._names()
        require_recorded([snapshot], names)
        archive = f"{self.repository}::{names[snapshot.snapshot_id]}"
        patterns: list[bytes] = [_NOT_ROOT]
        if paths is not None and sum(map(len, paths)) <= _MAX_SELECTED_BYTES:
            patterns += [b"--pattern=+pf:" + path for path in paths if path] + [_NOTHING_ELSE]
        self._extract(snapshot, archive, staging, patterns)
        if paths is None or b"" in paths:
            self._extract(snapshot, archive, staging, [_ROOT, _NOTHING_ELSE])

    def _extract(
        self, snapshot: Snapshot, archive: str, staging: Path, patterns: list[bytes]
    ) -> None:
        self._borg_anew(
            f"restore of {snapshot.snapshot_id}",
            "extract",
            "--numeric-ids",
            "--noflags",
            *patterns,
            archive,
            into=staging,
        )

    def _names(self) -> dict[str, str]:
        """The name of each archive by its id, oldest first."""
        output = self._borg_anew("listing the archives", "list", "--json", str(self.repository))
        return names_of_archives(output.stdout)

    def _borg_anew(self, doing: str, *arguments: str | bytes, into: Path | None = None) -> Finished:
        """As a client that never saw this repository."""
        with tempfile.TemporaryDirectory(prefix="new-client-", dir=self.work) as client:
            return self._borg(doing, *arguments, cwd=into, into=into, client=Path(client))

    def _borg(
        self,
        doing: str,
        *arguments: str | bytes,
        cwd: Path | None = None,
        into: Path | None = None,
        client: Path | None = None,
    ) -> Finished:
        state = {"BORG_BASE_DIR": str(client or self.work / "client"), "BORG_PASSPHRASE_FD": "0"}
        return self._run(
            doing,
            *arguments,
            cwd=cwd,
            stdin=self._passphrase.encode(),
            environment=state,
            into=into,
        )


def names_of_archives(said: bytes) -> dict[str, str]:
    """The name of each archive by its id, from `borg list --json`."""
    with understood("listing the archives"):
        return {str(each["id"]): str(each["name"]) for each in json.loads(said)["archives"]}


def _digest(snapshot_id: str) -> str:
    """An archive's id is a keyed BLAKE2 hash that covers the archive's whole content."""
    digest: str = xxhash.xxh3_128_hexdigest(snapshot_id.encode())
    return digest
