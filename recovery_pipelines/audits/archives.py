"""Directories of tar archives, each a whole backup."""

import os
import re
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from recovery_pipelines.audits.reader import (
    Backup,
    Contents,
    Node,
    TreeReader,
    Unrestorable,
    contents_below,
)
from recovery_pipelines.engines.base import explained
from recovery_pipelines.engines.tar import unquote
from recovery_pipelines.tools import Finished

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

_LISTED = re.compile(rb'(.)\S+ +\d+/\d+ +(\S+) +[^"]*"((?:[^"\\]|\\.)*)"')
"""Mode, owner and group, size, time, name: none but the name holds a quotation mark."""


class Archives(TreeReader):
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
            f"listing {backup.name}",
            *("--list", "--verbose", "--numeric-owner", "--quoting-style=c"),
            backup=backup,
        ).stdout
        nodes = [node for line in output.splitlines() if (node := _listed(line))]
        return contents_below((self.repository.path or "").strip("/"), nodes)

    def restore(
        self, backup: Backup, contents: Contents, staging: Path, paths: Collection[bytes] | None
    ) -> Path:
        self._tar(
            f"restore of {backup.name}",
            *("--extract", "--preserve-permissions", "--numeric-owner", "--xattrs"),
            *("--xattrs-include=*", "--directory", staging),
            backup=backup,
            into=staging,
        )
        return staging / contents.root

    def _tar(
        self, doing: str, *arguments: str | Path, backup: Backup, into: Path | None = None
    ) -> Finished:
        archive = Path(self.location) / backup.backup_id
        return self._run(doing, *arguments, "--file", archive, into=into, error=Unrestorable)


def _listed(line: bytes) -> Node | None:
    """What a line of `tar --list --verbose` tells; None if it is about no entry."""
    found = _LISTED.match(line)
    if found is None:
        return None
    kind, size, name = found.groups()
    path = os.fsdecode(unquote(name)).removeprefix("./")
    return path, kind == b"-", int(size) if size.isdigit() else 0
