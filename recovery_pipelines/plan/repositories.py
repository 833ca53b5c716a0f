"""The plan's targets with a `repository`: backups that others make, to be audited."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, PositiveInt, model_validator

from recovery_pipelines.plan.base import Strict
from recovery_pipelines.plan.channels import Secret
from recovery_pipelines.plan.targets import Aspect, Objectives

Tool = Literal["restic", "borg", "directory", "pg_dump", "pgbackrest"]
DATABASE_TOOLS = ("pg_dump", "pgbackrest")
Share = Annotated[float, Field(gt=0, lt=1)]


class Repository(Strict):
    """Where the backups are, as their own tool names it: exactly one of the tools."""

    restic: str | None = None
    """A folder, or what restic calls it: `s3:…`, `sftp:…`, `rest:…`."""
    borg: str | None = None
    """A folder, or `ssh://…`."""
    directory: Path | None = None
    """A folder of tar archives, each a whole backup, compressed or not."""
    pg_dump: Path | None = None
    """A folder of what pg_dump wrote, in any format, each a whole database."""
    pgbackrest: Path | None = None
    """A folder that pgBackRest writes: a PostgreSQL cluster."""
    stanza: str | None = None
    """pgBackRest's; needed where a repository holds several."""
    restore_point: str | None = None
    """pgBackRest: recover up to the point of this name instead of to the backup's end."""
    password: Secret | None = None
    """`env:NAME`; restic needs it."""
    environment: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...] = ()
    """Variables that the tool gets from our environment, such as AWS_ACCESS_KEY_ID."""
    path: str | None = None
    """The folder that was backed up, as the tool recorded it; needed where a repository holds
    several."""
    match: str = "*"
    """Only backups of this host (restic), label (pgbackrest) or name; `*` and `?`."""

    @model_validator(mode="after")
    def _one_tool(self) -> Self:
        places = {tool: place for tool in get_args(Tool) if (place := getattr(self, tool))}
        if len(places) != 1:
            raise ValueError(f"a repository has exactly one of: {', '.join(get_args(Tool))}")
        if re.search(r"//[^/@]*:[^/@]*@", self.location):
            raise ValueError(
                "an address with a password would stand in plans and lists of processes: leave the "
                "password out, and give the tool's own variable as `environment`"
            )
        if self.tool == "restic" and self.password is None:
            raise ValueError("a restic repository needs its `password`: env:NAME")
        if self.tool in ("directory", "pg_dump") and (self.password or self.environment):
            raise ValueError(f"{self.tool} is a plain folder: no `password`, no `environment`")
        if self.tool != "pgbackrest" and (self.stanza or self.restore_point):
            raise ValueError("`stanza` and `restore_point` belong to pgbackrest")
        if self.tool in DATABASE_TOOLS and self.path:
            raise ValueError("`path` belongs to repositories of files")
        return self

    @property
    def tool(self) -> Tool:
        found: Tool = next(tool for tool in get_args(Tool) if getattr(self, tool))
        return found

    @property
    def location(self) -> str:
        return str(getattr(self, self.tool))


class Reference(Strict):
    """What the restored data are verified against; the strongest that there is counts."""

    manifests: Path | None = None
    """A folder with `<id or name of the backup>.parquet`, captured when the backup was made."""
    live: Path | None = None
    """The folder that is backed up. What changed since the backup is counted apart."""
    command: tuple[str, ...] = ()
    """Runs in the restored folder and exits with 0 if the data are right: the check
    `command_succeeds`."""
    queries: tuple[str, ...] = ()
    """SQL for a restored database. Each must give one row whose first value is true; what else
    is in the row is reported."""
    database: str | None = None
    """Which one of a restored cluster is asked; needed where it holds several."""


class Sample(Strict):
    """How many files are verified, chosen by lot: so many that the statement holds."""

    bad_share: Share
    """Verify so few files, chosen by lot, that, if all are right, less than this share is wrong."""
    confidence: Share = 0.95
    """How sure that statement is."""
    by: Literal["files", "folders", "bytes"] = "files"
    """What the share is of. `folders`: of the files, with at least one from each folder of the
    first level."""


