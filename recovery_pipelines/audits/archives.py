"""Directories of tar archives, each a whole backup."""

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from recovery_pipelines.audits.reader import (
    Backup,
    Contents,
    TreeReader,
    Unrestorable,
    contents_below,
)
from recovery_pipelines.engines.base import explained
from recovery_pipelines.tools import Finished

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


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
            f"listing {backup.name}", "--list", "--verbose", "--quoting-style=escape", backup=backup
        ).stdout
        nodes = []
        for line in output.decode(errors="surrogateescape").splitlines():
            kind, _owner, size, _day, _time, path = line.split(maxsplit=5)
            nodes.append((path.removeprefix("./").rstrip("/"), kind[0] == "-", _number(size)))
        return contents_below((self.repository.path or "").strip("/"), nodes)

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


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
