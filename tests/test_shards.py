"""An audit in shards says what an audit in one piece says, and nothing less than all shards passes."""

import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recovery_pipelines import manifest
from recovery_pipelines.drills.record import DrillRecord
from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.plan import DrillSpec, load_plan
from recovery_pipelines.verdict import Verdict
from tests.plans import MONTH

SECRET = "the-password-of-the-team"


class Team:
    """A team with a restic repository, and an audit of it in shards and in one piece."""

    def __init__(self, folder: Path, shards: int = 3) -> None:
        self.folder, self.count = folder, shards
        self.data, self.repository = folder / "live", folder / "repository"
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        self.restic("init")
        self.runs = 0

    def restic(self, *words: str) -> str:
        return subprocess.run(
            ["restic", "--no-cache", "-r", str(self.repository), *words],
            env=os.environ | {"RESTIC_PASSWORD": SECRET},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def back_up(self) -> str:
        """As the team's job would; returns the snapshot's name."""
        self.restic("backup", "--host", "team", str(self.data))
        listed = self.restic("snapshots", "--compact").splitlines()
        name = [line.split()[0] for line in listed if " team" in line][-1]
        manifest.capture(self.data, self.manifests / f"{name}.parquet")
        return name

    def spec(self, shards: int | None, **changes: Any) -> DrillSpec:
        plan = self.folder / f"{shards or 'whole'}.yaml"
        keys = {"generations": 0, "shards": shards or "null", **changes}
        plan.write_text(
            f"""
data_home: home
targets:
  {"mine" if shards else "whole"}:
    repository: {{restic: {self.repository}, password: env:TEAM_PASSWORD}}
    verify_against: {{manifests: manifests}}
    objectives: {{rpo_seconds: 360000}}
"""
            + "".join(f"    {key}: {value}\n" for key, value in keys.items())
        )
        (spec,) = load_plan(plan).drills()
        return spec

    def run(self, spec: DrillSpec) -> DrillRecord:
        self.runs += 1
        return carry_out_steps(spec, MONTH, f"run-{self.runs}")

    def whole(self, **changes: Any) -> DrillRecord:
        return self.run(self.spec(None, **changes))

    def merged(self, **changes: Any) -> DrillRecord:
        spec = self.spec(self.count, **changes)
        for part in spec.shards:
            self.run(part)
        return self.run(spec)


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Team:
    monkeypatch.setenv("TEAM_PASSWORD", SECRET)
    return Team(tmp_path)


def make_tree(root: Path, chance: random.Random, files: int = 60) -> None:
    """Folders in folders, names that sort oddly or are no text, links of both kinds."""
    folders = [b""]
    names = [b"a", b"a-b", b"a.b", b"ab", b"st*r[1]?\\q", "ü".encode(), b"no\xfftext", b"z z", b"-"]
    os.makedirs(os.fsencode(root))
    made: list[bytes] = []
    for number in range(files):
        name = chance.choice(names) + (b"%d" % number if chance.random() < 0.7 else b"")
        path = os.path.join(os.fsencode(root), chance.choice(folders), name)
        if os.path.lexists(path):
            continue
        kind = chance.random()
        if kind < 0.25:
            os.mkdir(path)
            folders.append(os.path.relpath(path, os.fsencode(root)))
        elif kind < 0.35 and made:
            os.link(chance.choice(made), path)
        elif kind < 0.4:
            os.symlink(b"nowhere", path)
        else:
            with open(path, "wb") as file:
                file.write(chance.randbytes(chance.choice((0, 10, 5000))))
            made.append(path)


def the_same(merged: DrillRecord, whole: DrillRecord) -> None:
    assert merged.verdict is whole.verdict, (merged.reason, whole.reason)
    of = lambda record: {check.name: check.verdict for check in record.checks}
    assert of(merged) == of(whole)
    tables = [
        pd.read_parquet(record.folder / "wrong_entries.parquet") for record in (merged, whole)
    ]
    pd.testing.assert_frame_equal(*tables)


def test_quick(team: Team) -> None:
    make_tree(team.data, random.Random(1))
    team.back_up()
    merged, whole = team.merged(), team.whole()
    print(merged.reason, merged.messages, merged.checks)
    assert whole.verdict is Verdict.PASS, whole.reason
    the_same(merged, whole)
