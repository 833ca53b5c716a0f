"""Telling teams: every message is on disk before it is sent (`outbox`), then goes out through each
of the teams' channels (`channels`)."""

from recovery_pipelines.notifications.outbox import (
    forget,
    notify,
    post,
    receipts,
    resend,
    send_pending,
)

__all__ = ["forget", "notify", "post", "receipts", "resend", "send_pending"]
