"""Capture a tree into a manifest: worker processes read and hash, this process collects and writes.

Unreadable, vanished and changing entries become rows with an error; nothing is skipped.
"""

import heapq
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xxhash

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.manifest import worker as worker_module
from recovery_pipelines.manifest.summary import Summary
from recovery_pipelines.manifest.worker import receive, send

_DIRECTORIES_PER_REQUEST = 16
_REPORT_SECONDS = 0.1


@dataclass(frozen=True)
class Progress:
    """How far a capture has come."""

    entries: int
    files: int
    bytes: int
    """Content read and hashed."""
    elapsed_seconds: float
    fraction: float
    """Estimated part of the tree that is done, 0 to 1; each directory shares equally below it."""


Task = tuple[str, bytes, bytes]
"""A request to a worker: kind, directory, names joined by NUL."""


class _Crew:
    """The worker processes, the work still to do, and the replies not yet written."""

    def __init__(self, root_fd: int, workers: int, most_workers: int) -> None:
        self.changed = threading.Condition()
        self.replies: list[tuple[bytes, bytes, bytes, bytes]] = []
        self.entries = self.files = self.bytes = 0
        self.listed = 1
        self.fraction = 0.0
        self._root_fd = root_fd
        self._workers = workers
        self._most_workers = most_workers
        self._directories: list[tuple[bytes, float]] = [(b"", 1.0)]
        self._chunks: list[tuple[Task, float]] = []
        self._large: list[tuple[int, int, Task, float]] = []
        self._serial = 0
        self._busy = 0
        self._failure: str | None = None
        self._closed = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []

    def hire(self) -> None:
        """Start one more worker."""
        paths = [str(Path(worker_module.__file__).parent), str(Path(xxhash.__file__).parent.parent)]
        program = (
            "import sys; sys.path.extend(sys.argv[2:]); "
            "import worker; worker.main(int(sys.argv[1]))"
        )
        argv = [sys.executable, "-I", "-S", "-X", "utf8", "-c", program, str(self._root_fd), *paths]
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(self._root_fd,)
        )
        thread = threading.Thread(target=self._serve, args=(process,), daemon=True)
        self._processes.append(process)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        for process in self._processes:
            process.kill()
        for thread in self._threads:
            thread.join()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]

    def wait(self, seconds: float) -> bool:
        """Wait for replies; True when all work is done. Raises RecoveryError if a worker died."""
        with self.changed:
            if not self.replies and not self._finished():
                self.changed.wait(seconds)
            if self._failure is not None:
                raise RecoveryError(self._failure)
            return self._finished()

    def take_replies(self) -> list[tuple[bytes, bytes, bytes, bytes]]:
        with self.changed:
            replies, self.replies = self.replies, []
            return replies

    def _waits(self) -> bool:
        """Whether there is work for more than one."""
        more_directories = len(self._directories) > _DIRECTORIES_PER_REQUEST
        return bool(self._chunks or self._large or more_directories)

    def _finished(self) -> bool:
        waiting = self._directories or self._chunks or self._large
        return not waiting and self._busy == 0

    def _next_task(self) -> tuple[Task, list[float]] | None:
        """The next request and the share of the tree each of its parts has; None at the end."""
        with self.changed:
            while True:
                if self._closed or self._failure is not None or self._finished():
                    return None
                if self._large:
                    _, _, task, share = heapq.heappop(self._large)
                elif self._chunks:
                    task, share = self._chunks.pop()
                elif self._directories:
                    batch = self._directories[-_DIRECTORIES_PER_REQUEST:]
                    del self._directories[-_DIRECTORIES_PER_REQUEST:]
                    self._busy += 1
                    names = b"\0".join(path for path, _ in batch)
                    return ("scan", b"", names), [part for _, part in batch]
                else:
                    self.changed.wait()
                    continue
                self._busy += 1
                return task, [share]

    def _serve(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None
        try:
            while (next_task := self._next_task()) is not None:
                task, shares = next_task
                send(process.stdin, task)  # type: ignore[arg-type]
                while isinstance(reply := receive(process.stdout), int):  # type: ignore[arg-type]
                    with self.changed:
                        self.bytes += reply
                self._accept(reply, sum(shares))
        except Exception as problem:
            with self.changed:
                if not self._closed:
                    self._failure = (
                        f"a worker of the capture died ({type(problem).__name__}, exit code "
                        f"{process.poll()}): nothing is known about the rest of the tree; "
                        "run it again"
                    )
                self.changed.notify_all()

    def _accept(self, reply: Any, share: float) -> None:
        records, paths, targets, errors, directories, deferred, *numbers = reply
        listed, files, read_bytes, cold = numbers
        part = share / (1 + len(directories) + len(deferred))
        with self.changed:
            self.replies.append((records, paths, targets, errors))
            self.entries += len(records) // worker_module.RECORD_BYTES
            self.listed += listed
            self.files += files
            self.bytes += read_bytes
            self.fraction += part
            self._directories.extend((path, part) for path in directories)
            for kind, size, directory, names in deferred:
                task = (kind, directory, names)
                if kind == "large":
                    self._serial += 1
                    heapq.heappush(self._large, (-size, self._serial, task, part))
                else:
                    self._chunks.append((task, part))
            self._busy -= 1
            wanted = self._most_workers if cold else self._workers if self._waits() else 1
            if len(self._processes) < wanted and not self._closed:
                with suppress(OSError):  # it goes on, only slower
                    self.hire()
            self.changed.notify_all()


def capture(
    tree: Path,
    output: Path,
    *,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Write the manifest of `tree` to `output` (atomically, fsynced).

    `workers` defaults to the number of usable cores, and up to twice as many when the tree has
    to be fetched from a slow disk. `progress` is called about ten times a second, from the
    calling thread. Raises RecoveryError if the tree cannot be opened or the file not be written;
    what happens to single entries is in their rows and counted in `Summary.errors`.
    """
    _refuse_inside(tree, output)
    try:
        root_fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        raise RecoveryError(
            f"the tree {tree} cannot be opened: {problem.strerror}; name an existing directory"
        ) from None
    started = time.monotonic()
    captured_at = datetime.now(UTC)
    cores = len(os.sched_getaffinity(0))
    try:
        crew = _Crew(root_fd, workers or cores, workers or 2 * cores)
        try:
            crew.hire()
            from recovery_pipelines.manifest.store import Writer

            writer = Writer(output, tree, captured_at)
            try:
                while True:
                    done = crew.wait(_REPORT_SECONDS)
                    for reply in crew.take_replies():
                        writer.add(*reply)
                    if progress is not None:
                        progress(
                            Progress(
                                crew.entries,
                                crew.files,
                                crew.bytes,
                                time.monotonic() - started,
                                1.0 if done else min(crew.fraction, 0.999),
                            )
                        )
                    if done:
                        break
                if crew.listed != crew.entries:
                    raise RecoveryError(
                        f"{crew.listed} entries were listed beneath {tree} but {crew.entries} "
                        "rows came back: this is a bug, do not trust this capture"
                    )
                return writer.finish()
            finally:
                writer.close()
        finally:
            crew.close()
    except OSError as problem:
        raise RecoveryError(
            f"the manifest {output} cannot be written: {problem.strerror or problem}"
        ) from problem
    finally:
        os.close(root_fd)


def _refuse_inside(tree: Path, output: Path) -> None:
    inner, outer = output.parent.resolve() / output.name, tree.resolve()
    if inner.is_relative_to(outer):
        raise RecoveryError(
            f"the manifest {output} would lie inside the tree {tree} that it describes; "
            "write it somewhere else (`verify` obeys TMPDIR)"
        )
