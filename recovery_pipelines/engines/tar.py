"""GNU tar with zstd and --listed-incremental: the engine that needs no backup program.

A repository is a directory of archives `<chain>-<number>.tar.zst`: number 0 is the full backup,
number n the increment upon n-1. `work` holds for each snapshot tar's snapshot file (what the
next increment builds upon) and the listing of the archive (for selective restores).
"""

import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from recovery_pipelines.engines import snar
from recovery_pipelines.engines.base import (
    Snapshot,
    ToolEngine,
    explained,
    file_digest,
    require_empty,
    require_recorded,
)
from recovery_pipelines.errors import EngineError
from recovery_pipelines.files import sync

_SUFFIX = ".tar.zst"
_COMPRESS = "--use-compress-program=zstd -T0 --check --quiet"
_METADATA = ("--xattrs", "--acls", "--numeric-owner")
_MAX_SELECTED = 1000
"""tar compares each name of the archive with each selected one: more would take minutes."""

_QUOTED = rb'"((?:[^"\\]|\\.)*)"'
_LISTED = re.compile(rb"\S+ +\S+ +\S+ \S+ \S+ " + _QUOTED + rb"(?: link to " + _QUOTED + rb")?")
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)")
_CONTROL = {
    b"a": b"\a",
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
}


class TarEngine(ToolEngine):
    """GNU tar: full backups and increments as zstd-compressed archives with checksums."""

    name: ClassVar[str] = "tar"
    program: ClassVar[str] = "tar"
    exit_codes: ClassVar[Mapping[int, str]] = {
        1: "a file changed or vanished while it was read",
        2: "error",
    }

    def version(self) -> str:
        """The versions of tar and zstd."""
        tar = self._run("asking tar for its version", "--version").stdout.splitlines()[0].decode()
        if "GNU tar" not in tar:
            raise EngineError(f"the program tar is {tar!r}: the engine 'tar' needs GNU tar")
        zstd = self._run("asking zstd for its version", "--version", program="zstd").stdout
        return f"{tar}, {zstd.decode().strip().strip('* ')}"

    def init(self) -> None:
        """An empty directory is an empty repository; the programs must be there."""
        self.version()

    def backup(self, source: Path, parent: Snapshot | None) -> Snapshot:
        """One archive. Refuses a parent whose chain is broken or whose date is in the future."""
        snapshot_id = self._next_id(parent)
        state = self.work / snapshot_id
        partial = self.repository / f"{snapshot_id}.partial"
        try:
            with explained(f"backup of {source}"):
                state.mkdir(mode=0o700)
                partial.touch(mode=0o600)
                if parent is not None:
                    shutil.copyfile(self.work / parent.snapshot_id / "snar", state / "snar")
                    snar.forget_moved(state / "snar", source)
                self._create(partial, state, source)
                snapshot = Snapshot(
                    snapshot_id=snapshot_id,
                    kind="full" if parent is None else "incremental",
                    parent_id=parent.snapshot_id if parent else None,
                    created_at=snar.started_at(state / "snar"),
                    digest=file_digest(partial),
                    added_bytes=partial.stat().st_size,
                )
                sync(partial)
                partial.rename(self._archive(snapshot_id))
                sync(self.repository)
        except BaseException:
            partial.unlink(missing_ok=True)
            shutil.rmtree(state, ignore_errors=True)
            raise
        return snapshot

    def snapshot_ids(self) -> list[str]:
        """By the names of the archives."""
        return sorted(path.name.removesuffix(_SUFFIX) for path in self._archives())

    def check(self) -> None:
        """`tar --list` of each archive in the repository."""
        archives = self._archives()
        if not archives:
            raise EngineError(f"there is no archive in {self.repository}: nothing to check")
        for archive in archives:
            self._list(archive)

    def full_check(self, snapshots: Sequence[Snapshot]) -> None:
        """Each chain is whole, each archive has its recorded digest, `zstd -t` and `tar -t`."""
        require_recorded(snapshots, self.snapshot_ids())
        for snapshot in snapshots:
            self._chain(snapshot.snapshot_id)
            archive = self._archive(snapshot.snapshot_id)
            found = file_digest(archive)
            if found != snapshot.digest:
                raise EngineError(
                    f"{archive} is not the archive that was written: "
                    f"recorded digest {snapshot.digest}, found {found}"
                )
            self._run(f"check of {archive}", "--test", "--quiet", archive, program="zstd")
            self._list(archive)

    def restore(
        self, snapshot: Snapshot, staging: Path, paths: Collection[bytes] | None = None
    ) -> None:
        """Replay the chain; or extract each of `paths` from the newest archive that holds it."""
        require_empty(staging)
        chain = self._chain(snapshot.snapshot_id)
        selection = None
        if paths is not None and len(paths) <= _MAX_SELECTED:
            selection = self._select(chain, paths)
        for snapshot_id in chain:
            if selection is None:
                _plain_directories(staging)
                self._extract(snapshot_id, staging, "--listed-incremental=/dev/null")
            elif names := selection[snapshot_id]:
                self._extract(
                    snapshot_id,
                    staging,
                    "--delay-directory-restore",
                    "--no-recursion",
                    "--no-unquote",
                    "--null",
                    "--files-from=-",
                    stdin=b"".join(name + b"\0" for name in sorted(names)),
                )

    def _create(self, archive: Path, state: Path, source: Path) -> None:
        self._run(
            f"backup of {source}",
            "--create",
            _COMPRESS,
            *_METADATA,
            "--sparse",
            "--format=posix",
            f"--listed-incremental={state / 'snar'}",
            "--verbose",
            "--verbose",
            "--warning=no-new-directory",
            "--quoting-style=c",
            f"--index-file={state / 'listing'}",
            "--force-local",
            f"--file={archive}",
            f"--directory={source}",
            ".",
        )

    def _extract(
        self, snapshot_id: str, staging: Path, *options: str, stdin: bytes | None = None
    ) -> None:
        self._run(
            f"restore of {snapshot_id}",
            "--extract",
            _COMPRESS,
            *_METADATA,
            "--xattrs-include=*",
            "--preserve-permissions",
            "--force-local",
            f"--file={self._archive(snapshot_id)}",
            f"--directory={staging}",
            *options,
            stdin=stdin,
            into=staging,
        )

    def _list(self, archive: Path) -> None:
        self._run(
            f"check of {archive}",
            "--list",
            _COMPRESS,
            "--index-file=/dev/null",
            "--force-local",
            f"--file={archive}",
        )

    def _select(
        self, chain: Sequence[str], paths: Collection[bytes]
    ) -> dict[str, set[bytes]] | None:
        """Which members to take from which archive; None if a path is in no archive's listing.

        Whatever exists in a generation was archived when it last changed, so the newest archive
        that holds a path holds its state. Every archive holds all directories of its time.
        """
        wanted = {b"./" + path if path else b"." for path in paths}
        wanted |= {parent for name in wanted for parent in _parents(name)}
        selection: dict[str, set[bytes]] = {}
        for snapshot_id in reversed(chain):
            held: set[bytes] = set()
            targets: set[bytes] = set()
            for name, target in read_listing(self.work / snapshot_id / "listing"):
                if name in wanted:
                    held.add(name)
                    if target is not None:
                        targets.add(target)
            selection[snapshot_id] = held | targets
            wanted -= held
        return None if wanted else selection

    def _archives(self) -> list[Path]:
        return sorted(self.repository.glob(f"*{_SUFFIX}"))

    def _archive(self, snapshot_id: str) -> Path:
        return self.repository / f"{snapshot_id}{_SUFFIX}"

    def _chain(self, snapshot_id: str) -> list[str]:
        """The ids from the full backup to `snapshot_id`, all of them present."""
        prefix, _, number = snapshot_id.rpartition("-")
        chain = [f"{prefix}-{each:04d}" for each in range(int(number) + 1)]
        for each in chain:
            if not self._archive(each).is_file():
                raise EngineError(
                    f"snapshot {snapshot_id} builds upon {self._archive(each)}, which is missing"
                )
        return chain

    def _next_id(self, parent: Snapshot | None) -> str:
        if parent is None:
            return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}-0000"
        if parent.created_at > datetime.now(UTC):
            raise EngineError(
                f"the previous backup {parent.snapshot_id} is dated {parent.created_at}, in the "
                "future: tar would skip what changed since. Set the clock right, then make a "
                "full backup"
            )
        newest = self._chain(parent.snapshot_id)[-1]
        prefix, _, number = newest.rpartition("-")
        snapshot_id = f"{prefix}-{int(number) + 1:04d}"
        if not (self.work / newest / "snar").is_file():
            raise EngineError(
                f"{self.work / newest} does not hold what an increment upon {newest} needs: "
                "make a full backup"
            )
        if (self.work / snapshot_id).exists():
            raise EngineError(
                f"{newest} already has the increment {snapshot_id}: "
                "back up upon the newest of a chain, or make a full backup"
            )
        return snapshot_id


