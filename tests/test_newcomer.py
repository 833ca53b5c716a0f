"""What the README promises to somebody who has just cloned the project and is not root."""

import shutil
from pathlib import Path

from tests.nobody import run_as_nobody

PROJECT = Path(__file__).parent.parent


def test_the_readmes_first_drill_passes(open_path: Path) -> None:
    shutil.copy(PROJECT / "recovery.yaml", open_path)
    program = "from recovery_pipelines.cli import main; main()"
    done = run_as_nobody(open_path, "-c", program, "drill", "--target", "test_dataset")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (open_path / "data" / "evidence").is_dir()
    assert list((open_path / "data" / "reports").rglob("*.html"))
