"""The outbox: `notifications/` in the data home.

A message is a folder in `outbox/` from before its first attempt until every recipient has it or
has refused it. `receipts.jsonl` gets a line before each attempt and one after it, for each
recipient. Between the two a process can be killed with the message delivered or not: then it is
sent again, with the same id, and says so. So a message is never lost, and a repetition can be told.
"""

import json
import logging
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.evidence import head_line
from recovery_pipelines.files import append_line, replacing, sync
from recovery_pipelines.notifications.channels import (
    Destination,
    Undelivered,
    destinations,
    notifier,
)
from recovery_pipelines.notifications.message import Message
from recovery_pipelines.plan import Plan
from recovery_pipelines.sandbox import exclusive
from recovery_pipelines.sandbox.lease import private_directory
from recovery_pipelines.secrecy import forbid_core_files

log = logging.getLogger("recovery_pipelines")

FOLDER_NAME = "notifications"
RECEIPTS_NAME = "receipts.jsonl"
_MESSAGE_NAME = "message.json"
_LOCK = "notifications"
_LOCK_TIMEOUT_SECONDS = 30.0
_FIRST_DELAY = timedelta(minutes=1)
_LONGEST_DELAY = timedelta(hours=1)
# RFC 5321, 4.5.4.1: "the give-up time generally needs to be at least 4-5 days".
_GIVE_UP_AFTER = timedelta(days=5)
_ABANDONED_AFTER = timedelta(hours=1)

COLUMNS = (
    "message_id",
    "subject",
    "team",
    "channel",
    "recipient",
    "state",
    "attempts",
    "queued_at",
    "last_attempt_at",
    "reason",
)


_OTHER_FIELDS = ("attempts", "last_attempt_at", "unsure")


@dataclass(frozen=True)
class Receipt:
    """Where one message stands with one recipient: a line of the receipts."""

    message_id: str
    subject: str
    team: str
    channel: str
    recipient: str
    """Masked."""
    key: str
    """The recipient's `Destination.key`."""
    state: str
    """`pending` (will be tried again), `sending` (an attempt began), `sent`, `failed`, or `resent`
    (failed, and sent anew as another message)."""
    attempts: int
    queued_at: str
    last_attempt_at: str | None
    reason: str
    """Why it is not sent."""
    unsure: bool
    """The latest attempt may have reached the recipient."""

    @classmethod
    def parse(cls, fields: Any) -> "Receipt":
        """From the values of JSON. ValueError or TypeError if they are no receipt."""
        receipt = cls(**fields)
        texts = [value for name, value in fields.items() if name not in _OTHER_FIELDS]
        known_times = [receipt.queued_at, *filter(None, [receipt.last_attempt_at])]
        if not all(isinstance(text, str) for text in texts) or type(receipt.attempts) is not int:
            raise ValueError("a value is of another type")
        if any(datetime.fromisoformat(time).tzinfo is None for time in known_times):
            raise ValueError("a time without a zone")
        return receipt

    @property
    def is_settled(self) -> bool:
        return self.state in ("sent", "failed", "resent")

    def is_due(self, now: datetime) -> bool:
        """The delay doubles with each attempt. A clock that was set back does not stop it."""
        if self.last_attempt_at is None:
            return True
        delay = min(_FIRST_DELAY * 2.0 ** min(self.attempts - 1, 10), _LONGEST_DELAY)
        return abs(now - datetime.fromisoformat(self.last_attempt_at)) >= delay

    def after(self, refusal: Undelivered | None, now: datetime) -> "Receipt":
        """What stands after an attempt."""
        if refusal is None:
            return replace(self, state="sent", reason="", unsure=False)
        if refusal.permanent:
            return replace(self, state="failed", reason=refusal.reason, unsure=False)
        if now - datetime.fromisoformat(self.queued_at) >= _GIVE_UP_AFTER:
            reason = f"given up after {_GIVE_UP_AFTER.days} days: {refusal.reason}"
            return replace(self, state="failed", reason=reason, unsure=refusal.unsure)
        return replace(self, state="pending", reason=refusal.reason, unsure=refusal.unsure)


def notify(
    plan: Plan,
    teams: Iterable[str],
    subject: str,
    details: Mapping[str, object],
    attachments: Sequence[Path] = (),
) -> str | None:
    """Send one message to everyone of `teams`, each once; returns its id, None without teams.

    Never raises for what does not arrive: that is tried again by the next call and by the sensor
    `recovery_notifications`, and stands in `receipts`. Raises RecoveryError for an unknown team.
    """
    message_id = post(plan, teams, subject, details, attachments)
    if message_id is not None:
        send_pending(plan)
    return message_id


