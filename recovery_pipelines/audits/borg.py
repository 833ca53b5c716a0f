"""Repositories of borg, without a lock, by a client that never saw them."""

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

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
from recovery_pipelines.engines.base import explained, understood
from recovery_pipelines.errors import EngineError
from recovery_pipelines.tools import Finished


class Borg(TreeReader):
    program = "borg"
    package = "borgbackup"
    meanings: Mapping[int, str] = {1: "warning: not all was read or restored", 2: "error"}

    def backups(self) -> list[Backup]:
        output = self._borg("listing the backups", "list", "--json", self._place).stdout
        with understood("listing the backups"):
            found = [
                Backup(each["id"], each["name"], utc(each["start"]))
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
        with understood(f"listing {backup.name}"):
            nodes = [node(json.loads(line), "-") for line in output.splitlines()]
        root = (self.repository.path or "").strip("/")
        if root and not any(path == root for path, _, _ in nodes):
            raise EngineError(f"{backup.name} holds no folder {root}; mend `path` in the plan")
        return contents_below(root, nodes)

    def restore(
        self, backup: Backup, contents: Contents, staging: Path, paths: Collection[bytes] | None
    ) -> Path:
        root = os.fsencode(contents.root)
        if paths is not None:
            below = root + b"/" if root else b""
            batches = [[b"+pf:" + path for path in part] for part in in_batches(paths, below)]
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
                into=staging,
                error=Unrestorable,
            )
        return staging / contents.root

    def lock(self) -> str:
        return "borg" if self.is_local and (Path(self.location) / "lock.exclusive").exists() else ""

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
        into: Path | None = None,
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
                cwd=into,
                into=into,
                environment=environment,
                error=error,
            )
