"""DSSE envelopes (Dead Simple Signing Envelope, protocol v1) with Ed25519 signatures.

An envelope is one line of JSON in one single spelling, so that every changed byte is seen.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.evidence.keys import key_id

PAYLOAD_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class Envelope:
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]
    """Key id and signature, oldest key first."""


def sign(payload: bytes, keys: Sequence[Ed25519PrivateKey]) -> bytes:
    """The line (without newline) of an envelope signed by each of `keys`."""
    text = pre_authentication(payload)
    signatures = tuple((key_id(key.public_key()), key.sign(text)) for key in keys)
    return _encode(Envelope(payload, signatures))


def parse(line: bytes) -> Envelope:
    """Raises EvidenceError unless `line` is exactly what `sign` writes (signatures unverified)."""
    try:
        content = json.loads(line)
        if content["payloadType"] != PAYLOAD_TYPE:
            raise EvidenceError(f"the payload's type is not {PAYLOAD_TYPE}")
        envelope = Envelope(
            base64.b64decode(content["payload"], validate=True),
            tuple(
                (signature["keyid"], base64.b64decode(signature["sig"], validate=True))
                for signature in content["signatures"]
            ),
        )
        canonical = _encode(envelope)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EvidenceError(f"no DSSE envelope ({type(error).__name__})") from None
    if canonical != line:
        raise EvidenceError("the envelope is not spelled as it was written")
    return envelope


def verify(envelope: Envelope, keys: Sequence[Ed25519PublicKey]) -> None:
    """Raises EvidenceError unless exactly `keys` signed, in this order."""
    if [name for name, _ in envelope.signatures] != [key_id(key) for key in keys]:
        raise EvidenceError("it is not signed by the key in force")
    text = pre_authentication(envelope.payload)
    for key, (_, signature) in zip(keys, envelope.signatures, strict=True):
        try:
            key.verify(signature, text)
        except InvalidSignature:
            raise EvidenceError("the signature is wrong") from None


def pre_authentication(payload: bytes) -> bytes:
    """DSSE's PAE: the bytes that are signed."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _encode(envelope: Envelope) -> bytes:
    content: dict[str, Any] = {
        "payload": base64.b64encode(envelope.payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {"keyid": name, "sig": base64.b64encode(signature).decode()}
            for name, signature in envelope.signatures
        ],
    }
    return json.dumps(content, separators=(",", ":")).encode()
