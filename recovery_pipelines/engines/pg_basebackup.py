"""pg_basebackup and an archive of WAL: PostgreSQL's own tools, without any other.

The copy holds no WAL: all of it comes from the archive, which is also what each further backup adds
to.
"""

import json
import secrets
import shlex
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from recovery_pipelines.databases.postgres import HERE, PORT, SEGMENT_BYTES, beside_of
from recovery_pipelines.engines.base import Snapshot, explained, folder_digest, understood
from recovery_pipelines.engines.postgres import WAL, Base, PostgresEngine, segment_of
from recovery_pipelines.errors import EngineError
from recovery_pipelines.tools import postgres_programs

_COPIES, _WAL_FOLDER = "base", "wal"
_MANIFEST, _LABEL = "backup_manifest", "backup_label"


class PgBaseBackupEngine(PostgresEngine):
    """One copy by pg_basebackup, then WAL alone."""

    name: ClassVar[str] = "pg_basebackup"
    program: ClassVar[str] = "pg_basebackup"
    package: ClassVar[str | None] = "postgresql"
    exit_codes: ClassVar[Mapping[int, str]] = {}

    def version(self) -> str:
        """As `pg_basebackup --version` prints it."""
        said = self._must("asking for the version", _program(self.program), "--version")
        return said.decode().strip()

    def init(self) -> None:
        super().init()
        folders = [self.repository / name for name in (_COPIES, _WAL_FOLDER)]
        for folder in folders:
            folder.mkdir(0o700)
        self._site.give(*folders)

    def check(self) -> None:
        """`pg_verifybackup` without reading the files' contents."""
        super().check()
        self._verify({base.label for base in self._bases()}, "--skip-checksums")

    def _archive_command(self, source: Path) -> str:
        folder = str(self._site.seen(self.repository / _WAL_FOLDER)).replace("%", "%%")
        kept, unfinished = (f"{shlex.quote(folder)}/%f{end}" for end in ("", ".part"))
        return f'test ! -f {kept} && cp "%p" {unfinished} && mv {unfinished} {kept}'

    def _prepare(self, source: Path) -> None:
        """There is nothing to prepare."""

    def _back_up(self, source: Path, parent: Snapshot | None) -> tuple[str, str]:
        if parent:
            return self._label_of(parent), WAL
        label = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        copy = self._site.seen(self.repository / _COPIES / label)
        server = ("-h", HERE, "-p", str(PORT), "-U", "postgres", "--no-password")
        options = ("--wal-method=none", "--checkpoint=fast", "--manifest-checksums=SHA256")
        doing, where = f"backup of {source}", beside_of(source)
        self._must(doing, _program(self.program), *server, *options, "-D", copy, folder=where)
        return label, "full"

    def _bases(self) -> list[Base]:
        return [
            self._base(path.parent)
            for path in sorted((self.repository / _COPIES).glob(f"*/{_MANIFEST}"))
        ]

    def _base(self, copy: Path) -> Base:
        """By the copy's own manifest."""
        doing = f"reading the manifest of {copy.name}"
        with explained(doing), understood(doing):
            (told,) = json.loads((copy / _MANIFEST).read_bytes())["WAL-Ranges"]
            first, last = (
                segment_of(told["Timeline"], told[key], SEGMENT_BYTES)
                for key in ("Start-LSN", "End-LSN")
            )
        return Base(copy.name, first, last)

    def _archived(self) -> dict[str, Path]:
        """Only whole segments."""
        return {
            path.name: path
            for path in (self.repository / _WAL_FOLDER).iterdir()
            if len(path.name) == 24 and path.stat().st_size == SEGMENT_BYTES
        }

    def _base_digest(self, label: str) -> str:
        return folder_digest(self.repository / _COPIES / label)

    def _verify(self, labels: Collection[str], *options: str) -> None:
        """`pg_verifybackup` of each copy; it reads the WAL nowhere."""
        for label in sorted(labels):
            copy = self._site.seen(self.repository / _COPIES / label)
            words = ("--no-parse-wal", "--quiet", *options, str(copy))
            self._must(f"check of {label}", _program("pg_verifybackup"), *words)

    def _lay_out(
        self, label: str, staging: Path, restore_point: str, timeline: int
    ) -> dict[str, str]:
        copy = self.repository / _COPIES / label
        if not (copy / _LABEL).is_file():
            raise EngineError(
                f"{label} holds no {_LABEL}: PostgreSQL would begin to replay WAL anywhere"
            )
        seen, doing = self._site.seen, f"restore of {label}"
        self._must(doing, "cp", "-a", f"{seen(copy)}/.", seen(staging), into=staging)
        self._must(doing, "touch", seen(staging / "recovery.signal"), into=staging)
        wal = str(self._site.seen(self.repository / _WAL_FOLDER)).replace("%", "%%")
        return {
            "restore_command": f'cp {shlex.quote(wal)}/%f "%p"',
            "recovery_target_name": restore_point,
            "recovery_target_timeline": str(timeline),
            "recovery_target_action": "promote",
        }

    def _must(
        self,
        doing: str,
        program: str | Path,
        *words: str | Path,
        folder: Path | None = None,
        into: Path | None = None,
    ) -> bytes:
        """Any exit code but 0 is an EngineError."""
        done = self._there([program, *words], folder or self.work, into)
        if done.returncode:
            name = Path(program).name
            raise EngineError(f"{doing}: {name} exit code {done.returncode}: {done.complaint}")
        return done.stdout


def _program(name: str) -> Path:
    return postgres_programs() / name
