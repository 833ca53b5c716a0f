"""Where reports lie (`reports/<month>/` in the data home), and who gets them."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recovery_pipelines.analysis.history import load_history
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.files import replacing
from recovery_pipelines.notifications import notify
from recovery_pipelines.plan import Plan
from recovery_pipelines.reporting.collect import build_report
from recovery_pipelines.reporting.model import Report
from recovery_pipelines.reporting.render import FORMATS, PdfUnavailable, render
from recovery_pipelines.reporting.summary import summarize
from recovery_pipelines.sandbox import exclusive

_SENT_NAME = "distributed.json"
_LOCK = "reports"
_LOCK_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class ReportFile:
    """One file of a report."""

    name: str
    """`detailed_report` or `executive_summary`."""
    form: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Publication:
    """The reports of one month as they lie on disk."""

    report: Report
    files: Sequence[ReportFile]
    notes: Sequence[str]
    """What could not be made, and what to do about it."""

    def file(self, name: str, form: str) -> ReportFile | None:
        return next((file for file in self.files if (file.name, file.form) == (name, form)), None)


def report_folder(home: Path, month: str) -> Path:
    return home / "reports" / month


def newest_month(home: Path) -> str:
    """The newest month of any drill. Raises RecoveryError if there is none."""
    history = load_history(home)
    if history.empty:
        raise RecoveryError(f"no drill has run in {home}: run one, or name the month with --month")
    return str(history["month"].max())


def month_label(text: str) -> str:
    """`YYYY-MM-01` from `YYYY-MM` or `YYYY-MM-01`; raises RecoveryError for anything else."""
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])(-01)?", text):
        raise RecoveryError(f"{text!r} is no month: write it as 2026-11")
    return f"{text[:7]}-01"


def write_reports(home: Path, plan: Plan, month: str) -> Publication:
    """Make the reports that the plan wants of `month`, in every format."""
    report = build_report(home, plan, month)
    folder = report_folder(home, month)
    folder.mkdir(parents=True, exist_ok=True)
    files, notes = [], []
    for name in plan.test_framework.reporting.documentation.test_results.format:
        for form in FORMATS:
            path = folder / f"{name}.{form}"
            try:
                content = render(report, name, form)
            except PdfUnavailable as error:
                path.unlink(missing_ok=True)
                notes.append(str(error))
                continue
            with replacing(path, many_writers=True) as unfinished:
                unfinished.write_bytes(content)
            files.append(ReportFile(name, form, path, hashlib.sha256(content).hexdigest()))
    return Publication(report, files, list(dict.fromkeys(notes)))


def distribute(home: Path, plan: Plan, publication: Publication) -> Sequence[str]:
    """Send the reports to the plan's teams, unless these were sent already; returns the teams."""
    teams = plan.test_framework.reporting.documentation.test_results.distribution
    report = publication.report
    sent = report_folder(home, report.month) / _SENT_NAME
    names = list(dict.fromkeys(file.name for file in publication.files))
    content = {"formats": names, "sha256": _worth_telling(report)}
    if not teams or not names:
        return ()
    attached = [
        file.path
        for name in names
        for file in [publication.file(name, "pdf") or publication.file(name, "html")]
        if file
    ]
    summary = summarize(report)
    details = {
        "month": report.month,
        "verdict": str(report.verdict),
        "summary": summary.headline,
        "attention": list(summary.attention),
        "reports": [str(path) for path in attached],
    }
    subject = f"recovery report {report.month}: {report.verdict}"
    with exclusive(home, _LOCK, _LOCK_TIMEOUT_SECONDS):
        if sent.exists() and json.loads(sent.read_text()) == content:
            return ()
        notify(plan, teams, subject, details, attachments=attached)
        with replacing(sent) as unfinished:
            unfinished.write_text(json.dumps(content))
    return teams


def _worth_telling(report: Report) -> str:
    """SHA-256 of what makes a report go out again if it changes.

    Neither a message that did not arrive does, nor a signature that turned no verdict.
    """
    lasting = report.model_copy(
        update={
            "failed_messages": (),
            "manual_verification": (),
            "evidence": report.evidence.model_copy(update={"head": None}),
            "drills": tuple(drill.model_copy(update={"reason": ""}) for drill in report.drills),
        }
    )
    return hashlib.sha256(lasting.model_dump_json().encode()).hexdigest()
