"""Repositories of restic, without a lock and without a cache."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

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
        output = self._restic(
            f"listing {backup.name}", "ls", "--json", backup.backup_id, error=Unrestorable
        ).stdout
        with understood(f"listing {backup.name}"):
            lines = [json.loads(line) for line in output.splitlines()]
            nodes = [node(each, "file") for each in lines if each.get("path")]
            folders = {each["path"] for each in lines if each.get("type") == "dir"}
        folder = self.repository.path or _only(backup)
        name = "/" + PurePosixPath(folder).name
        root = next((place for place in (folder, name) if place in folders), "")
        return contents_below(root, nodes)

    def restore(
        self, backup: Backup, contents: Contents, staging: Path, paths: Collection[bytes] | None
    ) -> Path:
        root = os.fsencode(contents.root)
        batches = [[root]] if contents.root else [[]]
        if paths is not None:
            batches = in_batches(paths, root + b"/")
        for batch in batches:
            chosen: list[str | bytes | Path] = []
            for path in batch:
                chosen += ["--include", _escaped(path)]
            self._restic(
                f"restore of {backup.name}",
                *("restore", backup.backup_id, "--target", staging),
                *chosen,
                into=staging,
                error=Unrestorable,
            )
        return staging / contents.root.lstrip("/")

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


def _escaped(path: bytes) -> bytes:
    for special in (b"\\", b"*", b"?", b"["):
        path = path.replace(special, b"\\" + special)
    return path
