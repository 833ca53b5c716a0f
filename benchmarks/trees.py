"""Trees to measure on: the same seed and sizes give the same bytes."""

import os
import random
from dataclasses import dataclass
from pathlib import Path

_FILES_PER_DIRECTORY = 100
_DIRECTORIES_PER_PARENT = 100
_MIB = 1 << 20


@dataclass(frozen=True)
class Shape:
    """How many files of which size a tree has."""

    files: int
    least_bytes: int
    most_bytes: int

    @property
    def name(self) -> str:
        return f"{self.files}-files-of-{self.least_bytes}-to-{self.most_bytes}"


def tiny(files: int) -> Shape:
    return Shape(files, 16, 1024)


def small(files: int) -> Shape:
    return Shape(files, 1024, 16 * 1024)


def large(files: int, mib: int) -> Shape:
    return Shape(files, mib * _MIB, mib * _MIB)


def build(shape: Shape, base: Path, seed: int = 1) -> Path:
    """The tree of `shape` beneath `base`; one that an earlier call finished is used again."""
    tree, done = base / shape.name, base / f"{shape.name}.done"
    if done.exists():
        return tree
    rng = random.Random(seed)
    noise = rng.randbytes(4 * _MIB)
    tree.mkdir(parents=True)
    for number in range(shape.files):
        directory, place = divmod(number, _FILES_PER_DIRECTORY)
        parent = tree / f"p{directory // _DIRECTORIES_PER_PARENT}" / f"d{directory}"
        if place == 0:
            parent.mkdir(parents=True, exist_ok=True)
            opened = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
        size = rng.randint(shape.least_bytes, shape.most_bytes)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        fd = os.open(f"file-{number}", flags, 0o644, dir_fd=opened)
        while size > 0:
            start = rng.randrange(len(noise) - 16 * 1024)
            size -= os.write(fd, noise[start : start + min(size, len(noise))])
        os.close(fd)
        if place == _FILES_PER_DIRECTORY - 1 or number == shape.files - 1:
            os.close(opened)
    done.touch()
    return tree
