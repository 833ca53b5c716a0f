"""Service drills in a row: every verdict is counted, and a campaign goes on where it stopped."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from campaigns.services import MEASURES, main, summary
from recovery_pipelines.verdict import Verdict
from tests.plans import content


def test_a_campaign_goes_on_where_it_stopped_and_ends_with_the_worst_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "recovery.yaml"
    plan.write_text(yaml.safe_dump(content(targets__test_services__faults=["kill", "hang"])))
    monkeypatch.setenv("PATH", str(tmp_path))  # without any program the drills end at once

    def run(runs: int) -> int:
        argv = ["--plan", str(plan), "--runs", str(runs), "--scenario", "partial_failure"]
        done = CliRunner().invoke(main, [*argv, "--output", str(tmp_path / "rows")])
        assert isinstance(done.exception, SystemExit), done.output
        return done.exit_code

    kept = tmp_path / "rows" / "partial_failure_hang.parquet"
    assert run(1) == Verdict.UNVERIFIED.exit_code
    first = pd.read_parquet(kept)["run_id"].to_list()
    assert run(2) == run(2) == Verdict.UNVERIFIED.exit_code
    ids = pd.read_parquet(kept)["run_id"].to_list()
    assert len(ids) == 2 and ids[:1] == first
    assert "2 UNVERIFIED" in (tmp_path / "rows" / "summary.md").read_text()


def test_a_summary_hides_no_verdict_and_no_extreme() -> None:
    rows = pd.DataFrame({name: [1.0, 250.0, 3.0] for name in MEASURES})
    text = summary(rows.assign(drill="one", verdict=["PASS", "FAIL", "PASS"]))
    assert "2 PASS, 1 FAIL" in text
    assert text.count("3 (1 to 250)") == len(MEASURES)
