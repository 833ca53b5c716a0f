"""Keeping secrets out of what people and disks get to see."""

import base64
import json
import resource
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

_SHORTEST = 4
"""What is shorter would mask ordinary words."""


def masked(text: str, secrets: Iterable[str]) -> str:
    """`text` without the secrets, as they are and as programs are used to write them."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            for form in sorted(forms(secret), key=len, reverse=True):
                text = text.replace(form, "***")
    return text


def forms(secret: str) -> set[str]:
    """A secret itself, and in base64, URL, hexadecimal, Python and JSON notation."""
    data = secret.encode("utf-8", "surrogateescape")
    return {
        secret,
        base64.b64encode(data).decode().rstrip("="),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        quote(data, safe=""),
        quote_plus(data),
        data.hex(),
        data.hex().upper(),
        repr(secret)[1:-1],
        ascii(secret)[1:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
    }


def forbid_core_files() -> None:
    """From now on this process and its children leave no core file, which would hold secrets."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
