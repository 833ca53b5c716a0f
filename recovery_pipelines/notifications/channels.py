"""How teams are reached: a notifier for each kind of channel, and what may go wrong on the way."""

import hashlib
import json
import logging
import mimetypes
import os
import re
import smtplib
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from email.headerregistry import Group
from email.message import EmailMessage
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import requests

from recovery_pipelines.files import append_line
from recovery_pipelines.notifications.message import Message
from recovery_pipelines.plan import Plan
from recovery_pipelines.plan.channels import Channel, Smtp, apprise_service

log = logging.getLogger("recovery_pipelines")

_SMTP_TIMEOUT_SECONDS = 20.0
_APPRISE_TIMEOUT_SECONDS = 20.0
_WEB_TIMEOUT_SECONDS = 10.0
_REASON_CHARACTERS = 200
# Ours or theirs to put right, or just now too much: the message itself is not refused.
_TRY_AGAIN_STATUSES = (401, 403, 407, 408, 425, 429)


class Undelivered(Exception):
    """Why a recipient did not get a message. The text holds no secret."""

    def __init__(self, reason: str, *, permanent: bool = False, unsure: bool = False) -> None:
        super().__init__(reason)
        self.reason = " ".join(reason.split())[:_REASON_CHARACTERS]
        self.permanent = permanent
        """Refused for good: to try again is of no use."""
        self.unsure = unsure
        """It may have arrived: the answer was lost."""


class Notifier(Protocol):
    """One kind of channel."""

    def send(self, message: Message, recipients: Sequence[str]) -> Mapping[str, Undelivered]:
        """Send to all `recipients`; returns those who did not get it.

        Raises Undelivered if nobody did.
        """


@dataclass(frozen=True)
class Destination:
    """One recipient of a plan's teams."""

    kind: str
    """The channel's key in the plan."""
    address: str
    """As the plan has it: `env:NAME` where it is secret."""
    teams: tuple[str, ...]

    @property
    def key(self) -> str:
        """What receipts call it: the same in every message, without the address."""
        return hashlib.sha256(f"{self.kind} {self.address}".encode()).hexdigest()[:12]

    @property
    def masked(self) -> str:
        """What may be shown of the address."""
        if self.address.startswith("env:") or self.kind in ("file", "log"):
            return self.address
        if self.kind == "email":
            name, _, domain = self.address.rpartition("@")
            return f"{name[:1]}***@{domain} ({self.key[:6]})"
        parts = urlsplit(self.address)
        host = f"{parts.hostname}/" if self.kind == "webhook" else ""
        return f"{parts.scheme}://{host}*** ({self.key[:6]})"


def destinations(plan: Plan, teams: Sequence[str]) -> list[Destination]:
    """Everyone whom `teams` name, each once."""
    found: dict[tuple[str, str], list[str]] = {}
    for team in teams:
        for channel in plan.teams[team]:
            for way in _ways(channel):
                named = found.setdefault(way, [])
                if team not in named:
                    named.append(team)
    return [Destination(kind, address, tuple(named)) for (kind, address), named in found.items()]


def _ways(channel: Channel) -> Iterator[tuple[str, str]]:
    for kind in type(channel).model_fields:
        value = getattr(channel, kind)
        if value is not None:
            addresses = value if isinstance(value, tuple) else (value,)
            yield from ((kind, "log" if address is True else str(address)) for address in addresses)


def notifier(kind: str, plan: Plan) -> Notifier:
    """The notifier for one kind of channel."""
    if kind == "email":
        assert plan.smtp is not None, "the plan's validation asks for it"
        return EmailNotifier(plan.smtp)
    if kind == "file":
        return FileNotifier(plan.data_home)
    others: dict[str, Notifier] = {
        "log": LogNotifier(),
        "webhook": WebhookNotifier(),
        "apprise": AppriseNotifier(),
    }
    return others[kind]


class LogNotifier:
    """The log of the process."""

    def send(self, message: Message, recipients: Sequence[str]) -> Mapping[str, Undelivered]:
        log.info("notification to %s: %s", list(message.teams), message.subject)
        return {}


@dataclass(frozen=True)
class FileNotifier:
    """Files of JSON lines, relative to `home`. A message is never there twice."""

    home: Path

    def send(self, message: Message, recipients: Sequence[str]) -> Mapping[str, Undelivered]:
        line = json.dumps(message.content()).encode() + b"\n"
        for name in recipients:
            path = self.home / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if not (message.repeated and _holds(path, message.id)):
                    append_line(path, line)
            except OSError as error:
                raise Undelivered(error.strerror or type(error).__name__) from None
        return {}


class WebhookNotifier:
    """http(s) addresses that take a JSON body."""

    def send(self, message: Message, recipients: Sequence[str]) -> Mapping[str, Undelivered]:
        for address in recipients:
            try:
                reply = requests.post(
                    _resolved(address),
                    json=message.content(),
                    headers={"Idempotency-Key": message.id},
                    timeout=_WEB_TIMEOUT_SECONDS,
                    allow_redirects=False,
                )
            except requests.ConnectTimeout:
                raise Undelivered("no connection") from None
            except (requests.RequestException, ValueError) as error:
                raise Undelivered(type(error).__name__, unsure=True) from None
            if reply.status_code >= 300:
                again = reply.status_code >= 500 or reply.status_code in _TRY_AGAIN_STATUSES
                raise Undelivered(f"HTTP {reply.status_code}", permanent=not again)
        return {}


