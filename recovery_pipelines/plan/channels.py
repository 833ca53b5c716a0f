"""How the plan's `teams` are reached."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from recovery_pipelines.plan.base import Strict

if TYPE_CHECKING:
    import apprise


MailAddress = Annotated[
    str, Field(pattern=r"^[!#-'*+\-./0-9=?A-Z^_`a-z{|}~]{1,64}@[A-Za-z0-9.\-]{1,255}$")
]
Secret = Annotated[str, Field(pattern=r"^env:[A-Za-z_][A-Za-z0-9_]*$")]
"""`env:NAME`: the value is in the environment, never in the plan."""
WebAddress = Annotated[str, Field(pattern=r"^(https?://\S+|env:[A-Za-z_][A-Za-z0-9_]*)$")]


def apprise_service(address: str) -> "apprise.NotifyBase":
    """The service that an apprise address stands for. ValueError, without the address, if none."""
    import apprise  # slow, and seldom needed

    asset = apprise.AppriseAsset(storage_mode=apprise.PersistentStoreMode.MEMORY)
    logger = logging.getLogger("apprise")
    was_off, logger.disabled = logger.disabled, True  # it would log an address it cannot read
    try:
        service = apprise.Apprise.instantiate(address, asset=asset)
    finally:
        logger.disabled = was_off
    if service is None:
        raise ValueError("not an address that apprise knows")
    if len(service) > service.retry + 1:
        raise ValueError("several recipients in one apprise address: give each its own channel")
    return service


def _known_to_apprise(address: str) -> str:
    if not address.startswith("env:"):
        apprise_service(address)
    return address


AppriseAddress = Annotated[str, AfterValidator(_known_to_apprise)]
_SMTP_PORTS = {"starttls": 587, "ssl": 465, "none": 25}


class Smtp(Strict):
    """The server that takes the teams' e-mail."""

    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:\-]{1,255}$")]
    """Its name or address."""
    port: Annotated[int, Field(ge=1, le=65535)] = 0
    """0 stands for 587 with starttls, 465 with ssl, 25 with none."""
    security: Literal["starttls", "ssl", "none"] = "starttls"
    """Of the connection; `none` takes no password."""
    sender: MailAddress
    """The address that mail comes from."""
    username: str | None = None
    """With a `password`, to log in."""
    password: Secret | None = None
    """`env:NAME`."""

    @model_validator(mode="before")
    @classmethod
    def _usual_port(cls, data: object) -> object:
        if isinstance(data, dict) and "port" not in data:
            port = _SMTP_PORTS.get(str(data.get("security", "starttls")))
            return {**data, "port": port} if port else data
        return data

    @model_validator(mode="after")
    def _safe_login(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("give both `username` and `password` (as env:NAME), or neither")
        if self.username is not None and self.security == "none":
            raise ValueError(
                "a password is not sent in the clear: security must be starttls or ssl"
            )
        return self


class Channel(Strict):
    """One way to reach a team: exactly one key."""

    log: Literal[True] | None = None
    """The log of the process."""
    file: Path | None = None
    """A file of JSON lines, relative to `data_home`."""
    webhook: WebAddress | None = None
    """An http(s) address that takes a JSON body, or `env:NAME` for an address that is secret."""
    email: Annotated[tuple[MailAddress, ...], Field(min_length=1)] | None = None
    """Addresses, reached through the plan's `smtp`."""
    apprise: AppriseAddress | None = None
    """An address of a service that apprise knows, or `env:NAME`; one recipient each."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(ways) != 1:
            raise ValueError(f"a channel has exactly one of: {', '.join(type(self).model_fields)}")
        return self
