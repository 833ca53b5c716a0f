"""Reports: they say what the results say, in every format, and never more."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from click.testing import CliRunner
from playwright.sync_api import Browser, sync_playwright

from recovery_pipelines.cli import recovery
from recovery_pipelines.drills.record import folder_of, write_record
from recovery_pipelines.drills.recoveries import carry_out
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.evidence import seal
from recovery_pipelines.plan import Plan
from recovery_pipelines.reporting import render as rendering
from recovery_pipelines.reporting.collect import build_report
from recovery_pipelines.reporting.model import Report, Summary
from recovery_pipelines.reporting.publish import month_label, newest_month, write_reports
from recovery_pipelines.reporting.render import FORMATS, NAMES, PdfUnavailable, html_text, render
from recovery_pipelines.reporting.summary import summarize
from recovery_pipelines.reporting.words import percent, seconds, size
from recovery_pipelines.verdict import Verdict
from tests.plans import MONTH, make_plan

DRILLS = ("corruption_recovery_tar", "incremental_recovery_tar")
PHASES = ("detect_seconds", "fetch_seconds", "verify_seconds", "publish_seconds")
HOSTILE = "\u202egpj.exe|<script>alert(1)</script> \udcff `x` [a](b)"
SHIFT, FAILING, MISSED = 14, 21, 9


def month_at(position: int) -> str:
    return (pd.Period("2024-12", freq="M") + position).strftime("%Y-%m-01")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Both drills really carried out in one month."""
    plan = make_plan(tmp_path_factory.mktemp("real"))
    for spec in plan.drills():
        carry_out(spec, MONTH, "run")
    return plan


