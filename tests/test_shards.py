"""An audit in shards says what one in one piece says, and nothing less than all shards passes."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from recovery_pipelines import manifest
from recovery_pipelines.analysis.history import load_history
from recovery_pipelines.audits.cover import Pattern, boundary, coarsened, cover
from recovery_pipelines.build import build_definitions
from recovery_pipelines.drills import merged_audit
from recovery_pipelines.drills.record import DrillRecord, read_record, result_folders, results_of
from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.drills.shard_round import due_merges, open_shards
from recovery_pipelines.evidence import keys
from recovery_pipelines.evidence.verify import verify
from recovery_pipelines.manifest import store
from recovery_pipelines.manifest.ranges import ancestors, order
from recovery_pipelines.orchestration.jobs import shards_job_name
from recovery_pipelines.orchestration.shards import partition_of, shard_key
from recovery_pipelines.plan import DrillSpec, load_plan
from recovery_pipelines.verdict import Verdict
from tests.audit_effects import verdict_of
from tests.plans import MONTH

SECRET = "the-password-of-the-team"
NAMES = [b"a", b"a-b", b"a.b", b"ab", b"st*r[1]?\\q", "ü".encode(), b"z z", b"-"]


def at(root: Path, path: bytes) -> Path:
    return root / os.fsdecode(path)


def make_tree(root: Path, chance: random.Random, entries: int = 60) -> None:
    """Folders in folders, names that sort oddly or are no text, links of both kinds."""
    root.mkdir(parents=True)
    folders, files = [b""], []
    for number in range(entries):
        name = chance.choice(NAMES) + (b"%d" % number if chance.random() < 0.7 else b"")
        name = b"no\xfftext%d" % number if number % 20 == 7 else name
        path = os.path.join(chance.choice(folders), name)  # noqa: PTH118
        if os.path.lexists(at(root, path)):
            continue
        kind = chance.random()
        if kind < 0.25:
            at(root, path).mkdir()
            folders.append(path)
        elif kind < 0.4 and files:
            at(root, path).hardlink_to(at(root, chance.choice(files)))
        elif kind < 0.45:
            at(root, path).symlink_to("nowhere")
        else:
            at(root, path).write_bytes(chance.randbytes(chance.choice((0, 10, 5000))))
            files.append(path)


def damage_tree(root: Path, chance: random.Random, count: int = 12) -> None:
    """Damage of every kind, anywhere."""
    for number in range(count):
        path = chance.choice([path for path in sorted(root.rglob("*")) if not path.is_symlink()])
        kind = number % 6
        if kind == 0 and path.is_file():
            path.write_bytes(b"other content")
        elif kind == 1:
            path.chmod(0o701 if path.is_dir() else 0o604)
        elif kind == 2:
            new = (path if path.is_dir() else path.parent) / f"-new{number}"
            new.hardlink_to(path) if path.is_file() else new.write_bytes(b"new")
        elif kind == 3 and path.is_file():
            content = path.read_bytes()  # no link any more
            path.unlink()
            path.write_bytes(content)
        elif kind == 4 and path.is_dir():
            shutil.rmtree(path)
            path.write_bytes(b"a file instead of a folder")
        elif path.is_file():
            path.unlink()


def break_folders(file: Path, chance: random.Random) -> None:
    """As if some folders with many entries could not be listed completely."""
    reader = store.Reader(file)
    (table,) = reader.tables()
    paths, errors = table["path"].to_pylist(), table["error"].to_pylist()
    for path in chance.sample(paths, 3):
        errors[paths.index(chance.choice(ancestors(path) or [path]))] = "EIO: cannot be listed"
    index = table.schema.get_field_index("error")
    table = table.set_column(index, table.schema.field(index), pa.array(errors, pa.string()))
    store.write(file, iter([table]), reader.about)


# --- ranges of paths and their patterns -------------------------------------------------------


def matches(patterns: list[Pattern], path: bytes) -> bool:
    """As restic does: a pattern of the path or of a folder above it, `*` within one name only."""
    for pattern, is_prefix in patterns:
        for each in (path, *ancestors(path)):
            same_depth = each.count(b"/") == pattern.count(b"/")
            if each == pattern or (is_prefix and same_depth and each.startswith(pattern) and each):
                return True
    return False


def restored(patterns: list[Pattern], paths: list[bytes]) -> set[bytes]:
    """What a tool brings back: what matches, and the folders above that."""
    found = {path for path in paths if matches(patterns, path)}
    return found | {above for path in found for above in ancestors(path)}


def patterns_for(wanted: manifest.PathRange, types: dict[bytes, str]) -> list[Pattern]:
    """The patterns for a range of a tree, as a tool lists it that knows text alone."""
    children: dict[bytes, dict[bytes, bool]] = {folder: {} for folder in boundary(wanted)}
    for path, kind in types.items():
        above, name = os.path.split(path)
        if path and above in children:
            children[above][name.decode("utf-8", "replace").encode()] = kind == "directory"
    return cover(wanted, children)


def types_of(file: Path) -> dict[bytes, str]:
    table = manifest.read(file, ["path", "type"])
    return dict(zip(*(column.to_pylist() for column in table.columns), strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_patterns_bring_back_a_range_and_little_else(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    make_tree(tmp_path / "tree", chance, 250)
    file = tmp_path / "tree.parquet"
    manifest.capture(tmp_path / "tree", file)
    types = types_of(file)
    lost = chance.choice(sorted(types, key=order)[1:])  # not in the backup, with all beneath it
    there = {p: kind for p, kind in types.items() if lost not in (p, *ancestors(p))}
    ranges = manifest.cut(file, chance.choice((2, 3, 8, 20)))
    assert [sum(path in each for each in ranges) for path in types] == [1] * len(types)
    for wanted in ranges:
        found = restored(patterns_for(wanted, there), list(there))
        assert not {path for path in there if path in wanted} - found
        others = {path for path in found if path not in wanted and types[path] != "directory"}
        assert len({path for path in others if b"no\xfftext" not in path}) <= 1, wanted


def test_a_flat_folder_needs_few_patterns() -> None:
    names = {b"file%06d" % number: False for number in range(20_000)}
    wanted = manifest.PathRange(b"file002345", b"file014567")
    patterns = cover(wanted, {b"": names})
    assert len(patterns) < 50
    assert {n for n in names if matches(patterns, n)} == {n for n in names if n in wanted}
    assert coarsened([b"a/b/c", b"a/b/d", b"a/e/f", b"g/h"], 2) == [b"a", b"g"]


@pytest.mark.parametrize("seed", range(8))
def test_parts_merged_are_the_comparison_in_one_piece(seed: int, tmp_path: Path) -> None:
    """Differences, what is undecided and every count, whatever is damaged and however it is cut,
    where each part sees no more of the tree than is restored for it."""
    chance = random.Random(seed)
    tree, expected, found = (tmp_path / name for name in ("tree", "expected", "found"))
    make_tree(tree, chance, 120)
    manifest.capture(tree, expected)
    if seed % 3:
        damage_tree(tree, chance)
    manifest.capture(tree, found)
    types = types_of(found)
    if seed % 2:
        break_folders(expected, chance)
    whole = manifest.compare(expected, found)
    count = chance.choice((2, 3, 5, 8))
    files = []
    for number, wanted in enumerate(manifest.cut(expected, count)):
        names = [f"{name}-{number}" for name in ("want", "partly", "all", "have", "shard")]
        want, partly, everything, have, shard = (tmp_path / name for name in names)
        part = manifest.take_part(expected, wanted, want, share=count)
        patterns = [*patterns_for(wanted, types), *((path, False) for path in part.linked_outside)]
        copy(tree, restored(patterns, list(types)), partly)
        manifest.capture(partly, everything)
        got = manifest.take_part(everything, wanted, have, like=part)
        alone = manifest.write_part((want, part), (have, got), number, count, expected, shard)
        assert differing(alone) <= differing(whole)
        files.append(shard)
    merged = manifest.merge(files)
    assert merged.differences.to_pylist() == whole.differences.to_pylist()
    assert merged.undecided_entries.equals(whole.undecided_entries)
    assert (merged.counts, merged.entries, merged.verified, merged.identical) == (
        whole.counts,
        whole.entries,
        whole.verified,
        whole.identical,
    )
    assert bool(seed % 3 or seed % 2) is not merged.identical


def differing(comparison: manifest.Comparison) -> set[tuple[bytes, str]]:
    return {(row["path"], row["kind"]) for row in comparison.differences.to_pylist()}


def copy(tree: Path, paths: set[bytes], output: Path) -> None:
    """Some entries of a tree with all that they are, links between them included."""
    output.mkdir()
    listed = b"\0".join(b"./" + path for path in sorted(paths, key=order))
    tar = ["tar", "--format=posix", "--null", "--verbatim-files-from", "--no-recursion"]
    packed = subprocess.run(
        [*tar, "-cT", "-"], cwd=tree, input=listed, check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "-xpf", "-", "-C", str(output)], input=packed, check=True)


# --- audits of a real repository ----------------------------------------------------------------

COUNT = 3


class Team:
    """A team's restic repository, audited in shards and in one piece."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0

    def spec(self, host: str, shards: int | None = COUNT) -> DrillSpec:
        plan = self.folder / "recovery.yaml"
        plan.write_text(
            f"""
data_home: home{"" if shards else "-whole"}
targets:
  mine:
    repository: {{restic: repository, password: env:TEAM_PASSWORD, match: "{host}"}}
    verify_against: {{manifests: manifests}}
    objectives: {{rpo_seconds: 360000}}
    marks: marks
    generations: 0
    shards: {shards or "null"}
teams: {{admin_team: [{{file: messages.jsonl}}]}}
test_framework:
  test_scenarios:
    backup_audit: {{automation: {{notification: [admin_team]}}}}
  test_execution:
    execution_controls: {{parallel_tests: true, retry_attempts: 0}}
"""
        )
        (spec,) = load_plan(plan).drills()
        return spec

    def run(self, spec: DrillSpec) -> DrillRecord:
        self.runs += 1
        return carry_out_steps(spec, MONTH, f"run-{self.runs}")

    def snapshot(self, tree: Path, host: str, truth: Path) -> None:
        """Back up a tree; what it should hold is said by the manifest `truth`."""
        restic(self.folder, "backup", "--host", host, str(tree))
        listed = json.loads(restic(self.folder, "snapshots", "--json", "--host", host))
        name = listed[-1]["short_id"]
        shutil.copyfile(truth, self.folder / "manifests" / f"{name}.parquet")