def post(
    plan: Plan,
    teams: Iterable[str],
    subject: str,
    details: Mapping[str, object],
    attachments: Sequence[Path] = (),
) -> str | None:
    """As `notify`, but the message stays in the outbox until the next `send_pending`."""
    names = list(dict.fromkeys(teams))
    unknown = [name for name in names if name not in plan.teams]
    if unknown:
        defined = ", ".join(plan.teams) or "none"
        raise RecoveryError(f"the plan defines no team {unknown[0]!r}; defined: {defined}")
    if not names:
        return None
    now = datetime.now(UTC)
    message = Message(
        id=_new_id(now),
        at=now.isoformat(timespec="seconds"),
        teams=tuple(names),
        subject=" ".join(subject.split()),
        details=_as_json({"evidence_head": head_line(plan.data_home), **details}),
        attachments=tuple(attachments),
    )
    try:
        _queue(plan.data_home, message, destinations(plan, names))
    except (OSError, RecoveryError) as error:
        log.error("a notification cannot be kept (%s) and is sent only once", error)
        _send_unkept(plan, message)
    return message.id


def send_pending(plan: Plan, now: datetime | None = None) -> list[Receipt]:
    """Try everything that is due at `now`; returns what became of it. One process at a time.

    Whoever waits too long for another process leaves it to that one and to the next call.
    """
    forbid_core_files()
    home, tried = plan.data_home, list[Receipt]()
    if not _open_folders(home):
        return tried
    try:
        with exclusive(home, _LOCK, _LOCK_TIMEOUT_SECONDS):
            tried += _send_due(plan, now or datetime.now(UTC))
    except (OSError, RecoveryError) as error:
        log.warning("notifications wait in %s: %s", home / FOLDER_NAME, error)
    for receipt in tried:
        if receipt.state != "sent":
            log.warning(
                "notification %r did not reach %s (%s): %s",
                receipt.subject,
                receipt.recipient,
                receipt.state,
                receipt.reason,
            )
    return tried


def resend(plan: Plan, message_id: str | None = None) -> list[str]:
    """Send what was given up on anew, to those who did not get it; returns the new ids.

    All such messages, or one. A new message names the old one; attachments are not kept. Who left
    the plan is left out. Raises RecoveryError if there is no failed message of that id.
    """
    home, now = plan.data_home, datetime.now(UTC)
    kept = sorted((home / FOLDER_NAME / "failed").glob(f"{message_id or '*'}.json"))
    if message_id and not kept:
        raise RecoveryError(f"no failed message has the id {message_id!r}")
    made = []
    for path in kept:
        message, recipients = _read_message(path)
        newest = _newest_receipts(home)
        current = {r.key: newest.get((message.id, r.key), r) for r in recipients}
        teams = [team for team in message.teams if team in plan.teams]
        wanted = [
            destination
            for destination in destinations(plan, teams)
            if destination.key in current and current[destination.key].state == "failed"
        ]
        if not wanted:
            continue
        again = replace(
            message,
            id=_new_id(now),
            at=now.isoformat(timespec="seconds"),
            attachments=(),
            details={**message.details, "sent_again": f"{message.id} of {message.at}"},
        )
        _queue(home, again, wanted)
        for destination in wanted:
            told = replace(current[destination.key], state="resent", reason=f"as {again.id}")
            _keep(home, told)
        path.unlink()
        made.append(again.id)
    send_pending(plan)
    return made


def forget(home: Path, days: float, now: datetime | None = None) -> int:
    """Remove receipts and failed messages that are settled and older than `days`.

    Of settled messages that are younger only the last line of each recipient stays. Returns how
    many lines went. Raises RecoveryError if another process sends for too long.
    """
    path = home / FOLDER_NAME / RECEIPTS_NAME
    if not path.exists():
        return 0
    oldest = (now or datetime.now(UTC)).timestamp() - days * 86_400
    with exclusive(home, _LOCK, _LOCK_TIMEOUT_SECONDS):
        before = path.read_bytes().count(b"\n")
        kept = [
            receipt
            for receipt in _newest_receipts(home).values()
            if not receipt.is_settled
            or datetime.fromisoformat(receipt.queued_at).timestamp() >= oldest
        ]
        with replacing(path) as unfinished:
            lines = [json.dumps(asdict(receipt)) + "\n" for receipt in kept]
            unfinished.write_text("".join(lines), encoding="utf-8")
            unfinished.chmod(0o600)
        for failed in (home / FOLDER_NAME / "failed").glob("*.json"):
            if failed.stat().st_mtime < oldest:
                failed.unlink()
    return before - len(kept)


