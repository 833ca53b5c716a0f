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
from click.testing import CliRunner

from recovery_pipelines.cli import recovery
from recovery_pipelines.drills.failure import tell_failure, tell_resolved
from recovery_pipelines.drills.overdue import longest_time, tell_overdue
from recovery_pipelines.drills.recoveries import carry_out
from recovery_pipelines.errors import PlanError, RecoveryError
from recovery_pipelines.notifications import forget, notify, receipts, send_pending
from recovery_pipelines.orchestration.partitions import first_start
from recovery_pipelines.plan import DrillSpec, Plan
from recovery_pipelines.verdict import Verdict
from tests.dagster_dev import dagster_dev, wait_for
from tests.mail import MailServer, break_connection, certificate, receiving_mail
from tests.plans import MONTH, make_plan, make_spec
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


# --- failures, resolved, overdue ------------------------------------------------------------

DATA = "test_framework__test_scenarios__data_recovery"
NO_RECOVERY = ["create_test_dataset", "simulate_corruption", "validate_data"]


def told(home: Path, word: str) -> list[dict[str, Any]]:
    path = home / "notifications.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [m for m in map(json.loads, lines) if word in m["subject"]]


def write_record(spec: DrillSpec, run_id: str, verdict: Verdict, message: str, hour: int) -> None:
    folder = spec.plan.data_home / "drills" / spec.name / MONTH / run_id
    folder.mkdir(parents=True)
    content = {
        "drill": spec.name,
        "month": MONTH,
        "run_id": run_id,
        "verdict": verdict,
        "checks": [],
        "errors": [],
        "messages": [message],
        "not_tested": [],
        "metrics": {"started_at": at(hour).isoformat()},
    }
    (folder / "record.json").write_text(json.dumps(content))


def at(hour: int) -> datetime:
    return datetime(2026, 11, 1, tzinfo=UTC) + timedelta(hours=hour)


def fail(spec: DrillSpec, hour: int, message: str = "repository 0123456789ab is gone") -> None:
    write_record(spec, f"run{hour}", Verdict.FAIL, message, hour)
    tell_failure(spec, MONTH, f"run{hour}", "", [])


def test_the_same_failure_is_told_once_until_it_is_resolved(tmp_path: Path) -> None:
    first, other = make_plan(tmp_path).drills()
    home = first.plan.data_home
    fail(first, 1, "repository 0123456789ab is gone after 3 s")
    fail(first, 2, "repository ba9876543210 is gone after 41 s")
    fail(other, 3, "repository 00000000ffff is gone after 7 s")
    assert len(told(home, "failed")) == 1, "the same failure of the same target"
    fail(first, 4, "checksums differ")
    assert len(told(home, "failed")) == 2, "another failure is news"
    tell_resolved(first, MONTH, at(5))
    assert len(told(home, "resolved")) == 1
    assert told(home, "resolved")[0]["was"] == "FAIL; checksums differ"
    tell_resolved(first, MONTH, at(6))
    assert len(told(home, "resolved")) == 1, "it is over once"
    fail(first, 7, "checksums differ")
    assert len(told(home, "failed")) == 3, "it came back"


def test_resolved_waits_until_no_drill_of_the_target_has_the_failure(tmp_path: Path) -> None:
    first, other = make_plan(tmp_path).drills()
    home = first.plan.data_home
    fail(first, 1)
    fail(other, 2)
    tell_resolved(first, MONTH, at(3))
    assert told(home, "resolved") == []
    tell_resolved(other, MONTH, at(4))
    assert [message["drill"] for message in told(home, "resolved")] == [other.name]


def test_a_failure_that_is_told_after_a_later_pass_does_not_stay_open(tmp_path: Path) -> None:
    spec = make_plan(tmp_path).drills()[0]
    tell_resolved(spec, MONTH, at(2))
    fail(spec, 1)
    fail(spec, 3)
    assert len(told(spec.plan.data_home, "failed")) == 2


def test_a_failure_that_nobody_heard_of_is_told_again(tmp_path: Path, mail: MailServer) -> None:
    mail.on_recipient = lambda address: "550 no"
    spec = mail_plan(tmp_path, mail).drills()[0]
    fail(spec, 1)
    mail.on_recipient = lambda address: None
    fail(spec, 2)
    assert [message.subject for message in mail.received] == [
        f"recovery drill {spec.name} {MONTH}: failed"
    ]


def test_a_real_drill_that_fails_and_passes_again(tmp_path: Path) -> None:
    failing = make_spec(tmp_path, **{f"{DATA}__scenarios__0__steps": NO_RECOVERY})
    record = carry_out(failing, MONTH, "run-1")
    assert record.verdict is Verdict.FAIL
    tell_failure(failing, MONTH, "run-1", record.reason, [])
    assert carry_out(make_spec(tmp_path), MONTH, "run-2").verdict is Verdict.PASS
    home = failing.plan.data_home
    assert [len(told(home, word)) for word in ("failed", "resolved")] == [1, 1]
    assert all(m["evidence_head"] for m in told(home, ""))
    assert told(home, "resolved")[0]["evidence_head"].startswith("3 ")


