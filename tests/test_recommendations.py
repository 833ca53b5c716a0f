"""Recommendations: what is said rests on evidence, at the right month, and little else is said."""

import json
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from campaigns.problems import HELD_OUT_SEEDS, problem_histories, scores
from campaigns.simulated import Month, label, leave_month, make_plan
from campaigns.story import leave_story, stories, story_scores
from campaigns.summary import failures
from recovery_pipelines.analysis.recommendations import COLUMNS, assign, recommendations
from recovery_pipelines.analysis.rules import RULES
from recovery_pipelines.cli import recovery
from recovery_pipelines.drills.recoveries import carry_out
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.evidence.signoff import sign_off, standings
from recovery_pipelines.plan import Plan
from recovery_pipelines.reporting.collect import build_report
from recovery_pipelines.reporting.model import Unavailable
from recovery_pipelines.verdict import Verdict
from tests.plans import MONTH, make_spec

DRILL = "corruption_recovery_data_tar"
FAILS = {"checksums_match": (Verdict.FAIL, "129 of 130 entries")}


def history(home: Path, *months: Month) -> Plan:
    """One drill with these months, the first ones of the simulation."""
    plan = make_plan(home, {"data": {}})
    rng = np.random.default_rng(1)
    for at, month in enumerate(months):
        leave_month(plan.drills()[0], at, month, rng)
    return plan


def said(home: Path, plan: Plan, position: int) -> pd.DataFrame:
    """What is recommended in that month."""
    return recommendations(home, plan, date.fromisoformat(label(position)))


