"""The effect of each key of the plan that is about audited repositories; see test_plan."""

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from recovery_pipelines import manifest
from recovery_pipelines.build import build_definitions
from recovery_pipelines.drills.record import DrillRecord
from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.errors import PlanError
from recovery_pipelines.evidence.signoff import standings
from recovery_pipelines.orchestration.jobs import shards_job_name
from recovery_pipelines.plan import DrillSpec
from recovery_pipelines.verdict import Verdict
from tests.database_team import SECRET, cluster
from tests.plans import MONTH, make_plan, make_spec
from tests.scenario_effects import Effect, effect_notification, effect_schedule

GROUP = "test_framework__test_scenarios__backup_audit"
TARGET = "targets__mine"
FILES = 40


def make_data(folder: Path, files: int = FILES) -> Path:
    """A folder of small files with whole seconds, as plain tar keeps them."""
    data = folder / "live"
    (data / "sub").mkdir(parents=True, exist_ok=True)
    for number in range(files):
        (data / "sub" / f"file{number:02}").write_bytes(b"%d" % number * 50)
    for path in (*data.rglob("*"), data):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return data


def archive(folder: Path, name: str, age_seconds: float = 0.0) -> Path:
    """One backup of the data by plain tar, and its manifest."""
    for place in ("archives", "manifests"):
        (folder / place).mkdir(exist_ok=True)
    made = folder / "archives" / f"{name}.tar"
    with tarfile.open(made, "w", format=tarfile.GNU_FORMAT) as file:
        file.add(folder / "live", arcname=".")
    manifest.capture(folder / "live", folder / "manifests" / f"{name}.tar.parquet")
    then = made.stat().st_mtime - age_seconds
    os.utime(made, (then, then))
    return made


def audit_spec(folder: Path, **changes: Any) -> DrillSpec:
    """An audit of the archives in `folder`, with changes of its target."""
    target: dict[str, Any] = {
        "repository": {"directory": str(folder / "archives")},
        "verify_against": {"manifests": str(folder / "manifests")},
    }
    own = {key: value for key, value in changes.items() if not key.startswith("test_framework")}
    rest = {key: value for key, value in changes.items() if key not in own}
    return make_spec(folder, "repository_audit", **{TARGET: target | own} | rest)


def audited(folder: Path, run_id: str = "run", **changes: Any) -> DrillRecord:
    return carry_out_steps(audit_spec(folder, **changes), MONTH, run_id)


def found_by(record: DrillRecord, name: str) -> str:
    return next(check.found for check in record.checks if check.name == name)


def verdict_of(record: DrillRecord, name: str) -> Verdict:
    return next(check.verdict for check in record.checks if check.name == name)


def effect_directory(tmp_path: Path, *_: object) -> None:
    make_data(tmp_path)
    archive(tmp_path, "one")
    assert audited(tmp_path).verdict is Verdict.PASS


def effect_tool(tool: str) -> Effect:
    def effect(tmp_path: Path, *_: object) -> None:
        secret = {} if tool == "pg_dump" else {"password": "env:PATH"}
        spec = audit_spec(
            tmp_path, repository={tool: str(tmp_path / "none")} | secret, verify_against={}
        )
        assert spec.engine == tool
        record = carry_out_steps(spec, MONTH, "run")
        assert record.verdict is Verdict.ERROR
        assert f"there is no folder {tmp_path}/none" in record.reason

    return effect


def effect_stanza(tmp_path: Path, *_: object) -> None:
    for name in ("one", "two"):
        (tmp_path / "repository" / "backup" / name).mkdir(parents=True)
    keys = {"repository": {"pgbackrest": str(tmp_path / "repository")}, "verify_against": {}}
    assert "stanzas: one, two; name one" in audited(tmp_path, **keys).reason
    keys["repository"]["stanza"] = "two"
    assert "stanza two: missing stanza data" in audited(tmp_path, "again", **keys).reason


