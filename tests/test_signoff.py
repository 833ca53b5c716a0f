"""Manual verification: nothing passes before a named person has signed, and a signature stays."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from recovery_pipelines import evidence
from recovery_pipelines.analysis.history import load_history
from recovery_pipelines.build import build_definitions
from recovery_pipelines.drills.failure import tell_sign_off
from recovery_pipelines.drills.record import result_folders
from recovery_pipelines.drills.recoveries import carry_out
from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.evidence import keys, statement
from recovery_pipelines.evidence.chain import append_about, check_chain, read_chain
from recovery_pipelines.evidence.signoff import Standing, sign_off, standings
from recovery_pipelines.reporting.publish import write_reports
from recovery_pipelines.verdict import Verdict
from tests.plans import MONTH, content, make_spec
from tests.test_evidence import chain_path, is_accepted, record_of, results, seal

RECOVERY = str(Path(sys.executable).with_name("recovery"))
CHECKS = ["critical_functionality", "user_access"]
FIELDS = ["test_results", "issues_found", "resolutions"]
MANUAL = "test_framework__test_execution__validation__manual_verification"
WRITTEN = {"test_results": "logged in, ran the report", "issues_found": "-", "resolutions": "-"}


def asking(number: int, automated: Verdict = Verdict.PASS) -> dict[str, Any]:
    """The record of a drill that asks for both manual checks."""
    asked = {"required_checks": CHECKS, "documentation": FIELDS}
    verdict = automated if automated is Verdict.FAIL else Verdict.UNVERIFIED
    changes = {"verdict": verdict, "automated_verdict": automated, "manual_verification": asked}
    return record_of(number) | changes | {"started_at": f"2026-11-{number:02}T03:00:00+00:00"}


def seal_asking(
    home: Path, number: int = 1, automated: Verdict = Verdict.PASS, drill: str | None = None
) -> Standing:
    record, folder = asking(number, automated), results(home, number)
    record["drill"] = drill or record["drill"]
    (folder / "record.json").write_text(json.dumps(record, default=str))
    entry = evidence.seal(home, folder, record)
    return next(s for s in standings(home) if s.drill.digest == entry.digest)


def sign(home: Path, drill: Standing, check: str = CHECKS[0], **changes: Any) -> Standing:
    said = {"result": "pass", "by": "Ada Lovelace", "role": "reviewer", "documentation": WRITTEN}
    return sign_off(home, drill.drill, check=check, **(said | changes))


def recovery(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RECOVERY, *argv], capture_output=True, text=True, cwd="/")


def test_a_drill_waits_until_each_check_is_signed(tmp_path: Path) -> None:
    seal(tmp_path, 0)
    drill = seal_asking(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "drills").rglob("*.*")}
    assert (drill.verdict, drill.waiting) == (Verdict.UNVERIFIED, CHECKS)
    drill = sign(tmp_path, drill, CHECKS[0])
    assert (drill.verdict, drill.waiting) == (Verdict.UNVERIFIED, CHECKS[1:])
    drill = sign(tmp_path, drill, CHECKS[1])
    assert (drill.verdict, drill.waiting) == (Verdict.PASS, [])
    assert before == {path: path.read_bytes() for path in (tmp_path / "drills").rglob("*.*")}
    trusted = keys.read_public(tmp_path / "evidence" / "key.pub.pem")
    report = evidence.verify(tmp_path, trusted, results=result_folders(tmp_path))
    assert report.is_verified
    assert len(report.verified) == 2


@pytest.mark.parametrize("automated", list(Verdict))
@pytest.mark.parametrize("signed", ["nothing", "one", "both", "one fail", "both, then a fail"])
def test_the_effective_verdict_is_the_worst(
    automated: Verdict, signed: str, tmp_path: Path
) -> None:
    drill = seal_asking(tmp_path, 1, automated)
    if signed == "one fail":
        drill = sign(tmp_path, drill, result="fail")
    elif signed != "nothing":
        for check in CHECKS[: 1 if signed == "one" else 2]:
            drill = sign(tmp_path, drill, check)
    if signed.endswith("then a fail"):
        drill = sign(tmp_path, drill, result="fail", by="Grace Hopper")
    if "fail" in signed or automated is Verdict.FAIL:
        assert drill.verdict is Verdict.FAIL
    elif signed == "both" or automated in (Verdict.ERROR, Verdict.INVALID):
        assert drill.verdict is automated
    else:
        assert drill.verdict is Verdict.UNVERIFIED


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a check that is not asked for": ({"check": "looks_good"}, "asks for"),
    "no name": ({"by": " "}, "name of a person"),
    "a name of two lines": ({"by": "Ada\x07"}, "name of a person"),
    "no resolutions": ({"documentation": WRITTEN | {"resolutions": ""}}, "write down resolutions"),
    "a book": ({"documentation": WRITTEN | {"test_results": "x" * 10_001}}, "longer"),
    "signed already": ({}, "signed already"),
    "the same person twice": ({"role": "approver"}, "another person"),
    "the same person elsewhere": (
        {"role": "approver", "by": " ada  LOVELACE", "check": CHECKS[1]},
        "another person",
    ),
    "a fail by the other role's person": ({"role": "approver", "result": "fail"}, "another person"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_not_be_signed(case: str, tmp_path: Path) -> None:
    changes, message = REFUSED[case]
    drill = sign(tmp_path, seal_asking(tmp_path))
    before = chain_path(tmp_path).read_bytes()
    with pytest.raises(EvidenceError, match=message):
        sign(tmp_path, drill, **changes)
    assert chain_path(tmp_path).read_bytes() == before
    assert sign(tmp_path, drill, role="approver", by="Grace Hopper").waiting == CHECKS[1:]


def test_a_drill_that_asks_for_nothing_cannot_be_signed(tmp_path: Path) -> None:
    seal(tmp_path, 1)
    with pytest.raises(EvidenceError, match="asks for: none"):
        sign(tmp_path, standings(tmp_path)[0])


def test_every_flipped_byte_of_a_sign_off_is_seen(tmp_path: Path) -> None:
    sign(tmp_path, seal_asking(tmp_path))
    sound = chain_path(tmp_path).read_bytes()
    start = sound.rindex(b"\n", 0, -1) + 1
    for position in range(start, len(sound)):
        for bit in (0, 3, 7):
            flipped = bytearray(sound)
            flipped[position] ^= 1 << bit
            assert not is_accepted(bytes(flipped)), position


def test_a_sign_off_is_about_a_drill_before_it(tmp_path: Path) -> None:
    drill = sign(tmp_path, seal_asking(tmp_path))
    chain = read_chain(tmp_path)
    for about in (chain.entries[0], chain.head):
        home = Path(shutil.copytree(tmp_path / "evidence", tmp_path / str(about.seq) / "evidence"))
        signed = dict(drill.sign_offs[0].entry.predicate)
        append_about(home.parent, statement.SIGN_OFF_TYPE, lambda _, a=about, s=signed: (a, s))
        with pytest.raises(EvidenceError, match="not a drill"):
            standings(home.parent)
    lines = chain.content.splitlines(keepends=True)
    with pytest.raises(EvidenceError):
        check_chain(b"".join([lines[0], lines[2]]))


def test_history_tells_the_effective_verdict(tmp_path: Path) -> None:
    drill = seal_asking(tmp_path)
    record = asking(1)
    record["metrics"] |= {"started_at": record["started_at"], "success": False}
    folder = tmp_path / "drills" / "corruption_recovery_tar" / MONTH / "run-1"
    (folder / "record.json").write_text(json.dumps(record, default=str))

    def told() -> tuple[str, bool]:
        row = load_history(tmp_path).iloc[0]
        return row["verdict"], row["success"]

    assert told() == ("UNVERIFIED", False)
    for check in CHECKS:
        sign(tmp_path, drill, check)
    assert told() == ("PASS", True)
    sign(tmp_path, drill, result="fail", by="Grace Hopper")
    assert told() == ("FAIL", False)
    chain_path(tmp_path).write_bytes(b"broken")
    assert told() == ("UNVERIFIED", False), "what cannot be verified does not count"


def test_dagster_shows_what_was_signed(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "incremental_recovery", **{f"{MANUAL}__required_checks": CHECKS})
    definitions = build_definitions(spec.plan)
    key = dg.AssetCheckKey(dg.AssetKey([spec.name, "recovery_metrics"]), "manual_verification")
    sensor = definitions.resolve_sensor_def("recovery_sign_offs")
    home = spec.plan.data_home
    with dg.DagsterInstance.ephemeral() as instance:
        job = definitions.resolve_job_def(spec.name)
        done = job.execute_in_process(instance=instance, partition_key=MONTH)
        (check,) = [e for e in done.get_asset_check_evaluations() if e.asset_check_key == key]
        assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)

        def look(cursor: str | None) -> Any:
            context = dg.build_sensor_context(instance, cursor, definitions=definitions)
            return sensor.evaluate_tick(context)

        assert "nothing was signed" in str(look(None).skip_message)
        shown, cursor = [], None
        for turn in (
            lambda: sign(home, standings(home)[0], CHECKS[0]),
            lambda: sign(home, standings(home)[0], CHECKS[1]),
            lambda: sign(home, standings(home)[0], result="fail", by="Grace Hopper"),
        ):
            turn()
            tick = look(cursor)
            (event,) = tick.asset_events
            assert (event.asset_check_key, event.partition) == (key, MONTH)
            assert [
                (run.partition_key, {key.to_user_string() for key in run.asset_selection})
                for run in tick.run_requests
            ] == [
                (None, {"drill_history"}),
                (MONTH, {"detailed_report", "executive_summary"}),
            ]
            shown.append((event.passed, event.severity.value, event.metadata["verdict"].value))
            cursor = tick.cursor
            assert look(cursor).asset_events == []
        assert shown == [
            (False, "WARN", "UNVERIFIED"),
            (True, "ERROR", "PASS"),
            (False, "ERROR", "FAIL"),
        ]
    names = [sensor.name for sensor in build_definitions(make_spec(tmp_path).plan).sensors or []]
    assert "recovery_sign_offs" not in names


def test_the_teams_hear_of_a_verdict_that_a_signature_turned(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    plan, home = spec.plan, spec.plan.data_home
    drill = seal_asking(home, 1, drill=spec.name)

    def told() -> list[str]:
        path = home / "notifications.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["subject"].split(MONTH)[1] for line in lines]

    assert not tell_sign_off(plan, sign(home, drill, CHECKS[0]))
    assert tell_sign_off(plan, sign(home, drill, CHECKS[1]))
    assert told() == [], "it had never failed"
    assert tell_sign_off(plan, sign(home, drill, result="fail", by="Grace Hopper"))
    assert told() == [f": failed by sign-off of {CHECKS[0]}"]
    assert not tell_sign_off(plan, sign(home, drill, result="fail", by="Ada Lovelace"))
    assert len(told()) == 1, "it is known"
    later = seal_asking(home, 2, drill=spec.name)
    for check in CHECKS:
        tell_sign_off(plan, sign(home, later, check))
    assert told()[1:] == [": resolved"]
    assert not tell_sign_off(plan, sign(home, drill, result="fail", by="Alan Turing"))


def test_a_real_drill_passes_after_its_sign_offs(tmp_path: Path) -> None:
    changes = {f"{MANUAL}__required_checks": CHECKS}
    spec = make_spec(tmp_path, "incremental_recovery", **changes)
    record = carry_out(spec, MONTH, "run")
    assert record.verdict is Verdict.UNVERIFIED
    assert "user_access waits for a sign-off" in record.reason
    predicate = read_chain(spec.plan.data_home).head.predicate
    assert predicate["plan"] == spec.plan.identity
    assert predicate["plan"]["name"] == "recovery.yaml"
    assert predicate["initiator"] == "code"
    assert "scheduled_at" not in predicate
    assert predicate["isolation"]["mode"] == "0700"
    assert predicate["sampling"]
    assert predicate["operator"]
    assert len(predicate["code"]["sha256"]) == 64
    assert [snapshot["kind"] for snapshot in predicate["snapshots"]][:2] == ["full", "incremental"]
    assert sum(predicate["faults"].values()) > 0

    (tmp_path / "recovery.yaml").write_text(json.dumps(content(**changes)))
    plan = ("--plan", tmp_path / "recovery.yaml")
    listed = recovery("signoff", "--list", *plan)
    assert "1 wait" in listed.stdout, listed.stderr
    who = ("--by", "Ada Lovelace", "--result", "pass")
    written = [f"--{name.replace('_', '-')}=done" for name in FIELDS]
    assert recovery("signoff", spec.name, *plan, *who).returncode == 2, "no check"
    for check in CHECKS:
        done = recovery("signoff", spec.name, *plan, *who, "--check", check)
        assert (done.returncode, "write down" in done.stderr) == (2, True)
        done = recovery("signoff", spec.name, *plan, *who, "--check", check, *written)
        assert done.returncode == 0, done.stderr
    assert ": PASS" in done.stdout
    home = spec.plan.data_home
    summary = home / "reports" / MONTH / "detailed_report.json"
    assert str(summary) in done.stdout
    assert json.loads(summary.read_text())["drills"][0]["verdict"] == "PASS"
    sent = (home / "notifications.jsonl").read_text()
    assert sent.count(f'"recovery report {MONTH}') == 2, (
        "not with the signature that turned nothing"
    )
    bytes_before = summary.read_bytes()
    write_reports(home, spec.plan, MONTH)
    assert summary.read_bytes() == bytes_before
    assert "0 wait" in recovery("signoff", *plan).stdout
    done = recovery("signoff", "no_drill", *plan, *who, "--check", CHECKS[0], *written)
    assert spec.name in done.stderr