def test_a_month_without_its_drill_is_told_once(tmp_path: Path) -> None:
    specs = make_plan(tmp_path).drills()
    home = specs[0].plan.data_home
    month = datetime(2026, 11, 1, tzinfo=UTC)
    due = month + timedelta(hours=3) + longest_time(specs)
    installed = month - timedelta(days=10)
    assert tell_overdue(specs, first_start, installed) == [], "October began before the first call"
    assert tell_overdue(specs, first_start, due - timedelta(minutes=1)) == []
    write_record(specs[1], "run", Verdict.UNVERIFIED, "", 4)
    assert tell_overdue(specs, first_start, due) == [f"{specs[0].name} {MONTH}"]
    assert tell_overdue(specs, first_start, due + timedelta(days=20)) == []
    (message,) = told(home, "overdue")
    assert message["drills"] == [specs[0].name]
    assert message["teams"] == ["admin_team"]
    late = tell_overdue(specs, first_start, due + timedelta(days=40))
    assert sorted(late) == sorted(f"{spec.name} 2026-12-01" for spec in specs)


@pytest.mark.parametrize(
    ("cron", "start"),
    [
        ("0 3 1 * *", datetime(2026, 11, 1, 3, tzinfo=UTC)),
        ("30 4 * * 1", datetime(2026, 11, 2, 4, 30, tzinfo=UTC)),
        ("0 0 1 */2 *", datetime(2026, 11, 1, tzinfo=UTC)),
        ("0 3 1 1 *", None),
    ],
)
def test_the_first_start_of_a_month(cron: str, start: datetime | None) -> None:
    assert first_start(cron, datetime(2026, 11, 1, tzinfo=UTC)) == start


def test_drills_that_start_by_hand_are_never_overdue(tmp_path: Path) -> None:
    specs = make_plan(tmp_path, **{f"{DATA}__automation__schedule": "manual"}).drills()
    for days in (0, 100):
        assert tell_overdue(specs, first_start, at(24 * days)) == []


# --- the command and the sensor ------------------------------------------------------------


def test_the_command_shows_and_tests(tmp_path: Path, mail: MailServer) -> None:
    mail.on_recipient = {B: "550 no such user"}.get
    path = plan_file(tmp_path, mail_plan(tmp_path, mail))
    arguments = ["notifications", "--plan", str(path)]
    run = CliRunner().invoke(recovery, [*arguments, "test", "admin_team"])
    assert run.exit_code == 1, run.output
    assert "550 no such user" in run.output
    mail.on_recipient = lambda address: None
    assert CliRunner().invoke(recovery, [*arguments, "test", "admin_team"]).exit_code == 0
    shown = CliRunner().invoke(recovery, arguments).output
    assert "3 sent, 1 failed" in shown
    assert B not in shown


def test_what_was_given_up_on_is_sent_again_to_those_who_missed_it(
    tmp_path: Path, mail: MailServer
) -> None:
    mail.on_recipient = {B: "550 no such user"}.get
    plan = mail_plan(tmp_path, mail)
    first = tell(plan)
    assert states(plan) == ["sent", "failed"]
    mail.on_recipient = lambda address: None
    arguments = ["notifications", "--plan", str(plan_file(tmp_path, plan)), "resend"]
    run = CliRunner().invoke(recovery, arguments)
    assert run.exit_code == 0, run.output
    assert [message.recipients for message in mail.received] == [[A], [B]]
    assert str(first) in mail.received[1].message.as_string()
    assert sorted(states(plan)) == ["resent", "sent", "sent"]
    again = CliRunner().invoke(recovery, arguments)
    assert (again.exit_code, len(mail.received)) == (0, 2)
    assert "nothing to send again" in again.output
    unknown = CliRunner().invoke(recovery, [*arguments, "unknown"])
    assert "no failed message has the id 'unknown'" in str(unknown.exception)


def test_old_receipts_are_forgotten_and_open_ones_are_not(tmp_path: Path, mail: MailServer) -> None:
    plan = mail_plan(tmp_path, mail)
    tell(plan)
    mail.on_data = lambda server: "451 later"
    tell(plan)
    lines = plan.data_home / "notifications" / "receipts.jsonl"
    before = receipts(plan.data_home)
    assert forget(plan.data_home, 365) > 0
    assert receipts(plan.data_home).equals(before)
    assert len(lines.read_text().splitlines()) == 4
    forget(plan.data_home, 365, datetime.now(UTC) + timedelta(days=366))
    assert states(plan) == ["pending", "pending"]
    mail.on_data = lambda server: None
    send_later(plan)
    assert states(plan) == ["sent", "sent"]


def test_the_sensors_of_a_real_dagster_send_and_watch(tmp_path: Path, mail: MailServer) -> None:
    teams = [{"email": [A]}]
    down = mail.settings | {"port": 1}
    before = make_plan(tmp_path, teams__admin_team=teams, smtp=down)
    tell(before, "waits for the sensor")
    receipts_file = before.data_home / "notifications" / "receipts.jsonl"
    past = (datetime.now(UTC) - LATER).isoformat()
    lines = [json.loads(line) for line in receipts_file.read_text().splitlines()]
    changed = [json.dumps(line | {"last_attempt_at": past}) for line in lines]
    receipts_file.write_text("\n".join(changed) + "\n")
    with dagster_dev(tmp_path, teams__admin_team=teams, smtp=mail.settings) as dev:
        wait_for(lambda: mail.received, 120, "the sensor to send")
        wait_for((dev.home / "notifications" / "overdue.json").exists, 120, "the watch to begin")
    assert [message.subject for message in mail.received] == ["waits for the sensor"]
    assert states(before) == ["sent"]