@pytest.fixture(scope="module")
def long(real: Plan, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """24 months of simulated history: a level shift, a failing check, a missed month."""
    objectives = {"rto_seconds": 60, "rpo_seconds": 3600}
    plan = make_plan(tmp_path_factory.mktemp("long"), targets__test_dataset__objectives=objectives)
    noise = np.random.default_rng(1)
    for drill in DRILLS:
        source = folder_of(real.data_home, drill, MONTH, "run")
        for at in range(24):
            if drill == DRILLS[1] and at == MISSED:
                continue
            shifted = drill == DRILLS[1] and at >= SHIFT
            failing = drill == DRILLS[0] and at >= FAILING
            times = 30 * np.exp(0.1 * noise.standard_normal()) * (2.2 if shifted else 1)
            leave_drill(plan.data_home, source, month_at(at), times, failing, objectives)
    return plan


def leave_drill(
    home: Path, source: Path, month: str, recovery: float, fails: bool, objectives: dict[str, int]
) -> Path:
    """A sealed copy of a real drill's results, with other times and perhaps a failing check."""
    record: dict[str, Any] = json.loads((source / "record.json").read_text())
    metrics = record["metrics"]
    total = sum(metrics[name] for name in PHASES)
    metrics |= {name: metrics[name] * recovery / total for name in PHASES}
    verdict = "FAIL" if fails else "PASS"
    started_at = f"{month[:8]}01T03:00:00.5+00:00"
    metrics |= {"recovery_seconds": recovery, "month": month, "verdict": verdict}
    metrics |= {"started_at": started_at, "success": not fails}
    record |= {"month": month, "verdict": verdict, "automated_verdict": verdict}
    record |= {"started_at": started_at, "ended_at": started_at, "objectives": objectives}
    if fails:
        record["checks"][2] |= {"verdict": "FAIL", "found": f"1 entries wrong ({HOSTILE})"}
    folder = folder_of(home, record["drill"], month, "run")
    folder.mkdir(parents=True)
    shutil.copy(source / "faults.parquet", folder)
    write_record(folder, record)
    seal(home, folder, record)
    return folder


def report_of(plan: Plan, month: str) -> Report:
    return build_report(plan.data_home, plan, month)


# --- what a report says -------------------------------------------------------------------


def test_a_report_of_real_drills_says_what_they_found(real: Plan) -> None:
    report = report_of(real, MONTH)
    summary = summarize(report)
    assert (report.verdict, summary.attention) == (Verdict.PASS, ())
    assert [drill.name for drill in report.drills] == list(DRILLS)
    for drill in report.drills:
        record = json.loads((real.data_home / drill.folder / "record.json").read_text())
        assert [check.found for check in drill.checks] == [c["found"] for c in record["checks"]]
        assert sum(phase.seconds for phase in drill.phases) == pytest.approx(drill.recovery_seconds)
        assert drill.evidence
    planted = sum(each.planted for each in report.detection)
    assert planted == sum(each.caught for each in report.detection) > 20
    assert any("generated test data" in each.what for each in report.not_tested)


def test_without_results_nothing_is_proven(tmp_path: Path) -> None:
    report = report_of(make_plan(tmp_path), MONTH)
    assert report.verdict is Verdict.UNVERIFIED
    assert set(report.missing_drills) == set(DRILLS)
    assert summarize(report).headline == "No drill ran in November 2026: nothing is proven."
    for name in NAMES:
        assert "not measured yet" in render(report, "detailed_report", "md").decode()
        assert all(render(report, name, form) for form in FORMATS)


@pytest.mark.parametrize("months", [1, 3, 24])
def test_the_right_things_at_the_right_month(long: Plan, months: int) -> None:
    report = report_of(long, month_at(months - 1))
    summary = summarize(report)
    assert [len(row.months) for row in report.history] == [months, months]
    failed = months - 1 >= FAILING
    assert report.verdict is (Verdict.FAIL if failed else Verdict.PASS)
    said = " ".join(summary.attention)
    assert ("corruption_recovery_tar is FAIL: checksums_match." in summary.attention) is failed
    assert ("incremental_recovery_tar missed its RTO" in said) is (months - 1 >= SHIFT)
    assert ("Recovery of incremental_recovery_tar is slower" in said) is (months - 1 >= SHIFT)
    assert report.missed_months == (((DRILLS[1], month_at(MISSED)),) if months > MISSED else ())
    figures = {figure.label: figure for figure in summary.figures}
    assert len(figures) == len(summary.figures) <= 10
    assert figures["Open anomalies"].state == ("unknown" if months < 5 else "attention")


def test_a_summarys_own_month_says_what_its_report_says(long: Plan) -> None:
    report = report_of(long, month_at(MISSED))
    assert report.missing_drills == (DRILLS[1],)
    own = summarize(report).months[-1]
    assert (own.month, own.verdict) == (report.month, Verdict.UNVERIFIED)


def test_later_months_do_not_change_a_report(long: Plan) -> None:
    before = report_of(long, month_at(12))
    shutil.copytree(long.data_home, long.data_home.with_name("cut"))
    cut = long.model_copy(update={"data_home": long.data_home.with_name("cut")})
    for at in range(13, 24):
        for drill in DRILLS:
            shutil.rmtree(cut.data_home / "drills" / drill / month_at(at))
    assert report_of(cut, month_at(12)) == before


def test_what_is_not_evidence_does_not_pass(real: Plan, tmp_path: Path) -> None:
    home = tmp_path / "data"
    shutil.copytree(real.data_home, home)
    plan = real.model_copy(update={"data_home": home})
    changed = folder_of(home, DRILLS[0], MONTH, "run") / "record.json"
    changed.write_text(changed.read_text().replace("33 detected", "34 detected"))
    report = report_of(plan, MONTH)
    assert report.verdict is Verdict.UNVERIFIED
    assert [drill.proven for drill in report.drills] == [False, True]
    assert "not those that were sealed" in summarize(report).attention[0]
    (home / "evidence" / "chain.jsonl").unlink()
    report = report_of(plan, MONTH)
    assert (report.verdict, report.evidence.state) == (Verdict.UNVERIFIED, "none")
    assert not any(drill.proven for drill in report.drills)


def test_a_second_try_does_not_undo_a_finding(real: Plan, tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    source = folder_of(real.data_home, DRILLS[0], MONTH, "run")
    first = leave_drill(plan.data_home, source, MONTH, 1.0, True, {})
    again = first.with_name("again")
    again.mkdir()
    record = json.loads((first / "record.json").read_text())
    record |= {"run_id": "again", "verdict": "PASS", "automated_verdict": "PASS"}
    record["metrics"] |= {"run_id": "again", "started_at": f"{MONTH[:8]}02T00:00:00+00:00"}
    write_record(again, record)
    seal(plan.data_home, again, record)
    report = report_of(plan, MONTH)
    (drill,) = report.drills
    assert (drill.verdict, drill.proven, report.verdict) == (Verdict.PASS, False, Verdict.FAIL)
    assert "second try" in drill.reason


# --- formats ------------------------------------------------------------------------------


def test_the_same_results_give_the_same_bytes(long: Plan) -> None:
    first, second = (
        {
            (name, form): render(report_of(long, month_at(6)), name, form)
            for name in NAMES
            for form in FORMATS
        }
        for _ in range(2)
    )
    assert [key for key in first if first[key] != second[key]] == []


def test_names_from_outside_cannot_break_or_disguise_a_report(long: Plan) -> None:
    report = report_of(long, month_at(23))
    for name in NAMES:
        page, text = (render(report, name, form).decode() for form in ("html", "md"))
        assert "<script" not in page
        assert "<script" not in text.replace("\\<", "")
        assert "\u202e" not in page + text
        assert not re.search(r"(?:https?:)?//(?!www\.w3\.org)", page), "nothing from outside"
    assert "\\u202egpj.exe" in render(report, "detailed_report", "html").decode()
    rows = render(report, "detailed_report", "md").decode().splitlines()
    bars, named = 0, 0
    for row in rows:
        found = len(re.findall(r"(?<!\\)\|", row)) if row.startswith("|") else 0
        assert not (bars and found) or found == bars, "as many cells as the table's head"
        bars, named = found, named + ("gpj.exe" in row)
    assert named


def test_a_summary_holds_nothing_that_a_check_found(long: Plan) -> None:
    report = report_of(long, month_at(23))
    for form in ("html", "md", "json"):
        assert "gpj.exe" not in render(report, "executive_summary", form).decode()


def test_a_summary_is_one_page(long: Plan) -> None:
    from weasyprint import HTML

    report = report_of(long, month_at(23))
    crowded = report.model_copy(
        update={"missing_drills": tuple(f"corruption_recovery_target_{n}_tar" for n in range(30))}
    )
    for each in (report, crowded):
        page = HTML(string=html_text(each, "executive_summary", for_print=True))
        assert len(page.render().pages) == 1


def test_without_system_libraries_everything_but_pdf_is_made(
    long: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> bytes:
        raise PdfUnavailable("no PDF: install libpango-1.0-0")

    monkeypatch.setitem(rendering._RENDERERS, "pdf", missing)
    published = write_reports(long.data_home, long, month_at(23))
    assert {file.form for file in published.files} == {"html", "md", "json"}
    assert published.notes == ["no PDF: install libpango-1.0-0"]


def test_the_schemas_are_those_that_are_published() -> None:
    folder = Path(__file__).parent.parent / "docs" / "schemas"
    for model, name in ((Report, "detailed_report"), (Summary, "executive_summary")):
        assert json.loads((folder / f"{name}.json").read_text()) == model.model_json_schema()


def test_the_command_says_where_the_reports_are(real: Plan, tmp_path: Path) -> None:
    plan_path = tmp_path / "recovery.yaml"
    shutil.copytree(real.data_home, tmp_path / "data")
    plan_path.write_text((Path(__file__).parent.parent / "recovery.yaml").read_text())
    result = CliRunner().invoke(recovery, ["report", "--plan", str(plan_path)])
    assert result.exit_code == 0, result.output
    paths = [Path(line) for line in result.output.splitlines() if line.startswith("/")]
    assert {path.name for path in paths} == {f"{n}.{form}" for n in NAMES for form in FORMATS}
    assert all(path.is_file() and path.parent.name == MONTH for path in paths)


def test_a_month_is_a_month(tmp_path: Path) -> None:
    assert month_label("2026-11") == month_label(MONTH) == MONTH
    for wrong in ("2026-13", "November", "2026-11-02", "../.."):
        with pytest.raises(RecoveryError, match="no month"):
            month_label(wrong)
    with pytest.raises(RecoveryError, match="no drill has run"):
        newest_month(tmp_path)


def test_words() -> None:
    cases = {
        None: "not measured",
        0.2054: "0.205 s",
        9.5: "9.50 s",
        59.96: "1 min",
        3660: "1 h 1 min",
    }
    assert {value: seconds(value) for value in cases} == cases
    assert [size(each) for each in (999, 9_156_662, 999_600)] == ["999 bytes", "9.16 MB", "1 MB"]
    assert percent(0.77949) == "77.9 %", "a bound is cut, not rounded"


# --- in a browser -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_everyone_can_read_it(
    browser: Browser, long: Plan, tmp_path: Path, name: str, scheme: Any
) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(render(report_of(long, month_at(23)), name, "html"))
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(path.as_uri())
    assert asked == [path.as_uri()]
    assert complaints == []
    for width in (1280, 420):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
    page.close()
