"""A backup of PostgreSQL: restored into a server of its own, read whole, and asked."""

from datetime import datetime
from typing import Any

import pandas as pd

from recovery_pipelines.audits.databases import DatabaseReader
from recovery_pipelines.audits.reader import moment
from recovery_pipelines.audits.scratch import ScratchServer
from recovery_pipelines.drills.audit_trial import HEADROOM, SHOWN, Trial
from recovery_pipelines.drills.preparation import require_resources
from recovery_pipelines.errors import EngineError, MissingProgram, RecoveryError
from recovery_pipelines.verdict import CheckResult, Verdict

_OWN = "postgres"
_ENTRIES = 3000
"""Files of an empty cluster, and some."""


class DatabaseTrial(Trial):
    """The server runs from the restore until `close`."""

    reader: DatabaseReader
    _server: ScratchServer | None = None
    _told: dict[str, Any] | None = None

    def _restore(self) -> None:
        run, reader = self.run, self.reader
        reader.programs(self.backup)
        needed = int(reader.needed_bytes(self.backup) * HEADROOM)
        require_resources(run.sandbox.path, needed, _ENTRIES)
        self._server = server = ScratchServer(
            run.sandbox, reader.server_user, run.remaining_seconds, reader.read_only
        )
        run.cleanup.callback(self.close)
        with run.phase("fetch"), run.working(f"restored {self.backup.name}") as working:
            reader.restore(self.backup, server)
            working("all", 1.0)

    def verify(self) -> CheckResult:
        self.run.checks.append(self._intact())
        expected = "the team's SQL holds in the restored data, and every row can be read"
        told, queries = self._answers(), self.target.verify_against.queries
        if "error" in told:
            raise EngineError(f"the restored database cannot be asked: {told['error']}")
        if "unreadable" in told:
            self.wrong = {b"rows": told["unreadable"]}
            return CheckResult("data_match", Verdict.FAIL, expected, told["unreadable"])
        self.run.keep("tables", self._tables())
        words = f"{len(self._tables()):,} tables, {self._tables()['rows'].sum():,} rows read"
        answers = list(zip(queries, told["answers"], strict=True))
        self.wrong = {
            query.encode(): _words(answer) for query, answer in answers if not _holds(answer)
        }
        shown = [f"{query!r}: {_words(answer)}" for query, answer in answers]
        if self.wrong:
            untrue = [
                line for line, (_, answer) in zip(shown, answers, strict=True) if not _holds(answer)
            ]
            words += f"; {len(untrue)} of {len(queries)} do not hold: {'; '.join(untrue[:SHOWN])}"
            return CheckResult("data_match", Verdict.FAIL, expected, words)
        if not queries:
            words += "; nothing says what they should be: give `queries`"
            return CheckResult("data_match", Verdict.UNVERIFIED, expected, words)
        self.run.left_out.append("content beyond what the queries look at")
        return CheckResult("data_match", Verdict.PASS, expected, f"{words}; {'; '.join(shown)}")

    def newest_mark(self) -> datetime:
        answer = self._answers()["mark"]
        try:
            (value,) = answer
            return moment(value)
        except (TypeError, ValueError):
            raise RecoveryError(f"`marks` gave {_words(answer)}, not one time") from None

    def measures(self) -> dict[str, object]:
        if self._told is None:
            return {}
        tables = self._tables()
        rows = int(tables["rows"].sum())
        self.run.compared.append(
            {
                "backup": self.backup.name,
                "entries": rows,
                "compared": rows,
                "undecided": 0,
                "is_sample": False,
                "not_compared": ["content beyond what the queries look at"],
            }
        )
        against = "queries" if self.target.verify_against.queries else "nothing"
        return {
            "verified_against": against,
            "tables": len(tables),
            "rows": rows,
            "queries": len(self.target.verify_against.queries),
            "entries_wrong": len(self.wrong),
        }

    def close(self) -> None:
        if self._server:
            self._server.machine.end()
            self._server = None

    def _intact(self) -> CheckResult:
        """Whether amcheck finds pages, rows and indexes of all databases consistent."""
        assert self._server is not None
        name, expected = "pages_and_indexes_intact", "amcheck finds nothing, in any database"
        try:
            program = self.reader.programs(self.backup) / "pg_amcheck"
        except MissingProgram as error:
            return CheckResult(name, Verdict.UNVERIFIED, expected, str(error))
        options = ("--all", "--install-missing", "--heapallindexed", "--parent-check")
        done = self._server.client(program, *options)
        verdict = {0: Verdict.PASS, 2: Verdict.FAIL}.get(done.returncode, Verdict.UNVERIFIED)
        found = done.said[:500] or f"exit code {done.returncode}"
        return CheckResult(name, verdict, expected, found)

    def _answers(self) -> dict[str, Any]:
        if self._told is None:
            assert self._server is not None
            against = self.target.verify_against
            self._told = self._server.ask(
                self._database(),
                queries=against.queries,
                mark=self.target.marks or "",
                describe=True,
            )
        return self._told

    def _database(self) -> str:
        """Which one is asked."""
        assert self._server is not None
        chosen = self.target.verify_against.database or self.reader.database
        if chosen:
            return chosen
        told = self._server.ask(_OWN)
        if "error" in told:
            raise EngineError(f"the restored server cannot be asked: {told['error']}")
        others = [name for name in told["databases"] if name != _OWN]
        if len(others) > 1:
            raise EngineError(
                f"{self.backup.name} holds the databases {', '.join(others)}: name one as "
                "verify_against.database in the plan"
            )
        return str(others[0]) if others else _OWN

    def _tables(self) -> pd.DataFrame:
        """One row per table: `table`, `rows`, `digest`."""
        contents = self._answers().get("contents", {})
        rows = []
        for name, what in contents.items():
            if name.startswith("rows "):
                count, digest = what.split(" rows, ")
                rows.append((name.removeprefix("rows "), int(count), digest))
        return pd.DataFrame(rows, columns=["table", "rows", "digest"])


def _holds(answer: Any) -> bool:
    return isinstance(answer, list) and bool(answer) and answer[0] is True


def _words(answer: Any) -> str:
    if isinstance(answer, dict):
        return str(answer["error"])
    return ", ".join(map(str, answer)) if answer else "nothing"
