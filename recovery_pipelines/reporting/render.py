"""A report as HTML, PDF, Markdown and JSON. The same report gives the same bytes.

PDF needs system libraries (Pango) and depends on the fonts that are installed.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.reporting import words
from recovery_pipelines.reporting.model import Report, Summary, Unavailable
from recovery_pipelines.reporting.plots import trend_chart
from recovery_pipelines.reporting.summary import evidence_in_words, summarize
from recovery_pipelines.verdict import Verdict

NAMES = ("detailed_report", "executive_summary")
FORMATS = ("html", "pdf", "md", "json")

_SYMBOLS = {
    Verdict.PASS: "✓",
    Verdict.FAIL: "✗",
    Verdict.INVALID: "⊘",
    Verdict.ERROR: "!",
    Verdict.UNVERIFIED: "?",
    Verdict.STALE: "◷",
}
_MARKDOWN_SIGNS = re.compile(r"([\\`*\[\]<>|#~])")


class PdfUnavailable(RecoveryError):
    """WeasyPrint's system libraries are missing."""


def render(report: Report, name: str, form: str) -> bytes:
    """One of NAMES in one of FORMATS. Raises PdfUnavailable."""
    return _RENDERERS[form](report, name)


def _json(report: Report, name: str) -> bytes:
    content: Report | Summary = report if name == "detailed_report" else summarize(report)
    return (
        json.dumps(content.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    ).encode()


def _html(report: Report, name: str) -> bytes:
    return html_text(report, name, for_print=False).encode()


def html_text(report: Report, name: str, *, for_print: bool) -> str:
    """The page; `for_print` draws what WeasyPrint cannot colour by variables in plain colours."""
    return _fill(f"{name}.html.j2", report, for_print)


def _markdown(report: Report, name: str) -> bytes:
    text = _fill(f"{name}.md.j2", report, False)
    return (re.sub(r"\n{3,}", "\n\n", text).strip() + "\n").encode()


def _pdf(report: Report, name: str) -> bytes:
    try:
        from weasyprint import HTML
    except OSError as error:
        raise PdfUnavailable(
            f"no PDF: WeasyPrint's system libraries are missing ({error}); on Debian or Ubuntu: "
            "apt-get install libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0"
        ) from None
    page = HTML(string=html_text(report, name, for_print=True), url_fetcher=_fetch_nothing)
    content: bytes = page.write_pdf(pdf_variant="pdf/ua-1")
    return content


def _fetch_nothing(address: str, *_: Any, **__: Any) -> dict[str, Any]:
    raise ValueError(f"a report asks for nothing from outside: {address}")


_RENDERERS: dict[str, Callable[[Report, str], bytes]] = {
    "html": _html,
    "pdf": _pdf,
    "md": _markdown,
    "json": _json,
}


# --- templates ----------------------------------------------------------------------------


def _fill(template: str, report: Report, for_print: bool) -> str:
    def chart(trend: Any) -> Markup:
        return Markup(trend_chart(trend, for_print=for_print))

    return (
        _templates()
        .get_template(template)
        .render(
            report=report,
            summary=summarize(report),
            evidence_head=evidence_in_words(report),
            chart=chart,
        )
    )


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("recovery_pipelines.reporting"),
        autoescape=lambda name: bool(name) and ".html" in str(name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "cell": _cell,
        "month_name": words.month_name,
        "moment": words.moment,
        "percent": words.percent,
        "seconds": words.seconds,
        "short_month": words.short_month,
        "size": words.size,
        "symbol": lambda verdict: _SYMBOLS[verdict],
    }
    found.tests["unavailable"] = lambda part: isinstance(part, Unavailable)
    found.globals |= {"count": words.count, "verdicts": list(Verdict)}
    return found


def _cell(value: object) -> str:
    """Text for Markdown, inside or outside of a table."""
    return _MARKDOWN_SIGNS.sub(r"\\\1", str(value)).replace("\n", " ")
