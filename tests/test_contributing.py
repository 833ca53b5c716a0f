"""CONTRIBUTING.md, followed to the letter: its package is built and drilled with."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests import plans

MAIN = "from recovery_pipelines.cli import main; main()"
GUIDE = Path(__file__).parent.parent / "CONTRIBUTING.md"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The guide's files, and the metadata that an installation makes of its pyproject.toml."""
    folder = tmp_path / "package"
    blocks = re.findall(r"```\w+\n# (\S+)\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    for name, text in blocks:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "my_recovery" / "__init__.py").touch()
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / "my_recovery-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in project["entry-points"].items()
        )
    )
    return folder


def test_an_engine_a_fault_and_a_check_of_ones_own(package: Path, tmp_path: Path) -> None:
    plan = plans.content(
        targets__test_dataset__engines=["copy"],
        targets__test_dataset__faults={"kinds": ["core_dump_appears"]},
        test_framework__test_scenarios__data_recovery__scenarios__0__validation_criteria__additional=[
            "no_core_dumps"
        ],
    )
    (tmp_path / "recovery.yaml").write_text(yaml.safe_dump(plan))
    search = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    finished = subprocess.run(
        [sys.executable, "-c", MAIN, "drill", "--scenario", "corruption_recovery"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": search},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (found,) = (tmp_path / "data" / "drills" / "corruption_recovery_copy").rglob("record.json")
    record = json.loads(found.read_text())
    assert record["verdict"] == "PASS"
    assert "no_core_dumps" in [check["name"] for check in record["checks"]]
    assert "core_dump_appears" in found.read_text()


def test_the_house_has_a_place_for_every_folder() -> None:
    picture = GUIDE.read_text().split("## The house")[1].split("```")[1]
    floors = {
        path.name for path in (GUIDE.parent / "recovery_pipelines").iterdir() if path.is_dir()
    }
    assert floors - {"__pycache__"} <= set(re.findall(r"\w+", picture))
