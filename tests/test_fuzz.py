"""Damaged input for every parser: a short slice of the campaign, and that it would tell."""

import logging
from pathlib import Path

import pytest

from campaigns import fuzz
from campaigns.fuzz import Parser

ROUNDS = 30


def test_only_our_own_errors_no_hang_no_descriptor_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    rows = list(fuzz.fuzz(tmp_path, seed=7, rounds=ROUNDS))
    assert [row for row in rows if row["wrong"]] == []
    assert sum(row["refused"] for row in rows) > 5 * ROUNDS, "damage is refused"


def test_the_campaign_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = []

    def losing(data: bytes, at: Path) -> None:
        lost.append((at / "sample").open("rb"))

    (tmp_path / "sample").write_bytes(b"")
    bad = {
        "raises": Parser((b"{}",), lambda data, at: {}[data] if data != b"{}" else None),
        "loses": Parser((b"x",), losing),
    }
    monkeypatch.setattr(fuzz, "parsers", lambda folder: bad)
    raises, loses = fuzz.fuzz(tmp_path, seed=1, rounds=20)
    assert "KeyError" in raises["wrong"]
    assert "descriptors lost" in loses["wrong"]
    for file in lost:
        file.close()
