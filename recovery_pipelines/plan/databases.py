"""The plan's targets that are databases."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from recovery_pipelines.plan.base import Strict
from recovery_pipelines.plan.targets import Objectives, engine_names

_OF_POSTGRES = ("pgbackrest", "pg_basebackup")
ENGINES = {
    "sqlite": ("sqlite",),
    "redis": ("redis_rdb", "redis_aof"),
    "dagster": ("tar", "restic", "borg", "rsync", *_OF_POSTGRES),
    "postgres": _OF_POSTGRES,
}
"""The backup tools of each kind of database, the usual one first."""
KIND_OF = {engine: kind for kind in ("sqlite", "redis", "postgres") for engine in ENGINES[kind]}
"""Of the tools that back up databases alone: what the detection matrix makes for them."""


class Database(Strict):
    """The data: a file of your own, which is only read, or rows that are made."""

    kind: Literal["sqlite", "redis", "postgres", "dagster"]
    """What it is; `dagster` is the storage of a Dagster instance, such as this one: in PostgreSQL
    with the `engines` pgbackrest and pg_basebackup, in SQLite with the others."""
    path: Path | None = None
    """Your own, which is only read: a SQLite database, a `dump.rdb`, or a `DAGSTER_HOME`, whose
    `dagster.yaml` says where its storage is. A PostgreSQL cluster is made; your own backups of
    one are audited instead."""
    rows: Annotated[int, Field(ge=100)] = 1000
    """How many rows or keys are made where there is no `path`; at least 100. Of `dagster`: a run
    for each 50 and a materialization for each 10."""
    seed: int = 1
    """The same seed makes the same rows."""


class DatabaseTarget(Strict):
    """A database that must be recoverable. The drill runs a copy of it in its sandbox."""

    database: Database
    engines: Annotated[tuple[str, ...], BeforeValidator(engine_names)] = ()
    """`sqlite`; `redis_rdb`, `redis_aof`; `pgbackrest`, `pg_basebackup`; for `dagster` those two
    and those of file trees. One drill for each; left out: the first of the kind."""
    increments: Annotated[int, Field(ge=3, le=100)] = 3
    """3 to 100 backups after the first one, with changes between them."""
    objectives: Objectives = Objectives()

    @property
    def not_kept(self) -> tuple[str, ...]:
        return ()

    def kind_for(self, engine: str) -> str:
        """The kind of database that a drill with `engine` runs."""
        kind = self.database.kind
        return "dagster_postgres" if kind == "dagster" and engine in _OF_POSTGRES else kind

    @model_validator(mode="after")
    def _engines_fit(self) -> Self:
        if self.database.kind == "postgres" and self.database.path:
            raise ValueError(
                "a postgres database is made, not taken from a `path`: your own backups of one are "
                "audited (give the target a `repository` instead)"
            )
        known = ENGINES[self.database.kind]
        unknown = [name for name in self.engines if name not in known]
        if unknown:
            raise ValueError(
                f"engine {unknown[0]!r} does not back up {self.database.kind}; "
                f"allowed: {', '.join(known)}"
            )
        if not self.engines:
            return self.model_copy(update={"engines": known[:1]})
        return self

    def anchored(self, folder: Path) -> "DatabaseTarget":
        """With a path that does not depend on where we are."""
        if self.database.path is None:
            return self
        path = folder / self.database.path.expanduser()
        return self.model_copy(update={"database": self.database.model_copy(update={"path": path})})