class Coverage(Strict):
    """Files whose last verification is longest ago are verified beside the sample."""

    files: PositiveInt
    """Verify besides so many files, the longest unverified first."""
    days: PositiveInt
    """Within so many days every file must have been verified: the check
    `every_file_verified_in_time`."""


class RepositoryTarget(Strict):
    """A repository that others write. It is only read."""

    repository: Repository
    verify_against: Reference = Reference()
    snapshot: Literal["newest", "random", "stalest"] = "newest"
    """Which backup is restored; `stalest`: the one whose last verification is longest ago."""
    sample: Sample | None = None
    """If left out, everything is restored and verified."""
    coverage: Coverage | None = None
    shards: Annotated[int, Field(ge=2, le=1024)] | None = None
    """For a restic repository that is too large for one worker: verify everything in so many runs,
    beside each other or one after the other, each with its own part of the data, and merge their
    results into one verdict. Needs `verify_against.manifests`."""
    generations: Annotated[int, Field(ge=0, le=1000)] = 10
    """If a backup is bad, so many older ones are tried in search of the last good one."""
    marks: str | None = None
    """A file in the data to which a job appends the time, such as `date -u +%FT%TZ >> marks`; of a
    database the SQL that gives the newest time: the check `marks_are_fresh`."""
    objectives: Objectives = Objectives()
    not_kept: tuple[Aspect, ...] = ()
    """Aspects that the backups do not promise to keep; recorded in every result."""

    def anchored(self, folder: Path) -> Self:
        """Its folders, which the plan gives relative to its own."""
        repository, reference = self.repository, self.verify_against
        places: dict[str, object] = {
            tool: str(folder / Path(place).expanduser())
            for tool in ("restic", "borg")
            if (place := getattr(repository, tool)) and ":" not in place
        }
        for tool in ("directory", "pg_dump", "pgbackrest"):
            if place := getattr(repository, tool):
                places[tool] = folder / place.expanduser()
        folders = {
            name: folder / place.expanduser()
            for name in ("manifests", "live")
            if (place := getattr(reference, name))
        }
        return self.model_copy(
            update={
                "repository": repository.model_copy(update=places),
                "verify_against": reference.model_copy(update=folders),
            }
        )

    @property
    def is_database(self) -> bool:
        return self.repository.tool in DATABASE_TOOLS

    @model_validator(mode="after")
    def _files_or_database(self) -> Self:
        against = self.verify_against
        for_files = {
            "verify_against.live": against.live,
            "verify_against.command": against.command,
            "sample": self.sample,
            "not_kept": self.not_kept,
        }
        for_databases = {
            "verify_against.queries": against.queries,
            "verify_against.database": against.database,
        }
        wrong = for_files if self.is_database else for_databases
        for name, value in wrong.items():
            if value:
                other = "files" if self.is_database else "databases"
                raise ValueError(f"`{name}` belongs to repositories of {other}")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.coverage and not self.sample:
            raise ValueError("`coverage` belongs to a `sample`: without one, all is verified")
        if self.shards:
            self._require_shardable()
        if self.sample and self.verify_against.command:
            raise ValueError("a `command` needs the whole data: leave `sample` out")
        if self.sample and not (self.verify_against.manifests or self.verify_against.live):
            raise ValueError(
                "a `sample` needs verify_against.manifests or .live: the files are chosen from it"
            )
        return self

    def _require_shardable(self) -> None:
        against = self.verify_against
        if self.repository.tool != "restic":
            raise ValueError("`shards` belong to repositories of restic")
        if not against.manifests or against.live or against.command:
            raise ValueError(
                "`shards` are verified against `verify_against.manifests` and nothing else: `live` "
                "data change between shards, a `command` needs the whole data"
            )
        if self.sample:
            raise ValueError("`shards` verify everything: leave `sample` out")
