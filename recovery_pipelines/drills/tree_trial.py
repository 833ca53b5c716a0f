"""A backup of files: restored, whole or a sample of it, and compared with what it should hold."""

import os
from datetime import UTC, datetime
from pathlib import Path

from recovery_pipelines.audits.coverage import CoverageLedger
from recovery_pipelines.audits.reader import Contents, TreeReader, Unrestorable
from recovery_pipelines.audits.verification import (
    Bounds,
    Outcome,
    Sampling,
    bounds,
    draw,
    expectation,
    files_of,
    newest_mark,
    verify,
    verify_record,
)
from recovery_pipelines.drills.audit_trial import HEADROOM, SHOWN, Trial
from recovery_pipelines.drills.preparation import require_resources
from recovery_pipelines.errors import RecoveryError, SandboxError
from recovery_pipelines.sandbox import Tree
from recovery_pipelines.tools import run_tool
from recovery_pipelines.verdict import CheckResult, Verdict

BLOCK_BYTES = 4096


class TreeTrial(Trial):
    """The restored tree lies in the sandbox."""

    reader: TreeReader
    contents = Contents("", {}, 0)
    tree: Path
    outcome: Outcome | None = None
    sampling: Sampling | None = None
    """None if all is verified."""
    added: tuple[bytes, ...] = ()
    """Files whose last verification is longest ago."""

    @property
    def chosen(self) -> list[bytes] | None:
        return None if self.sampling is None else sorted({*self.sampling.drawn, *self.added})

    def _restore(self) -> None:
        self._plan()
        run, chosen = self.run, self.chosen
        staging = run.sandbox.tree("restored")
        self._look_ahead()
        with run.phase("fetch"), run.working(f"restored {self.backup.name}") as working:
            self.tree = self._fetch(staging.path)
            working("all" if chosen is None else f"{len(chosen):,} files", 1.0)
        if not _is_folder_of(staging, self.tree):
            raise Unrestorable("the restored data lack the audited folder")

    def _look_ahead(self) -> None:
        """Learn what will be restored, and refuse it if there is no room."""
        self.contents = self.reader.contents(self.backup)
        self._require_room()

    def _fetch(self, staging: Path) -> Path:
        return self.reader.restore(self.backup, self.contents, staging, self.chosen)

    def _plan(self) -> None:
        """Find out what the backup should hold, and draw what is looked at."""
        target, scratch = self.target, self.run.sandbox.tree("manifests").path
        self.expected = expectation(target.verify_against, self.backup, scratch)
        if target.sample is None:
            return
        if self.expected.file is None:
            raise RecoveryError(
                f"no manifest for {self.backup.name} in {target.verify_against.manifests}: without "
                "one no sample can be drawn; leave `sample` out, or give `live`"
            )
        paths, sizes = files_of(self.expected.file)
        self.sampling = draw(paths, sizes, target.sample, self.seed)
        if target.coverage:
            rest = sorted(set(paths) - set(self.sampling.drawn))
            self.added = tuple(self._ledger().stalest(rest, target.coverage.files))

    def _require_room(self) -> None:
        sizes = self.contents.sizes_bytes
        needed, entries = sum(sizes.values()), self.contents.entries
        chosen = self.chosen
        if chosen is not None and self.target.repository.tool != "directory":
            names = {os.fsdecode(path) for path in chosen}
            needed = sum(size for name, size in sizes.items() if name in names)
            entries = len(names)
        needed += entries * BLOCK_BYTES
        require_resources(self.run.sandbox.path, int(needed * HEADROOM), int(entries * HEADROOM))

    def verify(self) -> CheckResult:
        with self.run.phase("verify"):
            self.outcome = self._compared()
        self.wrong = self.outcome.bad
        self._judge_command()
        return self._judge()

    def newest_mark(self) -> datetime:
        assert self.target.marks
        mark, tree = os.fsencode(self.target.marks), self.tree
        if self.sampling is not None and not os.path.lexists(tree / self.target.marks):
            staging = self.run.sandbox.tree("marks").path
            tree = self.reader.restore(self.backup, self.contents, staging, [mark])
        return newest_mark(tree, self.target.marks)

    def measures(self) -> dict[str, object]:
        outcome = self.outcome
        if outcome is None:
            return {}
        self._judge_coverage()
        run, sample = self.run, self.target.sample
        run.recovered_files, run.recovered_bytes = outcome.verified, outcome.verified_bytes
        run.compared.append(
            {
                "backup": self.backup.name,
                "entries": outcome.files,
                "compared": outcome.verified,
                "undecided": outcome.undecided,
                "is_sample": outcome.verified < outcome.files,
                "not_compared": list(self._not_compared()),
            }
        )
        known = self._bounds()
        return {
            "verified_against": self.expected.source,
            "files_in_backup": outcome.files,
            "bytes_in_backup": outcome.size_bytes,
            "files_verified": outcome.verified,
            "bytes_verified": outcome.verified_bytes,
            "entries_wrong": len(outcome.bad),
            "entries_changed_since": outcome.changed_since,
            "files_wrong_at_most": known.files,
            "bytes_wrong_at_most": known.bytes,
            "confidence": sample.confidence if sample else 1.0,
        }

    def close(self) -> None:
        self.run.sandbox.tree("restored").clear()

    # --- judging ------------------------------------------------------------------------

    def _compared(self) -> Outcome:
        if self.expected.file is None:
            return verify_record(self.contents, self.tree)
        scratch = self.run.sandbox.tree("manifests").path
        ignore = self._not_compared()
        return verify(self.expected, self.backup, self.tree, self.chosen, ignore, scratch)

    def _bounds(self) -> Bounds:
        assert self.outcome is not None
        return bounds(self.outcome, self.sampling)

    def _not_compared(self) -> tuple[str, ...]:
        promised = self.target.not_kept
        if os.geteuid() == 0 or "owner" in promised:
            return promised
        note = "aspect owner: only root can restore it"
        if note not in self.run.left_out:
            self.run.left_out.append(note)
        return (*promised, "owner")

    def _judge(self) -> CheckResult:
        outcome, source = self.outcome, self.expected.source
        assert outcome is not None
        expected = f"every entry that is looked at is as {source} says"
        words = f"against {source}: {outcome.verified:,} of {outcome.files:,} files looked at"
        if self.sampling and self.added:
            words += f" ({len(self.sampling.drawn):,} by lot, {len(self.added):,} longest ago)"
        if outcome.bad:
            shown = [
                f"{os.fsdecode(path)!a} {what}" for path, what in list(outcome.bad.items())[:SHOWN]
            ]
            words += f"; {len(outcome.bad):,} wrong: {'; '.join(shown)}{self._bound()}"
            return CheckResult("data_match", Verdict.FAIL, expected, words)
        if outcome.changed_since:
            words += f"; {outcome.changed_since:,} changed since the backup and prove nothing"
            self.run.left_out.append(
                f"{outcome.changed_since:,} entries that changed since the backup"
            )
        if outcome.undecided:
            words += f"; {outcome.undecided:,} could not be told"
            return CheckResult("data_match", Verdict.UNVERIFIED, expected, words)
        if not outcome.verified:
            words += ": nothing proven"
            return CheckResult("data_match", Verdict.UNVERIFIED, expected, words)
        words += self._bound()
        if self.expected.file is None:
            if not self.target.verify_against.command:
                words += "; names and sizes only, the content is not verified: give a reference"
                return CheckResult("data_match", Verdict.UNVERIFIED, expected, words)
            words += "; names and sizes only, the content is what the command says"
            self.run.left_out.append("content beyond what the command looks at")
        return CheckResult("data_match", Verdict.PASS, expected, words)

    def _bound(self) -> str:
        """What a sample says of all files."""
        outcome, known = self.outcome, self._bounds()
        assert outcome is not None
        if self.sampling is None or outcome.verified >= outcome.files:
            return ""
        sure = f"({self.sampling.sample.confidence:.0%})"
        if known.files is not None:
            return f"; at most {known.files:,} of {outcome.files:,} files are wrong {sure}"
        return f"; at most {known.bytes:,} of {outcome.size_bytes:,} bytes are wrong {sure}"

    def _judge_command(self) -> None:
        command = self.target.verify_against.command
        if not command:
            return
        run = self.run
        done = run_tool(
            command,
            cwd=self.tree,
            env=run.sandbox.environment,
            timeout_seconds=run.remaining_seconds(),
        )
        said = done.said[-200:]
        verdict = Verdict.FAIL if done.returncode else Verdict.PASS
        found = f"exit code {done.returncode}" + (f": {said}" if said else "")
        run.checks.append(
            CheckResult("command_succeeds", verdict, f"{command[0]} ends with exit code 0", found)
        )

    def _judge_coverage(self) -> None:
        """Note what was verified, and see whether every file was in time."""
        coverage, file = self.target.coverage, self.expected.file
        if self.outcome is None or file is None:
            return
        ledger, now = self._ledger(), datetime.now(UTC)
        ledger.note(self.outcome.good, now)
        ledger.save()
        if coverage is None:
            return
        never, late = ledger.outside(files_of(file)[0], coverage.days, now)
        found = f"{never:,} never, {late:,} longer ago, of {self.outcome.files:,}"
        verdict = Verdict.UNVERIFIED if never else Verdict.STALE if late else Verdict.PASS
        expected = f"every file was verified within {coverage.days} days"
        self.run.checks.append(CheckResult("every_file_verified_in_time", verdict, expected, found))

    def _ledger(self) -> CoverageLedger:
        spec = self.run.spec
        return CoverageLedger(spec.plan.data_home / "coverage" / f"{spec.name}.parquet")


def _is_folder_of(staging: Tree, tree: Path) -> bool:
    """Whether it lies there itself: a link in its place would have other data verified."""
    relative = tree.relative_to(staging.path)
    try:
        staging.subtree(b"" if relative == Path() else os.fsencode(relative))
    except (OSError, SandboxError):
        return False
    return True