def effect_restore_point(tmp_path: Path, *_: object) -> None:
    """A point that is not in the WAL is not reached."""
    repository = {
        "pgbackrest": str(cluster().repository),
        "password": "env:TEAM_PASSWORD",
        "restore_point": "nowhere",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEAM_PASSWORD", SECRET)
        record = audited(tmp_path, repository=repository, verify_against={}, generations=0)
    assert record.verdict is Verdict.FAIL
    assert "target was reached" in found_by(record, "backup_restores")


def dump_audit(tmp_path: Path, database: str | None) -> DrillRecord:
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    (dumps / "one.sql").write_text(
        "create table t (n int);\n-- PostgreSQL database dump complete\n"
    )
    query = "select count(*) = 1, count(*) from pg_class where relname = 't'"
    reference = {"queries": [query], "database": database}
    return audited(tmp_path, repository={"pg_dump": str(dumps)}, verify_against=reference)


def effect_queries(tmp_path: Path, *_: object) -> None:
    assert dump_audit(tmp_path, None).verdict is Verdict.PASS
    with pytest.raises(PlanError, match="databases"):
        audit_spec(tmp_path, verify_against={"queries": ["select true"]})


def effect_database(tmp_path: Path, *_: object) -> None:
    """The dump is not restored into this one."""
    assert dump_audit(tmp_path, "postgres").verdict is Verdict.FAIL


def effect_password(tmp_path: Path, *_: object) -> None:
    repository = {"restic": str(tmp_path), "password": "env:NO_SUCH_VARIABLE"}
    assert "NO_SUCH_VARIABLE" in audited(tmp_path, repository=repository).reason
    with pytest.raises(PlanError, match="password"):
        audit_spec(tmp_path, repository={"restic": "r"})


def effect_environment(tmp_path: Path, *_: object) -> None:
    repository = {"borg": str(tmp_path), "environment": ["NO_SUCH_VARIABLE"]}
    assert "NO_SUCH_VARIABLE" in audited(tmp_path, repository=repository).reason


def effect_path(tmp_path: Path, *_: object) -> None:
    make_data(tmp_path)
    archive(tmp_path, "one")
    manifest.capture(tmp_path / "live" / "sub", tmp_path / "manifests" / "one.tar.parquet")
    repository = {"directory": str(tmp_path / "archives")}
    assert audited(tmp_path, "all", repository=repository).verdict is Verdict.FAIL
    below = audited(tmp_path, "below", repository=repository | {"path": "sub"})
    assert below.verdict is Verdict.PASS, below.reason


def effect_match(tmp_path: Path, *_: object) -> None:
    make_data(tmp_path)
    archive(tmp_path, "web-1", age_seconds=100)
    archive(tmp_path, "mail-1")
    repository = {"directory": str(tmp_path / "archives"), "match": "web-*"}
    assert audited(tmp_path, repository=repository).metrics["backup"] == "web-1.tar"


def effect_manifests(tmp_path: Path, *_: object) -> None:
    data = make_data(tmp_path)
    archive(tmp_path, "one")
    (data / "sub" / "file01").write_text("changed after the backup")
    assert audited(tmp_path).metrics["verified_against"] == "manifest"
    record = audited(tmp_path, "again", verify_against={})
    assert record.verdict is Verdict.UNVERIFIED
    assert record.metrics["verified_against"] == "the tool's own record"


def effect_live(tmp_path: Path, *_: object) -> None:
    """What changed since the backup is counted apart; what did not must be right."""
    data = make_data(tmp_path)
    made = archive(tmp_path, "one")
    later = made.stat().st_mtime + 0.05
    while (data / "sub" / "file01").stat().st_ctime <= later:
        (data / "sub" / "file01").write_text("changed after the backup")
    record = audited(tmp_path, verify_against={"live": str(data)})
    assert record.verdict is Verdict.PASS, record.reason
    assert record.metrics["entries_changed_since"] == 1
    assert record.metrics["files_verified"] == FILES - 1
    assert "1 entries that changed since the backup" in record.not_tested


def effect_command(tmp_path: Path, *_: object) -> None:
    make_data(tmp_path)
    archive(tmp_path, "one")
    for name, verdict in (("sub/file01", Verdict.PASS), ("sub/absent", Verdict.FAIL)):
        reference = {"command": ["test", "-f", name]}
        assert audited(tmp_path, name[4:], verify_against=reference).verdict is verdict


def effect_snapshot(tmp_path: Path, *_: object) -> None:
    make_data(tmp_path)
    for number in range(12):
        archive(tmp_path, f"n{number:02}", age_seconds=100 - number)
    newest = {audited(tmp_path, f"n{n}").metrics["backup"] for n in range(3)}
    drawn = {audited(tmp_path, f"r{n}", snapshot="random").metrics["backup"] for n in range(6)}
    stalest = [audited(tmp_path, f"s{n}", snapshot="stalest").metrics["backup"] for n in range(3)]
    assert newest == {"n11.tar"}
    assert len(drawn) > 1
    assert len(set(stalest)) == 3


def effect_sample(tmp_path: Path, *_: object) -> None:
    """A stricter statement needs more files; the draw follows from the evidence's head."""
    make_data(tmp_path)
    archive(tmp_path, "one")
    plans = ({"bad_share": 0.5}, {"bad_share": 0.1}, {"bad_share": 0.1, "confidence": 0.5})
    records = [audited(tmp_path, f"n{n}", sample=plan) for n, plan in enumerate(plans)]
    few, many, unsure = (record.metrics["files_verified"] for record in records)
    assert few < many > unsure
    assert [record.verdict for record in records] == [Verdict.PASS] * 3
    assert records[0].metrics["files_wrong_at_most"] < 0.5 * FILES
    assert len({record.metrics["seed"] for record in records}) == 3
    assert "(by lot)" not in found_by(records[0], "data_match")


def effect_by(tmp_path: Path, *_: object) -> None:
    """By bytes, the one file that holds nearly all of them is always looked at."""
    data = make_data(tmp_path)
    (data / "large").write_bytes(bytes(10_000_000))
    os.utime(data / "large", (1_700_000_000, 1_700_000_000))
    archive(tmp_path, "one")
    record = audited(tmp_path, sample={"bad_share": 0.5, "by": "bytes"})
    assert record.metrics["bytes_verified"] >= 10_000_000
    assert record.metrics["bytes_wrong_at_most"] < 0.5 * record.metrics["bytes_in_backup"]
    effect_by_folders(tmp_path)


def effect_by_folders(tmp_path: Path) -> None:
    """Each folder is looked at, however small."""
    data = make_data(tmp_path)
    (data / "rare").mkdir()
    (data / "rare" / "one").write_text("1")
    for path in (data / "rare" / "one", data / "rare", data):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    archive(tmp_path, "folders")
    (data / "rare" / "one").write_text("another")
    manifest.capture(data, tmp_path / "manifests" / "folders.tar.parquet")
    repository = {"directory": str(tmp_path / "archives"), "match": "folders*"}
    sample = {"bad_share": 0.3, "by": "folders"}
    record = audited(tmp_path, "folders", sample=sample, repository=repository)
    assert "rare/one" in found_by(record, "data_match")
    assert record.metrics["files_verified"] < FILES


def effect_coverage(tmp_path: Path, *_: object) -> None:
    """Files never verified come first, so a few audits reach all of them."""
    make_data(tmp_path)
    archive(tmp_path, "one")
    keys = {"sample": {"bad_share": 0.5}, "coverage": {"files": 20, "days": 30}}
    name = "every_file_verified_in_time"
    first = audited(tmp_path, "first", **keys)
    assert verdict_of(first, name) is Verdict.UNVERIFIED
    assert audited(tmp_path, "second", **keys) is not None
    assert verdict_of(audited(tmp_path, "third", **keys), name) is Verdict.PASS
    with pytest.raises(PlanError, match="sample"):
        audit_spec(tmp_path, coverage=keys["coverage"])


def effect_shards(tmp_path: Path, *_: object) -> None:
    """A partition for each month and shard; what the key does with data is in test_shards."""
    keys: dict[str, Any] = {
        "repository": {"restic": str(tmp_path), "password": "env:PATH"},
        "verify_against": {"manifests": str(tmp_path)},
        "shards": 4,
    }
    spec = audit_spec(tmp_path, **keys)
    assert [str(part.shard) for part in spec.shards] == [f"shard {n} of 4" for n in range(1, 5)]
    definitions = build_definitions(spec.plan)
    partitions = definitions.resolve_job_def(shards_job_name(spec)).partitions_def
    assert partitions is not None
    assert f"{MONTH}|4of4" in partitions.get_partition_keys()
    for wrong in (
        {"repository": {"directory": str(tmp_path)}},
        {"sample": {"bad_share": 0.1}},
        {"verify_against": {}},
        {"verify_against": {"manifests": "m", "live": "l"}},
    ):
        with pytest.raises(PlanError, match="shards"):
            audit_spec(tmp_path, **keys | wrong)


def effect_generations(tmp_path: Path, *_: object) -> None:
    make_data(tmp_path)
    for number, age in enumerate((300, 200, 100)):
        made = archive(tmp_path, f"n{number}", age_seconds=age)
        if number:
            damage(made)
    found = {
        tries: audited(tmp_path, f"t{tries}", generations=tries).metrics.get("last_good_backup")
        for tries in (0, 1, 2)
    }
    assert found == {0: None, 1: None, 2: "n0.tar"}


def effect_marks(tmp_path: Path, *_: object) -> None:
    data = make_data(tmp_path)
    (data / "marks").write_text("2020-01-01T00:00:00Z\n2021-01-01T00:00:00Z\n")
    os.utime(data / "marks", (1_700_000_000, 1_700_000_000))
    archive(tmp_path, "one")
    keys = {"marks": "marks", "objectives": {"rpo_seconds": 3600}}
    record = audited(tmp_path, **keys)
    assert verdict_of(record, "marks_are_fresh") is Verdict.STALE
    assert verdict_of(record, "backup_is_fresh") is Verdict.PASS
    assert record.metrics["rpo_seconds"] > 5 * 365 * 86_400


def damage(made: Path) -> None:
    """Change one byte of one file's content within an archive."""
    content = bytearray(made.read_bytes())
    content[content.index(b"3939")] ^= 1
    status = made.stat()
    made.write_bytes(content)
    os.utime(made, (status.st_atime, status.st_mtime))


def effect_name(tmp_path: Path, *_: object) -> None:
    assert audit_spec(tmp_path).name == "repository_audit_mine_directory"
    target = {"repository": {"directory": "archives"}}
    plan = make_plan(tmp_path, **{TARGET: target, f"{GROUP}__scenarios": []})
    assert not [spec for spec in plan.drills() if spec.group == "backup_audit"]


def effect_description(tmp_path: Path, *_: object) -> None:
    scenario = {"name": "repository_audit", "description": "Can we?"}
    spec = audit_spec(tmp_path, **{f"{GROUP}__scenarios": [scenario]})
    assert build_definitions(spec.plan).resolve_job_def(spec.name).description == "Can we?"


def effect_steps_and_reporting(tmp_path: Path, *_: object) -> None:
    make_data(tmp_path)
    archive(tmp_path, "one")
    steps = {f"{GROUP}__scenarios": [{"name": "repository_audit", "steps": ["audit_restore"]}]}
    quiet = {f"{GROUP}__automation__reporting": []}
    record, second = audited(tmp_path, "first", **steps), audited(tmp_path, "second", **quiet)
    assert record.verdict is Verdict.UNVERIFIED, record.reason
    assert "step audit_verification is left out of the plan" in record.not_tested
    both, none = ({path.name for path in r.folder.iterdir()} for r in (record, second))
    assert both - none == {"journal.jsonl", "metrics.parquet"}
    assert len(standings(second.folder.parents[3])) == 2


def effect_criteria(tmp_path: Path, *_: object) -> None:
    criteria = {"recoverability": ["backup_restores"]}
    scenario = {"name": "repository_audit", "validation_criteria": criteria}
    spec = audit_spec(tmp_path, **{f"{GROUP}__scenarios": [scenario]})
    keys = build_definitions(spec.plan).resolve_asset_graph().asset_check_keys
    assert {key.name for key in keys if key.asset_key.path[0] == spec.name} == {"backup_restores"}


_SCENARIO = "test_framework.test_scenarios.backup_audit"
AUDIT_EFFECTS: dict[str, Effect] = {
    f"targets.{key}": effect
    for key, effect in {
        "repository.restic": effect_tool("restic"),
        "repository.borg": effect_tool("borg"),
        "repository.directory": effect_directory,
        "repository.pg_dump": effect_tool("pg_dump"),
        "repository.pgbackrest": effect_tool("pgbackrest"),
        "repository.stanza": effect_stanza,
        "repository.restore_point": effect_restore_point,
        "repository.password": effect_password,
        "repository.environment": effect_environment,
        "repository.path": effect_path,
        "repository.match": effect_match,
        "verify_against.manifests": effect_manifests,
        "verify_against.live": effect_live,
        "verify_against.command": effect_command,
        "verify_against.queries": effect_queries,
        "verify_against.database": effect_database,
        "snapshot": effect_snapshot,
        "sample.bad_share": effect_sample,
        "sample.confidence": effect_sample,
        "sample.by": effect_by,
        "coverage.files": effect_coverage,
        "coverage.days": effect_coverage,
        "shards": effect_shards,
        "generations": effect_generations,
        "marks": effect_marks,
    }.items()
} | {
    f"{_SCENARIO}.scenarios.name": effect_name,
    f"{_SCENARIO}.scenarios.description": effect_description,
    f"{_SCENARIO}.scenarios.steps": effect_steps_and_reporting,
    f"{_SCENARIO}.scenarios.validation_criteria.recoverability": effect_criteria,
    f"{_SCENARIO}.automation.schedule": effect_schedule(
        "backup_audit", **{TARGET: {"repository": {"directory": "archives"}}}
    ),
    f"{_SCENARIO}.automation.notification": effect_notification(audit_spec, "backup_audit"),
    f"{_SCENARIO}.automation.reporting": effect_steps_and_reporting,
}
