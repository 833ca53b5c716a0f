"""The order of the test files, and folders for ordinary users."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nobody import give_to_nobody


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: one worker runs it alone, and all others would wait for it."""
    items.sort(key=lambda item: item.path.name != "test_plan.py")


@pytest.fixture
def open_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ordinary user's own directory (he cannot reach pytest's)."""
    if os.geteuid() != 0:
        yield tmp_path_factory.mktemp("open")
        return
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        home = Path(made) / "home"
        home.mkdir()
        give_to_nobody(home)
        yield home
