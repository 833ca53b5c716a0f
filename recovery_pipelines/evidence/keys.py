"""The signing key of a data home: `evidence/key.pem`, its public key beside it in `key.pub.pem`.

A new key waits in `next-key.pem` until the chain names it; `settle` then puts it in its place, or
removes it if the chain never came to name it.
"""

import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.evidence.files import rename, replace_file

PRIVATE_NAME = "key.pem"
PUBLIC_NAME = "key.pub.pem"
_NEXT_NAME = "next-key.pem"


def key_id(public: Ed25519PublicKey) -> str:
    """The SHA-256 of the public key (DER, SubjectPublicKeyInfo), in hex."""
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def public_pem(public: Ed25519PublicKey) -> str:
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def parse_public(pem: str, where: str) -> Ed25519PublicKey:
    """Raises EvidenceError if `pem` (found at `where`) is no Ed25519 public key."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise EvidenceError(f"{where} is not an Ed25519 public key in PEM")
    return key


def read_public(path: Path) -> Ed25519PublicKey:
    return parse_public(path.read_text(encoding="ascii", errors="replace"), str(path))


def propose(store: Path) -> Ed25519PrivateKey:
    """A new key, kept until the chain names it."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    replace_file(store / _NEXT_NAME, pem, 0o600)
    return key


def settle(store: Path, wanted_id: str) -> Ed25519PrivateKey:
    """The private key with the id that the chain names; finishes what a killed process began."""
    waiting = store / _NEXT_NAME
    if waiting.exists():
        if key_id(_read_private(waiting).public_key()) == wanted_id:
            rename(waiting, store / PRIVATE_NAME)
        else:
            waiting.unlink()
    path = store / PRIVATE_NAME
    if not path.exists():
        raise EvidenceError(f"{path} is missing: put the key {wanted_id} back from a backup")
    key = _read_private(path)
    if key_id(key.public_key()) != wanted_id:
        raise EvidenceError(
            f"{path} is not the key that the chain names: put the key {wanted_id} back"
        )
    public = public_pem(key.public_key()).encode()
    published = store / PUBLIC_NAME
    if not published.exists() or published.read_bytes() != public:
        replace_file(published, public, 0o644)
    return key


def _read_private(path: Path) -> Ed25519PrivateKey:
    if path.stat().st_mode & 0o077:
        raise EvidenceError(
            f"others than its owner may read {path}: make it mode 0600, then change the key with "
            "`recovery evidence rotate-key`"
        )
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise EvidenceError(f"{path} is not an Ed25519 private key: put it back from a backup")
    return key
