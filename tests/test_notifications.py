"""Notifications: nothing is lost, nothing is doubled unseen, and receipts say what became of it."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from aiosmtpd.smtp import SMTP

from recovery_pipelines.errors import PlanError, RecoveryError
from recovery_pipelines.notifications import notify, receipts, send_pending
from recovery_pipelines.plan import Plan
from tests.dagster_dev import wait_for
from tests.mail import MailServer, break_connection, certificate, receiving_mail
from tests.plans import make_plan
from tests.webhook import receiving

A, B = "anna@example.org", "bert@example.org"
LATER = timedelta(minutes=2)


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with receiving_mail() as server:
        yield server


def plan_with(folder: Path, *channels: dict[str, Any], **changes: Any) -> Plan:
    """A plan whose admin_team has these channels."""
    return make_plan(folder, teams__admin_team=list(channels), **changes)


def mail_plan(folder: Path, server: MailServer, **settings: Any) -> Plan:
    return plan_with(folder, {"email": [A, B]}, smtp=server.settings | settings)


def tell(plan: Plan, subject: str = "a drill", **options: Any) -> str:
    message_id = notify(plan, ["admin_team"], subject, {"reason": "because"}, **options)
    assert message_id is not None
    return message_id


def states(plan: Plan) -> list[str]:
    return list(receipts(plan.data_home)["state"])


def send_later(plan: Plan, after: timedelta = LATER) -> None:
    send_pending(plan, datetime.now(UTC) + after)


# --- mail -----------------------------------------------------------------------------------


def test_mail_reaches_everyone_once_as_text_html_and_attachments(
    tmp_path: Path, mail: MailServer
) -> None:
    plan = mail_plan(tmp_path, mail)
    report = tmp_path / "report.pdf"
    report.write_bytes(b"%PDF-\0")
    message_id = tell(plan, "a <drill> failed", attachments=[report])
    (got,) = mail.received
    assert got.recipients == [A, B]
    assert got.id == f"<{message_id}@example.org>"
    assert A not in str(got.message["To"]), "recipients do not learn of each other"
    text, html = (got.message.get_body((kind,)) for kind in ("plain", "html"))
    assert text is not None and html is not None
    assert "reason: because" in text.get_content()
    assert "evidence head: none: " in text.get_content()
    assert "a &lt;drill&gt; failed" in html.get_content()
    (attachment,) = got.message.iter_attachments()
    assert attachment.get_filename() == "report.pdf"
    assert attachment.get_content() == b"%PDF-\0"
    assert states(plan) == ["sent", "sent"]
    assert list((plan.data_home / "notifications" / "outbox").iterdir()) == []


@pytest.mark.parametrize(
    ("to_anna", "to_bert", "expected"),
    [
        (None, "550 no such user", ["sent", "failed"]),
        (None, "450 mailbox busy", ["sent", "pending"]),
        ("550 no", "451 not now", ["failed", "pending"]),
        ("550 no", "553 no", ["failed", "failed"]),
        ("421 closing", None, ["pending", "pending"]),
        (None, "421 closing", ["pending", "pending"]),
    ],
)
def test_each_recipient_has_a_receipt(
    to_anna: str | None,
    to_bert: str | None,
    expected: list[str],
    tmp_path: Path,
    mail: MailServer,
) -> None:
    mail.on_recipient = {A: to_anna, B: to_bert}.get
    plan = mail_plan(tmp_path, mail)
    tell(plan)
    assert states(plan) == expected
    table = receipts(plan.data_home)
    assert not table.map(lambda cell: A in str(cell) or B in str(cell)).any(axis=None)
    mail.on_recipient = lambda address: None
    send_later(plan)
    got = Counter(address for message in mail.received for address in message.recipients)
    assert got == Counter(
        {address: 1 for address, s in zip((A, B), expected, strict=True) if s != "failed"}
    )
    assert "pending" not in states(plan)
    kept = list((plan.data_home / "notifications" / "failed").glob("*"))
    assert len(kept) == ("failed" in expected), "what was refused can be read there"


@pytest.mark.parametrize(("answer", "expected"), [("451 later", "pending"), ("554 spam", "failed")])
def test_a_message_that_is_refused(
    answer: str, expected: str, tmp_path: Path, mail: MailServer
) -> None:
    mail.on_data = lambda server: answer
    plan = mail_plan(tmp_path, mail)
    tell(plan)
    assert states(plan) == [expected] * 2
    assert set(receipts(plan.data_home)["reason"]) == {answer}


def test_a_temporary_failure_is_tried_again_with_longer_delays_and_given_up_after_days(
    tmp_path: Path, mail: MailServer
) -> None:
    attempts = []
    mail.on_data = lambda server: attempts.append(1) or "451 later"  # type: ignore[func-returns-value]
    plan = mail_plan(tmp_path, mail)
    tell(plan)
    start, delays = datetime.now(UTC), []
    seen, last = 1, start
    for minute in (*range(1, 120, 2), *range(120, 6 * 24 * 60, 30)):
        now = start + timedelta(minutes=minute)
        send_pending(plan, now)
        if len(attempts) > seen:
            seen = len(attempts)
            delays.append(now - last)
            last = now
    assert delays[:3] < delays[3:6] < delays[6:9]
    assert max(delays) <= timedelta(minutes=90)
    assert set(states(plan)) == {"failed"}
    assert receipts(plan.data_home)["reason"][0] == "given up after 5 days: 451 later"
    assert last - start >= timedelta(days=4, hours=23)


def test_a_connection_that_breaks_before_the_message_is_accepted(
    tmp_path: Path, mail: MailServer
) -> None:
    def cut(server: SMTP) -> str:
        break_connection(server)
        return "451 nobody hears this"

    mail.on_data = cut
    plan = mail_plan(tmp_path, mail)
    tell(plan)
    assert mail.received == []
    assert states(plan) == ["pending"] * 2
    mail.on_data = lambda server: None
    send_later(plan)
    assert [message.recipients for message in mail.received] == [[A, B]]
    assert states(plan) == ["sent"] * 2


def test_a_connection_that_breaks_before_the_answer_repeats_under_the_same_id(
    tmp_path: Path, mail: MailServer
) -> None:
    mail.after_data = break_connection
    plan = mail_plan(tmp_path, mail)
    tell(plan)
    assert states(plan) == ["pending"] * 2
    mail.after_data = lambda server: None
    send_later(plan)
    first, second = mail.received
    assert first.id == second.id, "a receiver can tell that it is the same"
    bodies = [message.message.get_body(("plain",)) for message in mail.received]
    assert ["before" in body.get_content() for body in bodies if body] == [False, True]
    assert states(plan) == ["sent"] * 2


def test_no_server_keeps_every_message(tmp_path: Path, mail: MailServer) -> None:
    plan = mail_plan(tmp_path, mail, port=1)
    sent = [tell(plan, f"message {number}") for number in range(3)]
    assert states(plan) == ["pending"] * 6
    assert receipts(plan.data_home)["attempts"].tolist()[:2] == [1, 1]
    again = mail_plan(tmp_path, mail)
    send_later(again)
    assert [message.id for message in mail.received] == [f"<{name}@example.org>" for name in sent]
    assert set(states(again)) == {"sent"}


def test_starttls_that_the_server_does_not_offer_sends_nothing_in_the_clear(
    tmp_path: Path, mail: MailServer
) -> None:
    plan = mail_plan(tmp_path, mail, security="starttls")
    tell(plan)
    assert mail.received == []
    assert states(plan) == ["pending"] * 2
    assert "SMTPNotSupportedError" in receipts(plan.data_home)["reason"][0]


def test_starttls_that_the_server_demands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, trusted = certificate(tmp_path)
    with receiving_mail(tls_context=context, require_starttls=True) as server:
        plan = mail_plan(tmp_path, server)
        tell(plan)
        assert server.received == []
        assert receipts(plan.data_home)["reason"][0].startswith("530 ")
        encrypted = mail_plan(tmp_path, server, security="starttls")
        tell(encrypted)
        assert "certificate is not trusted" in receipts(plan.data_home)["reason"].iloc[-1]
        assert server.received == []
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        send_later(encrypted)
        assert [message.recipients for message in server.received] == [[A, B]]


def test_a_login_needs_an_encrypted_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, trusted = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    login = {"security": "starttls", "username": "drills", "password": "env:MAIL_PASSWORD"}
    with receiving_mail(tls_context=context, require_starttls=True, logins=True) as server:
        plan = mail_plan(tmp_path, server, **login)
        for password, reason in ((None, "MAIL_PASSWORD is not set"), ("wrong", "535")):
            if password:
                monkeypatch.setenv("MAIL_PASSWORD", password)
            tell(plan)
            assert reason in receipts(plan.data_home)["reason"].iloc[-1]
        monkeypatch.setenv("MAIL_PASSWORD", "swordfish")
        send_later(plan)
        assert len(server.received) == 2
        assert set(states(plan)) == {"sent"}
        assert set(server.logins) == {"drills"}


def test_thirty_megabytes_go_through_or_are_refused_with_the_reason(tmp_path: Path) -> None:
    big = tmp_path / "report.bin"
    big.write_bytes(os.urandom(30_000_000))
    for limit, state in ((60_000_000, "sent"), (20_000_000, "failed")):
        with receiving_mail(data_size_limit=limit) as server:
            plan = mail_plan(tmp_path / state, server)
            tell(plan, attachments=[big])
            assert states(plan) == [state] * 2
            reasons = set(receipts(plan.data_home)["reason"])
            assert len(server.received) == (state == "sent")
            assert state == "sent" or "552" in reasons.pop()
            assert not list((plan.data_home / "notifications").rglob("report.bin"))


def test_a_line_break_adds_no_header(tmp_path: Path, mail: MailServer) -> None:
    plan = mail_plan(tmp_path, mail)
    tell(plan, "drill\r\nBcc: eve@example.org\r\n\r\nbody")
    bad = tmp_path / "a\nX-Header: 1"
    bad.write_text("")
    tell(plan, "attachment", attachments=[bad])
    assert mail.received[0].subject == "drill Bcc: eve@example.org body"
    assert "Bcc" not in mail.received[0].message
    assert all("X-Header" not in part for m in mail.received for part in m.message.walk())


# --- other channels -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, "sent"), (204, "sent"), (302, "failed"), (400, "failed"), (404, "failed")]
    + [(code, "pending") for code in (401, 429, 500, 503)],
)
def test_a_webhooks_answer_decides(status: int, expected: str, tmp_path: Path) -> None:
    with receiving(status) as (address, received):
        plan = plan_with(tmp_path, {"webhook": address + "secret-path"})
        message_id = tell(plan)
        assert states(plan) == [expected]
    assert [message["id"] for message in received] == [message_id]
    everything = "".join(
        path.read_text() for path in (plan.data_home / "notifications").rglob("*.json*")
    )
    assert "secret-path" not in everything


def test_a_webhook_that_does_not_answer_is_tried_again(tmp_path: Path) -> None:
    with receiving() as (address, _):
        pass
    plan = plan_with(tmp_path, {"webhook": "env:HOOK"})
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HOOK", raising=False)
        tell(plan)
        assert receipts(plan.data_home)["reason"][0] == "the environment variable HOOK is not set"
        patch.setenv("HOOK", address)
        send_later(plan)
        assert receipts(plan.data_home)["reason"][0] == "ConnectionError"
        with receiving() as (address, received):
            patch.setenv("HOOK", address)
            send_later(plan, timedelta(minutes=10))
            assert len(received) == 1
    assert states(plan) == ["sent"]


def test_apprise_sends_what_we_do_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attachment = tmp_path / "report.md"
    attachment.write_text("# Report")
    with receiving() as (address, received):
        name = address.replace("http://", "json://user:hidden@")
        plan = plan_with(tmp_path, {"apprise": name})
        tell(plan, attachments=[attachment])
    (message,) = received
    assert message["title"] == "a drill"
    assert "reason: because" in message["message"]
    assert [found["filename"] for found in message["attachments"]] == ["report.md"]
    tell(plan, "nobody listens")
    assert states(plan) == ["sent", "pending"]
    assert "hidden" not in caplog.text + receipts(plan.data_home).to_string()


def test_an_apprise_address_is_known_and_has_one_recipient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    two = "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#one/#two"
    for address, problem in ((two, "several recipients"), ("nonsense://x", "apprise knows")):
        with pytest.raises(PlanError, match=problem):
            plan_with(tmp_path, {"apprise": address})
        monkeypatch.setenv("SERVICE", address)
        plan = plan_with(tmp_path, {"apprise": "env:SERVICE"})
        tell(plan)
        assert problem in receipts(plan.data_home)["reason"].iloc[-1]
        send_later(plan)
    assert "nonsense" not in caplog.text


def test_who_is_in_several_teams_gets_it_once(tmp_path: Path, mail: MailServer) -> None:
    plan = make_plan(
        tmp_path,
        teams__admin_team=[{"email": [A]}, {"file": "told.jsonl"}],
        teams__stakeholders=[{"email": [B, A]}, {"file": "told.jsonl"}],
        smtp=mail.settings,
    )
    notify(plan, ["admin_team", "stakeholders", "admin_team"], "both", {})
    assert [message.recipients for message in mail.received] == [[A, B]]
    assert len((plan.data_home / "told.jsonl").read_text().splitlines()) == 1
    table = receipts(plan.data_home)
    assert sorted(table["team"]) == ["admin_team, stakeholders"] * 2 + ["stakeholders"]


def test_a_recipient_that_left_the_plan_is_not_told(tmp_path: Path, mail: MailServer) -> None:
    tell(mail_plan(tmp_path, mail, port=1))
    plan = plan_with(tmp_path, {"email": [B]}, smtp=mail.settings)
    send_later(plan)
    assert [message.recipients for message in mail.received] == [[B]]
    assert sorted(states(plan)) == ["failed", "sent"]


def test_an_unknown_team_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecoveryError, match=r"'nobody'; defined: admin_team"):
        notify(make_plan(tmp_path), ["nobody"], "x", {})


# --- the outbox -----------------------------------------------------------------------------

_TELL = """
import sys
from pathlib import Path
from recovery_pipelines.notifications import notify
from recovery_pipelines.plan import load_plan
plan = load_plan(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    print(notify(plan, ["admin_team"], f"{sys.argv[3]} {number}", {}), flush=True)
"""


def teller(plan_file: Path, count: int, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _TELL, plan_file, str(count), name],
        stdout=subprocess.PIPE,
        text=True,
    )


def plan_file(folder: Path, plan: Plan) -> Path:
    path = folder / "recovery.yaml"
    content = plan.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    path.write_text(json.dumps(content))
    return path


def test_processes_at_the_same_time_send_each_message_once(
    tmp_path: Path, mail: MailServer
) -> None:
    plan = plan_with(tmp_path, {"email": [A]}, {"file": "told.jsonl"}, smtp=mail.settings)
    path = plan_file(tmp_path, plan)
    tellers = [teller(path, 10, f"teller {number}") for number in range(4)]
    told = [line for process in tellers for line in process.communicate(timeout=120)[0].split()]
    send_pending(plan)
    assert len(set(told)) == 40
    assert Counter(message.id for message in mail.received) == Counter(
        f"<{name}@example.org>" for name in told
    )
    lines = (plan.data_home / "told.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == sorted(told)


def test_a_killed_sender_loses_nothing_and_repeats_only_what_it_says(
    tmp_path: Path, mail: MailServer
) -> None:
    plan = plan_with(tmp_path, {"email": [A]}, {"file": "told.jsonl"}, smtp=mail.settings)
    path, chance, told, kills = plan_file(tmp_path, plan), random.Random(1), set[str](), 0
    for round_ in range(12):
        process = teller(path, 50, f"round {round_}")
        before = len(mail.received)
        wanted = before + chance.randrange(1, 4)
        wait_for(lambda wanted=wanted: len(mail.received) >= wanted, 60, "messages")
        process.send_signal(signal.SIGKILL)
        told |= set(process.communicate()[0].split())
        kills += 1
    send_later(plan, timedelta(hours=2))
    got = Counter(message.id for message in mail.received)
    assert {f"<{name}@example.org>" for name in told} <= got.keys(), "nothing is lost"
    assert sum(got.values()) - len(got) <= kills
    for name, times in got.items():
        bodies = [m.message.get_body(("plain",)) for m in mail.received if m.id == name]
        marked = ["before" in body.get_content() for body in bodies if body]
        assert not marked[0] or times == 1
        assert all(marked[1:]), "what comes twice says so"
    lines = (plan.data_home / "told.jsonl").read_text().splitlines()
    in_file = Counter(json.loads(line)["id"] for line in lines)
    assert set(in_file.values()) == {1}, "a file never holds a message twice"
    assert told <= in_file.keys()
    assert set(states(plan)) == {"sent"}


def test_a_torn_receipt_does_not_hide_the_others(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, {"file": "told.jsonl"})
    tell(plan, "first")
    path = plan.data_home / "notifications" / "receipts.jsonl"
    path.write_bytes(path.read_bytes() + b'{"message_id": "cut o')
    tell(plan, "second")
    assert list(receipts(plan.data_home)["subject"]) == ["first", "second"]
    assert states(plan) == ["sent", "sent"]


def test_a_message_that_cannot_be_kept_is_sent_all_the_same(
    tmp_path: Path, mail: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    plan = mail_plan(tmp_path, mail)
    plan.data_home.mkdir()
    (plan.data_home / "notifications").write_text("a file is in the way")
    tell(plan)
    assert {address for message in mail.received for address in message.recipients} == {A, B}
    assert "sent only once" in caplog.text


def test_a_damaged_message_does_not_stop_the_others(tmp_path: Path, mail: MailServer) -> None:
    down = mail_plan(tmp_path, mail, port=1)
    name = tell(down, "damaged")
    tell(down, "whole")
    (down.data_home / "notifications" / "outbox" / name / "message.json").write_text("{")
    plan = mail_plan(tmp_path, mail)
    send_later(plan)
    assert [message.subject for message in mail.received] == ["whole"]
    assert "pending" in states(plan), "it is still listed"


def test_no_message_is_an_empty_table(tmp_path: Path) -> None:
    table = receipts(tmp_path)
    assert isinstance(table, pd.DataFrame)
    assert table.empty
    assert send_pending(make_plan(tmp_path)) == []
