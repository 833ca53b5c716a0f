"""The order of the test files."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: one worker runs it alone, and all others would wait for it."""
    items.sort(key=lambda item: item.path.name != "test_plan.py")
