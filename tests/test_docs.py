"""The documentation: its site builds, and what it shows is what the code does."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from recovery_pipelines.analysis.drills import success_bound
from recovery_pipelines.audits.sampling import sample_size
from recovery_pipelines.cli import recovery
from recovery_pipelines.plan import parse_plan

PROJECT = Path(__file__).parent.parent
DOCS = PROJECT / "docs"
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
BIN = Path(sys.executable).parent


def blocks(page: Path, language: str) -> list[str]:
    """The contents of the page's fenced blocks in a language, titled ones left out."""
    fenced = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.M | re.S)
    return [textwrap.dedent(text) for _, text in fenced]


def test_the_site_builds(tmp_path: Path) -> None:
    argv = [BIN / "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "tutorial.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_plan_that_is_shown_is_valid(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        shown = yaml.safe_load(text)
        if {"targets", "teams"} & set(shown):
            whole = {"targets": {"documents": {"path": "/srv"}}} | shown
            parse_plan(yaml.safe_dump(whole), name=page.name, folder=tmp_path)


def commands(page: Path) -> Iterator[list[str]]:
    """The `recovery …` command lines of a page."""
    in_blocks = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    in_text = re.findall(r"`(recovery [a-z][^`]*)`", page.read_text())
    for line in [*in_blocks.splitlines(), *in_text]:
        if line.startswith("recovery "):
            yield shlex.split(re.split(r"#|\|\||…", line)[0])[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_that_is_shown_exists(page: Path) -> None:
    for words in commands(page):
        command: click.Command = recovery
        context = click.Context(recovery)
        while isinstance(command, click.Group) and words and words[0][0] not in "-<":
            found = command.get_command(context, words[0])
            assert found, f"{page.name}: recovery {' '.join(words)}"
            command, words = found, words[1:]
        options = {name for option in command.params for name in option.opts}
        unknown = {word for word in words if word.startswith("-")} - options
        assert not unknown, f"{page.name}: {command.name} has no {unknown}"


@pytest.mark.timeout(1200)
def test_the_tutorial_as_it_stands(tmp_path: Path) -> None:
    script = "set -eu\n" + "".join(blocks(DOCS / "tutorial.md", "sh"))
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    said = done.stdout
    assert done.returncode == 0, said
    sound, damaged = said.split("repository_audit_damaged_restic: audit_restore started")
    assert "│ repository_audit_documents_restic │ PASS" in sound, sound
    assert "│ repository_audit_damaged_restic │ FAIL" in damaged, damaged
    assert "exit code 1" in damaged
    settings = tmp_path / "audit" / "data" / "dagster" / "dagster.yaml"
    assert "run_monitoring" in settings.read_text(), "no dagster.yaml beside the plan: ours"
    assert "Warning" not in said, "nothing that a newcomer must wonder about"


def test_the_statistics_in_plain_words() -> None:
    text = (DOCS / "statistics.md").read_text()
    for drills, bound in re.findall(r"^\| (\d+)(?: \(a year\))? \| ([\d.]+) %", text, re.M):
        assert float(bound) == pytest.approx(100 * success_bound(int(drills), int(drills)), abs=1)
    for share, files in re.findall(r"^\| ([\d.]+) % \| ([\d ]+) \|$", text, re.M):
        assert int(files.replace(" ", "")) == sample_size(1_000_000, float(share) / 100, 0.95)


def test_every_silent_wrong_restore_names_tests_that_exist() -> None:
    text = (DOCS / "engines.md").read_text().split("## Silent wrong restores")[1]
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    there = "".join(path.read_text() for path in (PROJECT / "tests").glob("test_*.py"))
    assert len(rows) >= 16
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named and all(f"def {name}(" in there for name in named), row