def restic(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["restic", "--no-cache", "-r", str(folder / "repository"), *words],
        env=os.environ | {"RESTIC_PASSWORD": SECRET},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backups of a tree and, under the same manifest, of the damaged tree."""
    team, chance = Team(tmp_path_factory.mktemp("team")), random.Random(5)
    tree, truth = team.folder / "live", team.folder / "truth.parquet"
    make_tree(tree, chance)
    (tree / "marks").write_text(f"{datetime.now(UTC):%FT%TZ}\n")
    manifest.capture(tree, truth)
    (team.folder / "manifests").mkdir()
    restic(team.folder, "init")
    for host in ("clean", "damaged"):
        if host == "damaged":
            damage_tree(tree, chance)
        team.snapshot(tree, host, truth)
    return team.folder


@pytest.fixture
def team(backed_up: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Team:
    monkeypatch.setenv("TEAM_PASSWORD", SECRET)
    for name in ("repository", "manifests"):
        shutil.copytree(backed_up / name, tmp_path / name)
    return Team(tmp_path)


def the_same(merged: DrillRecord, whole: DrillRecord) -> None:
    """The verdict, each check's, what is wrong, and every measure that is not a time."""
    assert merged.verdict is whole.verdict, (merged.reason, whole.reason)
    verdicts = [{check.name: check.verdict for check in each.checks} for each in (merged, whole)]
    assert verdicts[0] == verdicts[1]
    tables = [pd.read_parquet(each.folder / "wrong_entries.parquet") for each in (merged, whole)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    varies = re.compile("_seconds$|_operations$|^(read|write|peak_memory)_|^(seed|run_id|started)")
    metrics = [
        {name: value for name, value in each.metrics.items() if not varies.search(name)}
        for each in (merged, whole)
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("host", ["clean", "damaged"])
def test_an_audit_in_shards_says_what_one_in_one_piece_says(host: str, team: Team) -> None:
    spec = team.spec(host)
    parts = [team.run(part) for part in spec.shards]
    merged, whole = team.run(spec), team.run(team.spec(host, None))
    assert whole.verdict is (Verdict.PASS if host == "clean" else Verdict.FAIL), whole.reason
    the_same(merged, whole)
    assert [each["verdict"] for each in merged.content["merged"]] == [p.verdict for p in parts]
    assert sum(part.metrics["files_verified"] for part in parts) == whole.metrics["files_verified"]
    assert any("hard links" in text for text in merged.not_tested)
    home = spec.plan.data_home
    key = keys.read_public(home / "evidence" / "key.pub.pem")
    found = verify(home, key, results=result_folders(home))
    assert found.is_verified
    assert len(found.verified) == COUNT + 1
    assert list(load_history(home)["drill"]) == [spec.name]


def test_what_cannot_be_restored_fails_whichever_shard_meets_it(team: Team) -> None:
    packs = (team.folder / "repository" / "data").glob("*/*")
    pack = max(packs, key=lambda path: path.stat().st_size)
    content = bytearray(pack.read_bytes())
    content[len(content) // 3] ^= 0xFF
    pack.chmod(0o600)
    pack.write_bytes(content)
    spec = team.spec("clean")
    found = [team.run(part).verdict for part in spec.shards]
    assert Verdict.FAIL in found
    merged = team.run(spec)
    assert merged.verdict is Verdict.FAIL, merged.reason
    assert verdict_of(merged, "backup_restores") is Verdict.FAIL
    assert verdict_of(merged, "data_match") is Verdict.FAIL


def change_round(spec: DrillSpec, **changes: Any) -> None:
    path = spec.plan.data_home / "rounds" / f"{spec.name}.{MONTH}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_nothing_less_than_all_shards_of_one_round_passes(team: Team) -> None:
    spec = team.spec("clean")
    first, second, third = spec.shards

    def refused(why: str) -> None:
        record = team.run(spec)
        assert record.verdict is Verdict.ERROR
        assert re.search(why, record.reason), record.reason

    refused("no shard of .* has run")
    records = [team.run(first), team.run(second)]
    refused("shard 3: it has not run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEAM_PASSWORD", "wrong")
        assert team.run(third).verdict is Verdict.ERROR
        refused("shard 3: .* no key found")
    records.append(team.run(third))
    runs = {str(number): record.run_id for number, record in enumerate(records, 1)}
    record = records[1].folder / "metrics.parquet"
    content = record.read_bytes()
    record.write_bytes(content[:-1])
    refused("shard 2: .* not as it was sealed")
    record.write_bytes(content)
    change_round(spec, runs=runs | {"3": runs["2"]})
    refused("shard 3: run run-3 has not ended")
    change_round(spec, runs=runs | {"2": "killed"})
    refused("shard 2: run killed has not ended, was killed")
    change_round(spec, runs=runs, manifest="another")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merged_audit, "reference_of", lambda *_: pytest.fail("no shard is left"))
        refused("shard 1: .* of another shard")
    change_round(spec, manifest=records[0].content["shard"]["manifest"])
    assert team.run(spec).verdict is Verdict.PASS
    again = team.run(first)  # the round is over: this begins another one
    assert again.content["shard"]["round"] != records[0].content["shard"]["round"]
    refused("shard 2: it has not run; shard 3: it has not run")
    change_round(spec, runs=runs | {"1": again.run_id})
    refused("shard 2: .* of another shard; shard 3: .* of another shard")


def test_shards_join_the_backup_that_the_first_one_chose(team: Team, backed_up: Path) -> None:
    spec = team.spec("[cl]*", 2)
    first, second = spec.shards
    backup = team.run(first).metrics["backup"]
    team.snapshot(backed_up / "live", "later", backed_up / "truth.parquet")
    assert team.run(second).metrics["backup"] == backup
    assert team.run(spec).metrics["backup"] == backup
    assert team.run(first).metrics["backup"] != backup


def test_a_killed_shard_keeps_the_audit_from_passing_until_it_has_run_again(team: Team) -> None:
    spec = team.spec("clean", 2)
    for part in spec.shards[1:]:
        team.run(part)
    code = (
        "import sys; from pathlib import Path; from recovery_pipelines.plan import load_plan; "
        "from recovery_pipelines.drills.scenarios import carry_out_steps; "
        "(spec,) = load_plan(Path(sys.argv[1])).drills(); "
        f"carry_out_steps(spec.shards[0], {MONTH!r}, 'killed')"
    )
    journal = results_of(spec.shards[0], MONTH, "killed") / "journal.jsonl"
    victim = subprocess.Popen([sys.executable, "-c", code, team.folder / "recovery.yaml"])
    while not journal.exists() or "audits" not in journal.read_text():
        assert victim.poll() is None
        time.sleep(0.01)
    victim.kill()
    victim.wait()
    assert due_merges(spec, lambda month: True) == []
    ((month, key),) = due_merges(spec, lambda month: False)
    assert month == MONTH
    record = team.run(spec)
    assert record.verdict is Verdict.ERROR
    assert "shard 1: run killed has not ended, was killed" in record.reason
    assert open_shards(spec, MONTH) == spec.shards[:1]
    team.run(spec.shards[0])
    assert [each != key for _, each in due_merges(spec, lambda month: False)] == [True]
    assert team.run(spec).verdict is Verdict.PASS
    assert due_merges(spec, lambda month: False) == []
    assert not list((spec.plan.data_home / "sandboxes").iterdir())


def test_dagster_runs_shards_as_partitions_and_merges_them(team: Team) -> None:
    spec = team.spec("damaged", 2)
    definitions = build_definitions(spec.plan)
    job = definitions.resolve_job_def(shards_job_name(spec))
    sensor = definitions.get_sensor_def("recovery_audit_merge")
    with dg.DagsterInstance.ephemeral() as instance:

        def look() -> dg.SensorResult:
            context = dg.build_sensor_context(instance=instance, definitions=definitions)
            found = sensor(context)
            assert isinstance(found, dg.SensorResult)
            return found

        failed = []
        for part in spec.shards:
            done = job.execute_in_process(
                instance=instance, partition_key=partition_of(part, MONTH), raise_on_error=False
            )
            if not done.success:
                failed.append(part)
                tell(definitions, instance, done)
        assert failed
        (request,) = look().run_requests or []
        assert (request.job_name, request.partition_key) == (spec.name, MONTH)
        waiting = instance.create_run_for_job(
            job, tags={"dagster/partition/month": MONTH, "dagster/partition/shard": "2of2"}
        )
        assert not look().run_requests
        instance.delete_run(waiting.run_id)
        done = definitions.resolve_job_def(spec.name).execute_in_process(
            instance=instance, partition_key=MONTH, raise_on_error=False
        )
        checks = {each.check_name: each.passed for each in done.get_asset_check_evaluations()}
        assert not look().run_requests
        held = instance.get_materialized_partitions(shard_key(spec))
    (message, *_) = (spec.plan.data_home / "messages.jsonl").read_text().splitlines()
    assert json.loads(message)["subject"] == f"recovery drill {failed[0].name} {MONTH}: failed"
    assert held == {str(partition_of(part, MONTH)) for part in spec.shards}
    assert read_record(results_of(spec, MONTH, done.run_id)).verdict is Verdict.FAIL
    assert checks == {"backup_restores": True, "data_match": False} | {
        name: True for name in ("backup_is_fresh", "marks_are_fresh") if name in checks
    }


def tell(
    definitions: dg.Definitions, instance: dg.DagsterInstance, done: dg.ExecuteInProcessResult
) -> None:
    """As the daemon does when a run has failed."""
    failure = next(event for event in done.all_events if event.is_run_failure)
    context = dg.build_run_status_sensor_context(
        sensor_name="recovery_drill_failure",
        dagster_event=failure,
        dagster_instance=instance,
        dagster_run=instance.get_run_by_id(done.run_id),
    ).for_run_failure()
    definitions.get_sensor_def("recovery_drill_failure")(context)