def read_listing(listing: Path) -> Iterator[tuple[bytes, bytes | None]]:
    """(name, target if it is a hard link) of each member, without trailing slashes."""
    with listing.open("rb") as lines:
        for line in lines:
            match = _LISTED.match(line)
            if match is None:
                raise EngineError(f"{listing} is damaged: {line[:200]!r}")
            name, target = match.groups()
            yield unquote(name), None if target is None else unquote(target)


def unquote(name: bytes) -> bytes:
    """A name as tar's `--quoting-style=c` writes it, without a trailing slash."""

    def plain(match: re.Match[bytes]) -> bytes:
        escaped = match[1]
        return bytes([int(escaped, 8)]) if len(escaped) == 3 else _CONTROL.get(escaped, escaped)

    return _ESCAPE.sub(plain, name).removesuffix(b"/")


def _parents(name: bytes) -> Iterator[bytes]:
    while name != b".":
        name = name.rpartition(b"/")[0]
        yield name


def _plain_directories(tree: Path) -> None:
    """Before the next archive, which sets all modes: nothing to inherit, and the right to write.

    tar leaves the set-gid bit on a directory that it makes in a set-gid one, and an ordinary
    user's tar cannot write into a directory that was restored read-only.
    """
    tree.chmod(0o700)
    for path, names, _ in os.walk(tree):
        for directory in (Path(path, name) for name in names):
            if not directory.is_symlink():
                directory.chmod(0o700)
