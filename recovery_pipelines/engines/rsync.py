"""rsync --link-dest: the engine of many home-made backups, kept to show what it does not protect.

A repository is a directory per snapshot; files that did not change are hard links into the
snapshot before. rsync stores no checksums: what is damaged there is restored without complaint.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from recovery_pipelines import manifest
from recovery_pipelines.engines.base import (
    Snapshot,
    ToolEngine,
    explained,
    require_empty,
    require_recorded,
)
from recovery_pipelines.errors import EngineError

_KEEP_ALL = (
    "--archive",
    "--hard-links",
    "--acls",
    "--xattrs",
    "--sparse",
    "--numeric-ids",
    "--modify-window=-1",
)
_PARTIAL = ".partial"


class RsyncEngine(ToolEngine):
    """rsync into a new directory per backup. Sees a change only by size and time."""

    name: ClassVar[str] = "rsync"
    program: ClassVar[str] = "rsync"
    exit_codes: ClassVar[Mapping[int, str]] = {
        11: "a file could not be read or written",
        12: "the other side ended",
        20: "interrupted",
        23: "partial: not everything was copied",
        24: "a file vanished while it was read",
        30: "timeout",
    }

    def version(self) -> str:
        """The first line of `rsync --version`."""
        output = self._run("asking rsync for its version", "--version").stdout
        return output.splitlines()[0].decode().strip()

    def init(self) -> None:
        """An empty directory is an empty repository; the program must be there."""
        self.version()

    def backup(self, source: Path, parent: Snapshot | None) -> Snapshot:
        """A copy of `source`, with hard links to what the parent has of the same size and time."""
        created_at = datetime.now(UTC)
        snapshot_id = f"{created_at:%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}"
        upon = []
        if parent is not None:
            require_recorded([parent], self.snapshot_ids())
            upon = [f"--link-dest={self.repository / parent.snapshot_id}"]
        partial = self.repository / f"{snapshot_id}{_PARTIAL}"
        try:
            self._run(f"backup of {source}", *_KEEP_ALL, *upon, "--", f"{source}/", f"{partial}/")
            with explained(f"backup of {source}"):
                known = _sizes(self.repository / parent.snapshot_id) if parent else {}
                sizes = _sizes(partial)
                digest = self._digest(partial)
                partial.rename(self.repository / snapshot_id)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return Snapshot(
            snapshot_id=snapshot_id,
            kind="full" if parent is None else "incremental",
            parent_id=parent.snapshot_id if parent else None,
            created_at=created_at,
            digest=digest,
            added_bytes=sum(size for inode, size in sizes.items() if inode not in known),
        )

    def snapshot_ids(self) -> list[str]:
        """By the names of the directories."""
        names = (path.name for path in self.repository.iterdir() if path.is_dir())
        return sorted(name for name in names if not name.endswith(_PARTIAL))

    def check(self) -> None:
        """rsync has no check; an empty repository is all that can be found."""
        if not self.snapshot_ids():
            raise EngineError(f"there is no snapshot in {self.repository}: nothing to check")

    def full_check(self, snapshots: Sequence[Snapshot]) -> None:
        """Each snapshot's manifest is the recorded one: this check is ours, rsync has none."""
        require_recorded(snapshots, self.snapshot_ids())
        for snapshot in snapshots:
            found = self._digest(self.repository / snapshot.snapshot_id)
            if found != snapshot.digest:
                raise EngineError(
                    f"snapshot {snapshot.snapshot_id} is not the tree that was written: "
                    f"recorded digest {snapshot.digest}, found {found}"
                )

    def restore(
        self, snapshot: Snapshot, staging: Path, paths: Collection[bytes] | None = None
    ) -> None:
        """Copy the snapshot's directory, or those of `paths` that it holds."""
        require_empty(staging)
        require_recorded([snapshot], self.snapshot_ids())
        held = self.repository / snapshot.snapshot_id
        chosen, names = [], None
        if paths is not None:
            chosen = ["--files-from=-", "--from0"]
            names = b"".join(
                path + b"\0"
                for path in (path or b"." for path in sorted(paths))
                if os.path.lexists(os.path.join(os.fsencode(held), path))  # noqa: PTH118
            )
        self._run(
            f"restore of {snapshot.snapshot_id}",
            *(*_KEEP_ALL, *chosen, "--", f"{held}/", f"{staging}/"),
            stdin=names,
            into=staging,
        )

    def _digest(self, tree: Path) -> str:
        with tempfile.TemporaryDirectory(dir=self.work) as scratch:
            captured = manifest.capture(tree, Path(scratch) / "manifest.parquet")
        if not captured.complete:
            raise EngineError(f"{captured.errors} entries of {tree} cannot be read")
        return captured.digest


def _sizes(tree: Path) -> dict[tuple[int, int], int]:
    """Size by device and inode of everything in `tree` but directories."""
    sizes = {}
    for folder, _, names in os.walk(tree):
        for name in names:
            found = Path(folder, name).lstat()
            sizes[found.st_dev, found.st_ino] = found.st_size
    return sizes
