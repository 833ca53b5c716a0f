"""Audits of repositories that the plain tools made: what is right, what is wrong, and that nothing
in a repository is ever touched."""

import hashlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner

from recovery_pipelines import manifest
from recovery_pipelines.audits.coverage import CoverageLedger
from recovery_pipelines.build import build_definitions
from recovery_pipelines.cli.audit import command
from recovery_pipelines.drills import tree_trial
from recovery_pipelines.drills.record import DrillRecord
from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.evidence import keys
from recovery_pipelines.evidence.verify import verify
from recovery_pipelines.plan import DrillSpec, load_plan
from recovery_pipelines.verdict import Verdict
from tests.audit_effects import FILES, found_by, make_data, verdict_of
from tests.mounts import needs_root, read_only, small_disk
from tests.plans import MONTH

SECRET = "the-password-of-the-team"
TOOLS = ("restic", "borg", "directory")
DOCUMENTATION = Path(__file__).parents[1] / "docs" / "audits.md"
HOOKS = dict(
    re.findall(r"```sh\n\s*# after (\w+).*?\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
)


class Team:
    """A team with data, a repository that its own tool writes, and five lines of YAML."""

    def __init__(self, folder: Path, tool: str) -> None:
        self.folder, self.tool = folder, tool
        self.data = make_data(folder)
        self.repository = folder / "repository"
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        self.repository.mkdir()
        if tool == "restic":
            self.run("restic", "init", "-r", self.repository)
        elif tool == "borg":
            self.run("borg", "init", "--encryption=repokey", self.repository)

    def run(self, *argv: object, cwd: Path | None = None) -> str:
        secrets = {"RESTIC_PASSWORD": SECRET, "BORG_PASSPHRASE": SECRET}
        home = {"BORG_BASE_DIR": str(self.folder / "borg-home"), "HOME": str(self.folder)}
        return subprocess.run(
            [str(word) for word in argv],
            cwd=cwd or self.folder,
            env=os.environ | secrets | home,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def back_up(self, name: str) -> None:
        """As the team's own job would, with the manifest as its hook."""
        if self.tool == "restic":
            host = ("--host", "team", "--no-cache", "-r", self.repository)
            self.run("restic", "backup", *host, self.data)
            listed = self.run("restic", "snapshots", "--compact", "--no-cache", *host[3:])
            name = [line.split()[0] for line in listed.splitlines() if " team" in line][-1]
        elif self.tool == "borg":
            self.run("borg", "create", f"{self.repository}::{name}", ".", cwd=self.data)
        else:
            name = f"{name}.tar.gz"
            self.run(
                *("tar", "--format=posix", "-czf", self.repository / name, "-C", self.data, ".")
            )
        manifest.capture(self.data, self.manifests / f"{name}.parquet")

    def spec(self, **changes: Any) -> DrillSpec:
        secret = "" if self.tool == "directory" else ", password: env:TEAM_PASSWORD"
        plan = self.folder / "recovery.yaml"
        plan.write_text(
            f"""
data_home: home
targets:
  mine:
    repository: {{{self.tool}: {changes.get("place", self.repository)}{secret}}}
    verify_against: {changes.get("against", "{manifests: manifests}")}
    sample: {changes.get("sample", "null")}
    objectives: {{rpo_seconds: 3600}}
"""
        )
        (spec,) = load_plan(plan).drills()
        return spec

    def audit(self, **changes: Any) -> DrillRecord:
        spec = self.spec(**changes)
        run_id = f"run-{len(list(self.folder.rglob('record.json')))}"
        return carry_out_steps(spec, MONTH, run_id)

    def digest(self) -> str:
        return digest(self.repository)


def digest(folder: Path) -> str:
    """Of every name, mode, time and byte."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found.update(f"{path} {status.st_mode} {status.st_mtime_ns}".encode())
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


@pytest.fixture(params=TOOLS)
def team(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Team:
    monkeypatch.setenv("TEAM_PASSWORD", SECRET)
    return Team(tmp_path, request.param)


def test_a_sound_repository_passes_untouched_and_a_wrong_file_fails(team: Team) -> None:
    team.back_up("first")
    before = team.digest()
    assert team.audit().verdict is Verdict.PASS
    sampled = team.audit(sample="{bad_share: 0.2}")
    assert sampled.verdict is Verdict.PASS, sampled.reason
    assert 0 < sampled.metrics["files_verified"] < sampled.metrics["files_in_backup"]
    assert team.digest() == before
    (team.data / "sub" / "file07").write_bytes(b"not what the manifest of the job will say")
    team.back_up("second")
    newest = max(team.manifests.iterdir(), key=lambda path: path.stat().st_mtime)
    good = min(team.manifests.iterdir(), key=lambda path: path.stat().st_mtime)
    newest.write_bytes(good.read_bytes())
    record = team.audit()
    assert record.verdict is Verdict.FAIL
    assert "sub/file07" in found_by(record, "data_match")
    assert record.metrics["last_good_backup"] == good.name.removesuffix(".parquet")
    assert record.metrics["loss_window_seconds"] > 0
    key = keys.read_public(team.folder / "home" / "evidence" / "key.pub.pem")
    assert verify(team.folder / "home", key).is_verified


def test_damage_in_the_repository_is_found(team: Team) -> None:
    team.back_up("first")
    data = team.repository if team.tool == "directory" else team.repository / "data"
    largest = max(
        (path for path in data.rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    largest.chmod(0o600)
    content = bytearray(largest.read_bytes())
    content[len(content) // 3] ^= 0xFF
    largest.write_bytes(content)
    before = team.digest()
    record = team.audit()
    assert record.verdict in (Verdict.FAIL, Verdict.ERROR), record.reason
    assert record.reason
    assert team.digest() == before


def lose_password(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_PASSWORD", "wrong")


def remove(team: Team, _: pytest.MonkeyPatch) -> None:
    team.repository.rename(team.folder / "elsewhere")


def halve(team: Team, _: pytest.MonkeyPatch) -> None:
    for name in ("config", "index.1", "index.5", "data"):
        for path in team.repository.glob(name):
            path.rename(team.folder / name)


def empty(team: Team, _: pytest.MonkeyPatch) -> None:
    for path in list(team.repository.iterdir()):
        path.rename(team.folder / path.name)


BAD_CASES: dict[str, Callable[[Team, pytest.MonkeyPatch], None]] = {
    "wrong password": lose_password,
    "missing": remove,
    "half deleted": halve,
    "empty": empty,
}


@pytest.mark.parametrize("case", BAD_CASES)
def test_a_repository_that_cannot_be_read_is_an_error_in_one_line(
    team: Team, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if team.tool == "directory" and case in ("wrong password", "half deleted"):
        return  # it has neither a password nor parts
    team.back_up("first")
    BAD_CASES[case](team, monkeypatch)
    before = team.digest()
    record = team.audit()
    assert record.verdict is Verdict.ERROR
    assert len(record.messages) == 1
    assert "\n" not in record.messages[0]
    assert SECRET not in record.reason
    assert team.digest() == before


def test_a_lock_of_the_team_is_neither_waited_for_nor_broken(team: Team) -> None:
    team.back_up("first")
    if team.tool == "borg":
        (team.repository / "lock.exclusive").mkdir()
        (team.repository / "lock.exclusive" / "other@1.2-0").touch()
    elif team.tool == "restic":
        (team.repository / "locks" / ("a" * 64)).write_bytes(b"another program's lock")
    before = team.digest()
    assert team.audit().verdict is Verdict.PASS
    assert team.digest() == before


def test_what_fails_while_another_program_holds_the_repository_is_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prune may be what removed the data."""
    monkeypatch.setenv("TEAM_PASSWORD", SECRET)
    team = Team(tmp_path, "restic")
    team.back_up("first")
    for pack in (team.repository / "data").glob("*/*"):
        pack.rename(tmp_path / pack.name)
    assert team.audit().verdict is Verdict.FAIL
    (team.repository / "locks" / ("a" * 64)).write_bytes(b"another program's lock")
    record = team.audit()
    assert record.verdict is Verdict.ERROR
    assert "restic holds a lock" in record.reason


@needs_root
def test_a_read_only_repository_is_enough(team: Team) -> None:
    team.back_up("first")
    with read_only(team.repository):
        record = team.audit()
    assert record.verdict is Verdict.PASS, record.reason


@needs_root
def test_a_full_disk_is_an_error_before_the_restore_and_in_the_middle(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    (team.data / "large").write_bytes(random.Random(1).randbytes(12_000_000))
    team.back_up("first")
    before = team.digest()
    with small_disk(team.folder / "home", "8M"):
        record = team.audit()
        assert record.verdict is Verdict.ERROR
        assert "not enough room" in record.reason
        monkeypatch.setattr(tree_trial, "require_resources", lambda *_: None)  # room goes after it
        record = team.audit()
        assert record.verdict is Verdict.ERROR
        (message,) = record.messages
        assert re.search("no space left on device|wrote only", message, re.IGNORECASE)
        assert "\n" not in message
    assert team.digest() == before


def test_without_a_reference_nothing_is_proven(team: Team) -> None:
    team.back_up("first")
    record = team.audit(against="{}")
    assert record.verdict is Verdict.UNVERIFIED
    assert "content is not verified" in found_by(record, "data_match")


def test_a_reference_that_cannot_be_sampled_is_refused(team: Team) -> None:
    team.back_up("first")
    record = team.audit(against="{manifests: .}", sample="{bad_share: 0.2}")
    assert record.verdict is Verdict.ERROR
    assert "no manifest for" in record.reason


def test_the_command_and_the_ui_show_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = Team(tmp_path, "directory")
    team.back_up("first")
    spec = team.spec()
    done = CliRunner().invoke(command, ["--plan", str(tmp_path / "recovery.yaml"), "mine"])
    assert done.exit_code == 0, done.output
    assert "repository_audit_mine_directory" in done.output
    definitions = build_definitions(spec.plan)
    graph = definitions.resolve_asset_graph()
    repository = dg.AssetKey(["repositories", "mine"])
    assert repository in graph.external_asset_keys
    assert graph.get(dg.AssetKey([spec.name, "audit_restore"])).parent_keys == {repository}
    sensor = definitions.get_sensor_def("recovery_repositories")
    with dg.DagsterInstance.ephemeral() as instance:
        found = sensor(dg.build_sensor_context(instance=instance))
    assert isinstance(found, dg.SensorResult)
    (observation,) = found.asset_events
    assert observation.metadata["newest"].value == "first.tar.gz"


def test_a_stale_backup_is_stale(tmp_path: Path) -> None:
    team = Team(tmp_path, "directory")
    team.back_up("first")
    made = next(team.repository.iterdir())
    os.utime(made, (made.stat().st_mtime - 7200,) * 2)
    record = team.audit()
    assert verdict_of(record, "backup_is_fresh") is Verdict.STALE
    assert record.verdict is Verdict.STALE


def test_the_ledger_plans_a_million_files(tmp_path: Path) -> None:
    """Never verified first, then the stalest."""
    paths = [b"folder/%07d" % number for number in range(1_000_000)]
    now = datetime(2026, 11, 24, tzinfo=UTC)
    ledger = CoverageLedger(tmp_path / "ledger.parquet")
    ledger.note(paths[:500_000], now - timedelta(days=40))
    ledger.note(paths[:250_000], now)
    ledger.save()
    again = CoverageLedger(tmp_path / "ledger.parquet")
    chosen = again.stalest(paths, 600_000)
    assert set(chosen[:500_000]) == set(paths[500_000:])
    assert set(chosen[500_000:]) <= set(paths[250_000:500_000])
    assert again.outside(paths, 30, now) == (500_000, 250_000)


@pytest.mark.parametrize("tool", ["restic", "borg"])
def test_the_hooks_in_the_documentation_work_as_they_stand(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_PASSWORD", SECRET)
    team = Team(tmp_path, tool)
    hook = HOOKS[tool].replace("/srv/data", str(team.data)).replace("/srv", str(tmp_path))
    programs = f"export PATH={Path(sys.executable).parent}:$PATH\n"
    places = f"export RESTIC_REPOSITORY={team.repository} BORG_REPO={team.repository}\n"
    team.run("bash", "-euo", "pipefail", "-c", programs + places + hook)
    path = f", path: {team.data}" if tool == "borg" else ""
    record = team.audit(place=f"{team.repository}{path}")
    assert record.verdict is Verdict.PASS, record.reason
    assert record.metrics["verified_against"] == "manifest"
    assert record.metrics["files_verified"] == FILES