def receipts(home: Path) -> pd.DataFrame:
    """One row for each message and recipient, in the order of the messages.

    Columns: message_id, subject, team, channel (its key in the plan), recipient (masked), state
    (`Receipt.state`), attempts, queued_at and last_attempt_at (UTC), reason (without secrets).
    """
    queued = [receipt for _, _, recipients in _open_messages(home) for receipt in recipients]
    newest = {(r.message_id, r.key): r for r in queued} | _newest_receipts(home)
    rows = sorted(map(asdict, newest.values()), key=lambda row: str(row["message_id"]))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    for column in ("queued_at", "last_attempt_at"):
        frame[column] = pd.to_datetime(frame[column], utc=True, format="ISO8601")
    return frame


def _queue(home: Path, message: Message, recipients: Sequence[Destination]) -> None:
    """Put the message into the outbox, whole and on disk, or not at all."""
    outbox = _outbox(home)
    unfinished = outbox / f".{message.id}"
    unfinished.mkdir(mode=0o700)
    attachments = []
    for number, path in enumerate(message.attachments, 1):
        copy = unfinished / str(number) / path.name
        copy.parent.mkdir()
        shutil.copyfile(path, copy)
        sync(copy)
        attachments.append(f"{number}/{path.name}")
    pending = [
        Receipt(
            message_id=message.id,
            subject=message.subject,
            team=", ".join(recipient.teams),
            channel=recipient.kind,
            recipient=recipient.masked,
            key=recipient.key,
            state="pending",
            attempts=0,
            queued_at=message.at,
            last_attempt_at=None,
            reason="",
            unsure=False,
        )
        for recipient in recipients
    ]
    content = {
        "message": asdict(message) | {"attachments": attachments},
        "recipients": [asdict(receipt) for receipt in pending],
    }
    path = unfinished / _MESSAGE_NAME
    path.write_text(json.dumps(content), encoding="utf-8")
    sync(path)
    unfinished.rename(outbox / message.id)
    sync(outbox)


def _send_due(plan: Plan, now: datetime) -> Iterator[Receipt]:
    """Try what is due. Only under the lock."""
    home = plan.data_home
    newest = _newest_receipts(home)
    not_answering: set[str] = set()
    for folder, message, recipients in _open_messages(home):
        current = {r.key: newest.get((message.id, r.key), r) for r in recipients}
        named = destinations(plan, [team for team in message.teams if team in plan.teams])
        everyone = {destination.key: destination for destination in named}
        for group in _groups([r for r in current.values() if not r.is_settled and r.is_due(now)]):
            reached_by = "email" if group[0].channel == "email" else group[0].key
            if reached_by in not_answering:
                continue
            done = _attempt(plan, message, group, everyone, now)
            if all(receipt.state == "pending" for receipt in done):
                not_answering.add(reached_by)  # every other message would have to wait for it too
            current |= {receipt.key: receipt for receipt in done}
            yield from done
        if all(receipt.is_settled for receipt in current.values()):
            _put_away(home, folder, failed=any(r.state == "failed" for r in current.values()))
    _remove_abandoned(home, now)


def _attempt(
    plan: Plan,
    message: Message,
    group: Sequence[Receipt],
    everyone: Mapping[str, Destination],
    now: datetime,
) -> list[Receipt]:
    """One attempt at recipients that are reached together, with its lines in the receipts."""
    home, at = plan.data_home, now.isoformat(timespec="seconds")
    gone = Undelivered("the plan no longer names this recipient", permanent=True)
    done = [_keep(home, r.after(gone, now)) for r in group if r.key not in everyone]
    group = [receipt for receipt in group if receipt.key in everyone]
    if not group:
        return done
    repeated = any(receipt.unsure for receipt in group)
    begun = [
        replace(r, state="sending", attempts=r.attempts + 1, last_attempt_at=at, unsure=True)
        for r in group
    ]
    for receipt in begun:
        _keep(home, receipt)
    addresses = {receipt.key: everyone[receipt.key].address for receipt in begun}
    message = replace(message, repeated=repeated)
    refused = _send(plan, begun[0].channel, message, list(addresses.values()))
    return done + [_keep(home, r.after(refused.get(addresses[r.key]), now)) for r in begun]


