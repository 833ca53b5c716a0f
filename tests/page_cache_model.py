"""Random work on a page cache, then a power cut: prints what the disk should hold, and holds.

Run inside namespaces of its own: `python -m tests.page_cache_model FOLDER SEED`.
"""

import errno
import json
import os
import random
import sys
from pathlib import Path

from recovery_pipelines.services.page_cache import mount_page_cache

_NAMES = ("a", "b", "c", "d")
_LONGEST_BYTES = 20_000
_SIZE_BYTES = 16 * 4096
"""Less than what four files may hold."""


class Model:
    """What a file system that orders names, and syncs one file's content, must keep."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.content: dict[int, bytes] = {}
        self.kept_names: dict[str, int] = {}
        self.kept_content: dict[int, bytes] = {}
        self.cut: dict[int, int] = {}
        """The shortest that a file has been since the last sync, by file."""

    def write(self, name: str, offset: int, data: bytes) -> None:
        file = self.names.setdefault(name, len(self.content))
        old = self.content.setdefault(file, b"").ljust(offset, b"\0")
        self.content[file] = old[:offset] + data + old[offset + len(data) :]

    def truncate(self, name: str, length: int) -> None:
        file = self.names[name]
        if length < len(self.content[file]):
            self.cut[file] = min(length, self.cut.get(file, length))
        self.content[file] = self.content[file][:length].ljust(length, b"\0")

    def sync(self, name: str) -> None:
        self.kept_names = dict(self.names)
        for file, length in self.cut.items():
            self.kept_content[file] = self.kept_content.get(file, b"")[:length]
        self.cut.clear()
        self.kept_content[self.names[name]] = self.content[self.names[name]]

    def disk(self) -> dict[str, str]:
        return {
            name: self.kept_content.get(file, b"").hex() for name, file in self.kept_names.items()
        }


def write(path: Path, flags: int, data: bytes, offset: int) -> int:
    """How many bytes could be written: all, unless the volume is full."""
    fd = os.open(path, os.O_WRONLY | flags, 0o600)
    try:
        return os.pwrite(fd, data, offset)
    except OSError as error:
        assert error.errno == errno.ENOSPC
        assert free_bytes(path) < len(data) + 4096
        return 0
    finally:
        os.close(fd)


def free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def work(root: Path, model: Model, chance: random.Random) -> None:
    """One step, on the file system and on the model."""
    name, other = chance.sample(_NAMES, 2)
    path = root / name
    kind = chance.choice(("write", "write", "append", "truncate", "rename", "unlink", "sync"))
    data = chance.randbytes(chance.choice((1, 100, 4096, 9000)))
    offset = chance.randrange(_LONGEST_BYTES)
    if kind == "write":
        done = write(path, os.O_CREAT, data, offset)
        model.write(name, offset if done else 0, data[:done])
    elif name not in model.names:
        return
    elif kind == "append":
        end = len(model.content[model.names[name]])
        model.write(name, end, data[: write(path, os.O_APPEND, data, end)])
    elif kind == "truncate":
        os.truncate(path, offset)
        model.truncate(name, offset)
    elif kind == "rename":
        path.rename(root / other)
        model.names[other] = model.names.pop(name)
    elif kind == "unlink":
        path.unlink()
        del model.names[name]
    else:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        model.sync(name)


def main(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    disk, root = folder / "disk", folder / "root"
    for made in (disk, root):
        made.mkdir()
    model = Model()
    for life in range(3):
        memory = folder / f"memory-{life}"
        memory.mkdir()
        volume = mount_page_cache(disk, memory, root, _SIZE_BYTES)
        for _ in range(300):
            work(root, model, chance)
        seen = {path.name: path.read_bytes() for path in root.iterdir()}
        assert seen == {name: model.content[file] for name, file in model.names.items()}
        volume.cut()
        os.system(f"umount -l {root}")
        model.cut.clear()
        model.names = dict(model.kept_names)
        model.content = {
            file: model.kept_content.get(file, b"") for file in range(len(model.content))
        }
    found = {path.name: path.read_bytes().hex() for path in disk.iterdir()}
    print(json.dumps({"expected": model.disk(), "found": found}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
