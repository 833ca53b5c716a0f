"""File systems as audits may meet them. Needs root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """`folder` is a file system of its own, of that size."""
    folder.mkdir(exist_ok=True)
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody can write into `folder`, whoever owns it."""
    with _mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield


@contextmanager
def _mounted(folder: Path, *words: str) -> Iterator[None]:
    subprocess.run(["mount", *words, folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