def _send(
    plan: Plan, kind: str, message: Message, addresses: Sequence[str]
) -> Mapping[str, Undelivered]:
    """The recipients that did not get the message, and why. Raises nothing."""
    try:
        return notifier(kind, plan).send(message, addresses)
    except Undelivered as error:
        return dict.fromkeys(addresses, error)
    except Exception as error:  # whatever a service's code may raise; its text could hold a secret
        return dict.fromkeys(addresses, Undelivered(type(error).__name__, unsure=True))


def _send_unkept(plan: Plan, message: Message) -> None:
    for destination in destinations(plan, message.teams):
        refused = _send(plan, destination.kind, message, [destination.address])
        for error in refused.values():
            log.error("notification %r was lost: %s", message.subject, error.reason)


def _groups(due: Sequence[Receipt]) -> list[list[Receipt]]:
    """Those that one attempt reaches: all e-mail together, everything else by itself."""
    mail = [receipt for receipt in due if receipt.channel == "email"]
    return [*([mail] if mail else []), *([r] for r in due if r.channel != "email")]


# --- on disk ------------------------------------------------------------------------------


def _outbox(home: Path) -> Path:
    outbox = private_directory(home, FOLDER_NAME) / "outbox"
    outbox.mkdir(mode=0o700, exist_ok=True)
    return outbox


def _open_folders(home: Path) -> list[Path]:
    """The messages that are not settled, oldest first."""
    outbox = home / FOLDER_NAME / "outbox"
    if not outbox.is_dir():
        return []
    return sorted(
        folder for folder in outbox.iterdir() if folder.is_dir() and folder.name[0] != "."
    )


def _open_messages(home: Path) -> Iterator[tuple[Path, Message, list[Receipt]]]:
    """Each unsettled message with its recipients as they were before the first attempt."""
    for folder in _open_folders(home):
        try:
            message, recipients = _read_message(folder / _MESSAGE_NAME)
        except FileNotFoundError:
            continue  # settled meanwhile, by another process
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            problem = type(error).__name__
            log.error("the message in %s cannot be read (%s) and is not sent", folder, problem)
            continue
        yield folder, message, recipients


def _read_message(path: Path) -> tuple[Message, list[Receipt]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    said = content["message"]
    paths = tuple(path.parent / name for name in said["attachments"])
    message = Message(**said | {"teams": tuple(said["teams"]), "attachments": paths})
    texts = (message.id, message.at, message.subject, *message.teams)
    if not all(isinstance(text, str) for text in texts) or not isinstance(message.details, dict):
        raise ValueError("a value is of another type")
    return message, [Receipt.parse(fields) for fields in content["recipients"]]


def _new_id(now: datetime) -> str:
    return f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"


def _newest_receipts(home: Path) -> dict[tuple[str, str], Receipt]:
    """The latest line for each message and recipient; a line torn by a crash does not count."""
    path = home / FOLDER_NAME / RECEIPTS_NAME
    newest: dict[tuple[str, str], Receipt] = {}
    if not path.exists():
        return newest
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            receipt = Receipt.parse(json.loads(line))
        except (ValueError, TypeError, AttributeError, RecursionError):
            log.warning("%s:%d is not a receipt", path, number)
            continue
        newest[receipt.message_id, receipt.key] = receipt
    return newest


def _keep(home: Path, receipt: Receipt) -> Receipt:
    line = json.dumps(asdict(receipt)).encode() + b"\n"
    append_line(home / FOLDER_NAME / RECEIPTS_NAME, line)
    return receipt


def _put_away(home: Path, folder: Path, *, failed: bool) -> None:
    """Out of the outbox; what someone did not get is kept in `failed/`, without attachments."""
    if failed:
        kept = home / FOLDER_NAME / "failed"
        kept.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(folder / _MESSAGE_NAME, kept / f"{folder.name}.json")
        sync(kept / f"{folder.name}.json")
    settled = folder.with_name(f".{folder.name}")
    folder.rename(settled)
    shutil.rmtree(settled)


def _remove_abandoned(home: Path, now: datetime) -> None:
    """What a process that was killed left half made or half removed."""
    for folder in (home / FOLDER_NAME / "outbox").glob(".*"):
        if now.timestamp() - folder.stat().st_mtime > _ABANDONED_AFTER.total_seconds():
            shutil.rmtree(folder, ignore_errors=True)


def _as_json(details: Mapping[str, object]) -> dict[str, object]:
    content: dict[str, object] = json.loads(json.dumps(details, default=str))
    return content
