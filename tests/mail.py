"""A real mail server on loopback that keeps what it accepts, and refuses as it is told."""

import email
import email.policy
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

Answer = str | None
"""A refusal such as `550 unknown`, or None to go on."""


@dataclass
class Mail:
    """One accepted message."""

    sender: str
    recipients: list[str]
    message: EmailMessage

    @property
    def subject(self) -> str:
        return str(self.message["Subject"])

    @property
    def id(self) -> str:
        return str(self.message["Message-ID"])


@dataclass
class MailServer:
    """The server's side: what came, and what to answer."""

    received: list[Mail] = field(default_factory=list)
    on_recipient: Callable[[str], Answer] = lambda address: None
    on_data: Callable[[SMTP], Answer] = lambda server: None
    """Called before the message counts as received."""
    after_data: Callable[[SMTP], None] = lambda server: None
    """Called when the message counts as received, and the client does not know it yet."""
    port: int = 0
    logins: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """The plan's `smtp`."""
        return {
            "host": "localhost",
            "port": self.port,
            "security": "none",
            "sender": "drills@example.org",
        }

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        refusal = self.on_recipient(address)
        if refusal:
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        refusal = self.on_data(server)
        if refusal:
            return refusal
        parsed = email.message_from_bytes(content, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        self.received.append(Mail(envelope.mail_from or "", list(envelope.rcpt_tos), parsed))
        self.after_data(server)
        return "250 OK"

    def check_login(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append(data.login.decode())
        return AuthResult(success=data.password == b"swordfish", handled=False)


@contextmanager
def receiving_mail(**options: Any) -> Iterator[MailServer]:
    """A server on a free port; `options` are aiosmtpd's."""
    server = MailServer()
    if options.pop("logins", False):
        options |= {"authenticator": server.check_login, "auth_required": True}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server.port = probe.getsockname()[1]
    controller = Controller(server, hostname="127.0.0.1", port=server.port, **options)
    controller.start()
    try:
        yield server
    finally:
        controller.stop()


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context for `localhost`, and the file that a client must trust."""
    key, crt = folder / "key.pem", folder / "crt.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    argv = [*make.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", crt]
    subprocess.run(argv, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    return context, crt


def break_connection(server: SMTP) -> None:
    """Cut the client off without an answer."""
    assert server.transport is not None
    server.transport.abort()