def test_simulated_records_are_as_real_drills_leave_them(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    real = carry_out(spec, MONTH, "real").folder / "record.json"
    history(tmp_path / "simulated", Month())
    (simulated,) = (tmp_path / "simulated").rglob("record.json")
    contents = [json.loads(path.read_text()) for path in (real, simulated)]
    for part in (lambda c: c, lambda c: c["metrics"], lambda c: c["system_snapshot"]):
        real_keys, simulated_keys = (set(part(content)) for content in contents)
        assert real_keys == simulated_keys
    names = [[check["name"] for check in content["checks"]] for content in contents]
    assert names[0] == names[1]


def test_the_same_problem_keeps_its_id_and_closes_when_it_is_gone(tmp_path: Path) -> None:
    plan = history(tmp_path, Month(), Month(checks=FAILS), Month(checks=FAILS), Month())
    id = f"failing_check:{DRILL}.checksums_match"
    (row,) = (row for row in said(tmp_path, plan, 4).to_dict("records") if row["id"] == id)
    assert (row["opened"], row["closed"], row["state"]) == (label(1), label(3), "closed")
    assert "run-02-0" in row["evidence"], "the texts are of the last month with the problem"
    assert "129 of 130 entries" in row["evidence"]
    assert tuple(said(tmp_path, plan, 4).columns) == COLUMNS


def test_a_file_name_that_is_not_utf_8_does_no_harm(tmp_path: Path) -> None:
    odd = {"checksums_match": (Verdict.FAIL, "wrong: caf\udce9")}
    plan = history(tmp_path, Month(checks=odd))
    assert "caf\\udce9" in said(tmp_path, plan, 1)["evidence"].iloc[0]


def test_what_a_person_found_wrong_is_said(tmp_path: Path) -> None:
    asked = "test_framework__test_execution__validation__manual_verification__required_checks"
    spec = make_spec(tmp_path, **{asked: ["user_access"]})
    record = carry_out(spec, MONTH, "run")
    assert record.automated_verdict is Verdict.PASS, record.reason
    words = {"test_results": "x", "issues_found": "nobody can log in", "resolutions": "none"}
    home = spec.plan.data_home
    (standing,) = standings(home)
    said_by = {"check": "user_access", "by": "Ada Lovelace", "role": "reviewer"}
    sign_off(home, standing.drill, **said_by, result="fail", documentation=words)
    found = recommendations(home, spec.plan, date.fromisoformat(MONTH)).set_index("id")
    row = found.loc[f"manual_check_failed:{spec.name}"]
    assert row["priority"] == "critical"
    assert "FAIL by sign-off of user_access" in row["evidence"]


def test_without_evidence_nothing_is_recommended(tmp_path: Path) -> None:
    assert said(tmp_path, make_plan(tmp_path, {"data": {}}), 0).empty
    plan = history(tmp_path, *([Month()] * 12))
    assert said(tmp_path, plan, 12).empty


def test_a_drill_that_never_ran_is_named_once_others_ran(tmp_path: Path) -> None:
    history(tmp_path, Month(), Month())
    plan = make_plan(tmp_path, {"data": {}, "other": {}})
    row = said(tmp_path, plan, 2).iloc[0]
    assert row["id"] == "never_drilled:corruption_recovery_other_tar"
    assert row["opened"] == label(0)


def test_owner_and_due_date_stay_until_they_are_changed(tmp_path: Path) -> None:
    plan = history(tmp_path, Month(), Month(checks=FAILS))
    path = tmp_path / "recovery.yaml"
    path.write_text(f"data_home: {tmp_path}\ntargets: {{data: {{dataset: {{size: 1MB}}}}}}\n")
    id = f"failing_check:{DRILL}.checksums_match"
    for arguments in (["--owner", "Ada", "--due", "2026-12-01"], ["--owner", "Grace"]):
        command = ["analysis", "assign", "--plan", str(path), id, *arguments]
        done = CliRunner().invoke(recovery, command)
        assert done.exit_code == 0, done.output
    assert "owner Grace, due 2026-12-01" in done.output
    row = said(tmp_path, plan, 2).set_index("id").loc[id]
    assert (row["owner"], row["due"]) == ("Grace", "2026-12-01")
    with pytest.raises(RecoveryError, match="there is no recommendation 'x'"):
        assign(tmp_path, plan, "x", "Ada", None)


def test_what_is_said_of_a_month_does_not_change_later(tmp_path: Path) -> None:
    """Month by month, as it would have run then, gives the months that one look back gives."""
    months = [Month() for _ in range(12)]
    months[3].checks, months[6].missed, months[8].failed_attempts = FAILS, True, 1
    months[9].failed_attempts, months[11].killed = 1, True
    plan = make_plan(tmp_path, {"data": {}})
    rng = np.random.default_rng(1)
    seen: dict[str, list[str]] = {}
    for at, month in enumerate(months):
        leave_month(plan.drills()[0], at, month, rng)
        then = said(tmp_path, plan, at + 1)
        for id in then[then["state"] == "open"]["id"]:
            seen.setdefault(id, []).append(label(at))
    final = said(tmp_path, plan, 12).set_index("id")
    assert set(final.index) == set(seen)
    for id, row in final.iterrows():
        assert row["opened"] == seen[str(id)][0]
        assert (row["state"] == "open") is (seen[str(id)][-1] == label(11))


def test_the_right_thing_is_said_in_the_right_month() -> None:
    """A slice of `python -m campaigns story`."""
    rows = pd.DataFrame(stories([1]))
    assert failures({"story": rows}) == []
    found = story_scores(rows).set_index("problem")
    assert (found["said in time"] == 1).all(), found.to_string()
    assert (found["until the right month"] == 1).all(), found.to_string()


def test_the_report_says_what_was_recommended_then(tmp_path: Path) -> None:
    plan = leave_story(tmp_path, 1)
    for position, expected in (
        (9, ("failing_check:corruption_recovery_fails_tar.checksums_match", "open")),
        (10, ("failing_check:corruption_recovery_fails_tar.checksums_match", "closed")),
        (12, ("unusual_value:corruption_recovery_spikes_tar", "open")),
        (15, ("snapshot_expired:corruption_recovery_expires_tar", "open")),
    ):
        report = build_report(tmp_path, plan, label(position))
        assert not isinstance(report.recommendations, Unavailable)
        assert expected in {(each.id, each.state) for each in report.recommendations}
        assert all("calm" not in each.id for each in report.recommendations)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rows = pd.DataFrame(problem_histories(HELD_OUT_SEEDS))
    return scores(rows).set_index("rule")


def test_recommendations_are_right_on_held_out_histories(table: pd.DataFrame) -> None:
    assert len(HELD_OUT_SEEDS) >= 60
    assert table.loc["all", "precision"] >= 0.9
    assert table.loc["all", "recall"] >= 0.9


def test_each_rule_is_right_on_held_out_histories(table: pd.DataFrame) -> None:
    untried = {"manual_check_failed"}
    assert {rule.name for rule in RULES} - untried <= set(table.index)
    poor = table[(table["precision"] < 0.9) | (table["recall"] < 0.9)]
    assert poor.empty, poor.to_string()
