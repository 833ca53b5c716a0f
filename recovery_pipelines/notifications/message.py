"""What is said: one message, as JSON for machines, as text and HTML for people."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

_REPEATED = (
    "This may have reached you before: the sender could not tell whether it did. "
    "The message's id is the same."
)


@dataclass(frozen=True)
class Message:
    """One message. What it says never changes, however often it is tried."""

    id: str
    at: str
    """When it was made: UTC, ISO 8601."""
    teams: tuple[str, ...]
    subject: str
    """One line."""
    details: Mapping[str, object]
    """JSON values by name."""
    attachments: tuple[Path, ...] = ()
    repeated: bool = False
    """An earlier attempt may have reached the recipient after all."""

    def content(self) -> dict[str, object]:
        """The message as a JSON object."""
        content = {
            "id": self.id,
            "at": self.at,
            "teams": list(self.teams),
            "subject": self.subject,
            **self.details,
        }
        if self.attachments:
            content["attachments"] = [path.name for path in self.attachments]
        return content | {"repeated": True} if self.repeated else content

    def text(self) -> str:
        """The message for people, one line for each detail."""
        lines = [self.subject, "", *(f"{name}: {value}" for name, value in self._rows())]
        return "\n".join([*lines, *(["", _REPEATED] if self.repeated else [])]) + "\n"

    def html(self) -> str:
        """The same as a page with one table."""
        rows = "".join(
            f'<tr><th scope="row" style="text-align:left;vertical-align:top">{escape(name)}</th>'
            f"<td>{escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        subject, note = escape(self.subject), f"<p>{_REPEATED}</p>" if self.repeated else ""
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{subject}</title>'
            f"</head><body><h1>{subject}</h1><table>{rows}</table>{note}</body></html>\n"
        )

    def _rows(self) -> Iterator[tuple[str, str]]:
        for name, value in {**self.details, "at": self.at, "message": self.id}.items():
            yield name.replace("_", " "), _words(value)


def _words(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    return json.dumps(value) if isinstance(value, dict) else str(value)
