"""Telling teams: one message to each of a team's channels. A failed message never fails a drill."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import requests

from recovery_pipelines.plan import Plan
from recovery_pipelines.plan.model import Channel

log = logging.getLogger("recovery_pipelines")

_WEBHOOK_TIMEOUT_SECONDS = 10


def notify(plan: Plan, teams: Iterable[str], subject: str, details: Mapping[str, object]) -> None:
    """Send one message to every channel of `teams`; a channel that several share gets it once."""
    names = list(dict.fromkeys(teams))
    message = {
        "at": datetime.now(UTC).isoformat(),
        "teams": names,
        "subject": subject,
        **details,
    }
    channels = dict.fromkeys(channel for name in names for channel in plan.teams[name])
    for channel in channels:
        try:
            _send(channel, message, plan.data_home)
        except (OSError, requests.RequestException, KeyError) as error:
            # Never the exception's text: it can hold a secret address.
            log.warning("notification %r was not delivered: %s", subject, type(error).__name__)


def _send(channel: Channel, message: dict[str, object], home: Path) -> None:
    if channel.log:
        log.info("notification to %s: %s", message["teams"], message["subject"])
    elif channel.file:
        path = home / channel.file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(message, default=str) + "\n")
    elif channel.webhook:
        address = channel.webhook
        if address.startswith("env:"):
            address = os.environ[address.removeprefix("env:")]
        body = json.loads(json.dumps(message, default=str))
        reply = requests.post(address, json=body, timeout=_WEBHOOK_TIMEOUT_SECONDS)
        reply.raise_for_status()
