"""What an ordinary user does, in tests that run as root."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

NOBODY = 65534
_BECOME = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
_NOT_NEEDED = ("__pycache__", "idlelib", "site-packages", "test", "tkinter")


def as_nobody(action: Callable[[], object]) -> None:
    """Run in a child process that is an ordinary user; its failure is ours."""
    if os.geteuid() != 0:
        action()
        return
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            action()
            code = 0
        except BaseException as error:
            os.write(2, f"as nobody: {error!r}\n".encode())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def give_to_nobody(folder: Path) -> None:
    """Make an ordinary user the owner of all that is in `folder`."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def copy_interpreter(folder: Path) -> Path:
    """This interpreter where anybody may run it, as the root's own home is closed to others."""
    version = "python{}.{}".format(*sys.version_info[:2])
    libraries = Path(sys.base_prefix) / "lib"
    ignored = shutil.ignore_patterns(*_NOT_NEEDED)
    shutil.copytree(libraries / version, folder / "lib" / version, ignore=ignored)
    for library in libraries.glob("libpython*.so*"):
        shutil.copy(library, folder / "lib")
    python = folder / "bin" / version
    python.parent.mkdir()
    shutil.copy(Path(sys.executable).resolve(), python)
    _look_beside(python, libraries)
    return python


def _look_beside(python: Path, libraries: Path) -> None:
    """Let it load the libpython that was copied, not the one of that name in the system."""
    old, new = str(libraries).encode() + b"\0", b"$ORIGIN/../lib"
    python.write_bytes(python.read_bytes().replace(old, new.ljust(len(old), b"\0")))


def run_as_nobody(home: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments and our packages, in a home of the user's own."""
    python = copy_interpreter(home / "python")
    packages = [Path(pa.__file__).parent.parent, Path(__file__).resolve().parents[1]]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(map(str, packages)),
        "HOME": str(home),
        "TMPDIR": str(home),
    }
    become = _BECOME if os.geteuid() == 0 else ()
    return subprocess.run(
        [*become, python, *argv], cwd=home, env=environment, capture_output=True, text=True
    )
