"""What users install may be used: each locked package has a licence that we know."""

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

LOCK = Path(__file__).parent.parent / "requirements.lock"
NAMES = re.findall(r"^([a-z0-9][a-z0-9._-]*)(?:\[.*\])?==", LOCK.read_text(), re.MULTILINE)
FREE = (
    r"0BSD|Apache|BSD|CC0|HPND|ISC|MIT|Mozilla Public License 2|MPL-2|PSF|Public Domain|"
    r"Python Software Foundation|Unlicense|Zlib"
)
"""Licences that ask for attribution, or for changes of the library's own files only."""
CHOSEN = {"psycopg": "LGPL", "psycopg-binary": "LGPL", "pyphen": "Mozilla Public License"}
"""Used as libraries, unchanged and replaceable, as the LGPL asks; pyphen under one of its three."""


def licence_of(name: str) -> str:
    about = metadata(name)
    classifiers = [
        line.split("::")[-1].strip()
        for line in about.get_all("Classifier") or []
        if line.startswith("License ::")
    ]
    said = about.get("License-Expression") or " ".join(classifiers)
    return said or (about.get("License") or "").split("\n")[0][:100]


@pytest.mark.parametrize("name", NAMES)
def test_the_licence_is_known(name: str) -> None:
    try:
        licence = licence_of(name)
    except PackageNotFoundError:
        return  # locked for another system or Python
    if name in CHOSEN:
        assert CHOSEN[name] in licence
    else:
        assert re.search(FREE, licence), f"{name}: {licence or 'no licence'}"
        assert not re.search(r"\bA?GPL|GNU (Affero )?General", licence), f"{name}: {licence}"


def test_the_lock_was_read() -> None:
    assert {"dagster", "pandas", "pyarrow", "xxhash"} <= set(NAMES)