class AppriseNotifier:
    """Everything that apprise knows. It cannot tell why something failed: all is tried again."""

    def send(self, message: Message, recipients: Sequence[str]) -> Mapping[str, Undelivered]:
        import apprise  # slow, and seldom needed

        for address in recipients:
            try:
                service = apprise_service(_resolved(address))
            except ValueError as error:
                raise Undelivered(str(error)) from None
            done = apprise.Apprise(service).notify(
                title=message.subject,
                body=message.text(),
                body_format=apprise.NotifyFormat.TEXT,
                attach=[str(path) for path in message.attachments] or None,
                timeout=_APPRISE_TIMEOUT_SECONDS,
            )
            if not done:
                raise Undelivered(f"apprise: {done.status.name.lower()}", unsure=True)
        return {}


@dataclass(frozen=True)
class EmailNotifier:
    """E-mail, with the same Message-ID however often it is tried."""

    smtp: Smtp

    def send(self, message: Message, recipients: Sequence[str]) -> Mapping[str, Undelivered]:
        mail = self._mail(message)
        with closing(self._connect()) as server:
            try:
                refused = server.send_message(mail, self.smtp.sender, list(recipients))
            except smtplib.SMTPRecipientsRefused as error:
                # Who is not named was not refused, but nothing was sent.
                nothing_sent = (421, b"the server ended the session")
                refused = {to: error.recipients.get(to, nothing_sent) for to in recipients}
            except smtplib.SMTPResponseException as error:
                raise _answer(error.smtp_code, error.smtp_error) from None
            except (OSError, smtplib.SMTPException) as error:
                raise Undelivered(f"the connection broke: {_kind(error)}", unsure=True) from None
            with suppress(OSError, smtplib.SMTPException):
                server.quit()
        return {to: _answer(code, text, to) for to, (code, text) in refused.items()}

    def _connect(self) -> smtplib.SMTP:
        """A session, encrypted and logged in as the plan asks. Failure here is never for good."""
        smtp, context = self.smtp, ssl.create_default_context()
        server: smtplib.SMTP | None = None
        try:
            if smtp.security == "ssl":
                server = smtplib.SMTP_SSL(
                    smtp.host, smtp.port, timeout=_SMTP_TIMEOUT_SECONDS, context=context
                )
            else:
                server = smtplib.SMTP(smtp.host, smtp.port, timeout=_SMTP_TIMEOUT_SECONDS)
            if smtp.security == "starttls":
                server.starttls(context=context)
            if smtp.username is not None and smtp.password is not None:
                server.login(_resolved(smtp.username), _resolved(smtp.password))
            return server
        except (OSError, smtplib.SMTPException, Undelivered) as error:
            if server is not None:
                server.close()
            if isinstance(error, Undelivered):
                raise
            raise Undelivered(f"no session with the mail server: {_kind(error)}") from None

    def _mail(self, message: Message) -> EmailMessage:
        mail = EmailMessage()
        try:
            mail["Message-ID"] = f"<{message.id}@{self.smtp.sender.rpartition('@')[2]}>"
            mail["Date"] = datetime.fromisoformat(message.at)
            mail["From"] = self.smtp.sender
            mail["To"] = tuple(Group(team) for team in message.teams)
            mail["Subject"] = message.subject
            mail["Auto-Submitted"] = "auto-generated"
            mail.set_content(message.text())
            mail.add_alternative(message.html(), subtype="html")
            for path in message.attachments:
                guessed = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
                main, _, sub = guessed.partition("/")
                mail.add_attachment(
                    path.read_bytes(), maintype=main, subtype=sub, filename=path.name
                )
        except ValueError as error:  # such as a line break in a header
            raise Undelivered(f"not a message: {type(error).__name__}", permanent=True) from None
        except OSError as error:
            raise Undelivered(f"an attachment cannot be read: {_kind(error)}") from None
        return mail


def _holds(path: Path, message_id: str) -> bool:
    return path.exists() and f'"id": "{message_id}"'.encode() in path.read_bytes()


def _resolved(value: str) -> str:
    """The value itself, or what the environment holds for `env:NAME`."""
    if not value.startswith("env:"):
        return value
    name = value.removeprefix("env:")
    if not os.environ.get(name):
        raise Undelivered(f"the environment variable {name} is not set")
    return os.environ[name]


def _kind(error: Exception) -> str:
    """What kind of error it was; its text could hold a secret."""
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{type(error).__name__} {error.smtp_code}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted ({error.verify_message})"
    return type(error).__name__


def _answer(code: int, text: bytes | str, recipient: str = "") -> Undelivered:
    """A mail server's refusal: 5xx is for good."""
    said = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    said = re.sub(r"\S*@\S*", "***", said.replace(recipient or "\0", "***"))
    printable = "".join(c if c.isprintable() else " " for c in said)
    return Undelivered(f"{code} {printable}", permanent=500 <= code < 600)
