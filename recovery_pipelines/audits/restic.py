"""Repositories of restic, without a lock and without a cache."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from recovery_pipelines.audits.cover import MOST_PATTERNS, boundary, coarsened, cover
from recovery_pipelines.audits.reader import (
    Backup,
    Contents,
    TreeReader,
    Unrestorable,
    contents_below,
    in_batches,
    node,
    utc,
)
from recovery_pipelines.engines.base import understood
from recovery_pipelines.errors import EngineError
from recovery_pipelines.manifest import PathRange
from recovery_pipelines.manifest.ranges import parent
from recovery_pipelines.tools import Finished


class Restic(TreeReader):
    program = "restic"
    meanings: Mapping[int, str] = {
        1: "error",
        10: "there is no repository",
        11: "the repository is locked",
        12: "wrong password",
    }

    def backups(self) -> list[Backup]:
        path = self.repository.path
        said = self._restic("listing the backups", "snapshots", "--json").stdout
        with understood("listing the backups"):
            found = [
                Backup(each["id"], each["short_id"], utc(each["time"]), tuple(each["paths"]))
                for each in json.loads(said)
                if self._wanted(each.get("hostname", "")) and path in (None, *each["paths"])
            ]
        return sorted(found, key=lambda backup: backup.created_at)

    def contents(self, backup: Backup) -> Contents:
        lines = self._listed(backup)
        return contents_below(self._root(backup, lines), [node(each, "file") for each in lines])

    def _root(self, backup: Backup, lines: Sequence[Mapping[str, Any]]) -> str:
        """Where the audited folder lies, by a listing that names it."""
        folders = {each["path"] for each in lines if each["type"] == "dir"}
        return next((place for place in self._places(backup) if place in folders), "")

    def _places(self, backup: Backup) -> tuple[str, str]:
        """Where the audited folder may lie: a relative path is kept by its last name."""
        folder = self.repository.path or _only(backup)
        return folder, "/" + PurePosixPath(folder).name

    def _listed(self, backup: Backup, *folders: str | bytes) -> list[dict[str, Any]]:
        """Every entry, or what lies in some folders and not deeper."""
        doing = f"listing {backup.name}"
        output = self._restic(
            doing, "ls", "--json", backup.backup_id, *folders, error=Unrestorable
        ).stdout
        with understood(doing):
            lines = [json.loads(line) for line in output.splitlines()]
            return [
                {
                    "path": str(each["path"]),
                    "type": str(each["type"]),
                    "size": int(each.get("size") or 0),
                }
                for each in lines
                if each.get("path")
            ]

    def restore(
        self, backup: Backup, contents: Contents, staging: Path, paths: Collection[bytes] | None
    ) -> Path:
        root = os.fsencode(contents.root)
        batches: list[list[bytes]] = [[root]] if contents.root else [[]]
        if paths is not None:
            batches = in_batches(paths, root + b"/")
        for batch in batches:
            self._restore(backup, staging, [_escaped(path) for path in batch])
        return staging / contents.root.lstrip("/")

    def restore_range(
        self, backup: Backup, staging: Path, wanted: PathRange, also: Collection[bytes]
    ) -> Path:
        """Restore what lies in a range of paths, and the entries `also`, in one go.

        Returns the folder that holds them under their paths; more may be in it.
        """
        folders = boundary(wanted)
        places = [os.fsencode(place) for place in (*self._places(backup), "")]
        lines = self._listed(
            backup, *(_below(place, folder) for place in places for folder in folders)
        )
        root = os.fsencode(self._root(backup, lines))
        children: dict[bytes, dict[bytes, bool]] = {folder: {} for folder in folders}
        for each in lines:
            path = os.fsencode(each["path"])
            name = path.removeprefix(root + b"/")
            if name != path and parent(name) in children:
                children[parent(name)][name.rpartition(b"/")[2]] = each["type"] == "dir"
        patterns = cover(wanted, children)
        others = [(path, False) for path in coarsened(also, MOST_PATTERNS)]
        found = [
            _escaped(root + b"/" + path) + b"*" * is_prefix
            if path or is_prefix
            else _escaped(root) or b"/*"
            for path, is_prefix in (*patterns, *others)
        ]
        tree = staging / os.fsdecode(root).lstrip("/")
        if found:
            self._restore(backup, staging, found)
        else:
            tree.mkdir(parents=True, exist_ok=True)  # without a pattern all would be restored
        return tree

    def _restore(self, backup: Backup, staging: Path, patterns: Sequence[bytes]) -> None:
        chosen = [word for pattern in patterns for word in (b"--include", pattern)]
        self._restic(
            f"restore of {backup.name}",
            *("restore", backup.backup_id, "--target", staging),
            *chosen,
            into=staging,
            error=Unrestorable,
        )

    def lock(self) -> str:
        return "restic" if self._restic("looking for locks", "list", "locks").stdout else ""

    def _restic(
        self,
        doing: str,
        *arguments: str | bytes | Path,
        into: Path | None = None,
        error: type[EngineError] = EngineError,
    ) -> Finished:
        return self._run(
            doing,
            *("--repo", self.location, "--password-file", "/dev/stdin"),
            *("--no-cache", "--no-lock", "--quiet"),
            *arguments,
            into=into,
            error=error,
        )


def _only(backup: Backup) -> str:
    if len(backup.folders) != 1:
        raise EngineError(
            f"{backup.name} holds {len(backup.folders)} folders ({', '.join(backup.folders)}): "
            "name one as `path` of the repository in the plan"
        )
    return backup.folders[0]


def _below(root: bytes, path: bytes) -> bytes:
    return root + b"/" + path if path else root or b"/"


def _escaped(path: bytes) -> bytes:
    for special in (b"\\", b"*", b"?", b"["):
        path = path.replace(special, b"\\" + special)
    return path
