"""One shard of a backup of files: a range of its paths, restored and compared by itself."""

import os
from pathlib import Path

from recovery_pipelines import manifest
from recovery_pipelines.audits.reader import Backup
from recovery_pipelines.audits.restic import Restic
from recovery_pipelines.audits.verification import Outcome, expectation, part_outcome
from recovery_pipelines.drills.audit_trial import HEADROOM
from recovery_pipelines.drills.preparation import require_resources
from recovery_pipelines.drills.run import DrillRun
from recovery_pipelines.drills.shard_round import Round
from recovery_pipelines.drills.tree_trial import BLOCK_BYTES, TreeTrial
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.plan import DrillSpec

COMPARISON = "comparison.parquet"
"""What a shard found, in its folder: the merge needs it."""


def reference_of(spec: DrillSpec, backup: Backup) -> Path:
    """The manifest of a backup. RecoveryError if there is none."""
    against = spec.audited.verify_against
    found = expectation(against, backup, Path()).file
    if found is None:
        raise RecoveryError(
            f"no manifest for {backup.name} in {against.manifests}: without one its shards cannot "
            "be told apart; leave `shards` out"
        )
    return found


class ShardTrial(TreeTrial):
    """Verifies everything in its range, and restores as little else as it can."""

    reader: Restic
    part: manifest.Part

    def __init__(self, run: DrillRun, reader: Restic, backup: Backup, joined: Round) -> None:
        super().__init__(run, reader, backup, bytes.fromhex(joined.seed))
        assert run.spec.shard is not None
        self.shard = run.spec.shard
        self.range = joined.range_of(self.shard.number)
        run.shard = {
            "number": self.shard.number,
            "of": self.shard.count,
            "round": joined.round_id,
            "manifest": joined.manifest,
        }
        start, end = self.range.start, self.range.end
        run.measured |= {
            "shard": self.shard.number,
            "shards": self.shard.count,
            "range_start": start.decode(),
            "range_end": None if end is None else end.decode(),
        }

    @property
    def holds_marks(self) -> bool:
        return os.fsencode(self.target.marks or "") in self.range

    def _plan(self) -> None:
        self.expected = expectation(self.target.verify_against, self.backup, Path())
        self.whole = reference_of(self.run.spec, self.backup)
        self.part_file = self.run.manifest_path("expected-part")
        self.part = manifest.take_part(
            self.whole, self.range, self.part_file, share=self.shard.count
        )
        found = manifest.read_info(self.whole)["digest"]
        if found != self.run.shard["manifest"]:
            raise RecoveryError(f"{self.whole} was replaced while {self.shard} read it: repeat")

    def _fetch(self, staging: Path) -> Path:
        return self.reader.restore_range(self.backup, staging, self.range, self.part.linked_outside)

    def _look_ahead(self) -> None:
        others = manifest.sizes_of(self.whole, self.part.linked_outside)
        entries = self.part.entries + len(others)
        needed = self.part.size_bytes + sum(others.values()) + entries * BLOCK_BYTES
        require_resources(self.run.sandbox.path, int(needed * HEADROOM), int(entries * HEADROOM))

    def _compared(self) -> Outcome:
        captured, found_file = (self.run.manifest_path(name) for name in ("found", "found-part"))
        manifest.capture(self.tree, captured)
        found = manifest.take_part(captured, self.range, found_file, like=self.part)
        comparison = manifest.write_part(
            (self.part_file, self.part),
            (found_file, found),
            self.shard.number - 1,
            self.shard.count,
            self.whole,
            self.run.folder / COMPARISON,
            ignore=self._not_compared(),
        )
        files, size_bytes = self.part.files, self.part.size_bytes
        return part_outcome(
            comparison, self.expected, self.backup, self.part_file, files, size_bytes
        )

    def _judge_coverage(self) -> None:
        """Everything is verified each time."""
