"""What is signed: in-toto Statements (v1) about a drill's result folder, a signing key, or an
earlier entry of the chain.

A drill's predicate holds what an audit asks for first, and nothing that can name or show the
target's data: the checks' `expected` and `found`, messages, faults and differences stay in the
files, whose digests are the statement's subjects.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from recovery_pipelines.errors import EvidenceError

DRILL_TYPE = "urn:recovery-pipelines:drill:v1"
KEY_TYPE = "urn:recovery-pipelines:key:v1"
TOMBSTONE_TYPE = "urn:recovery-pipelines:tombstone:v1"
TIMESTAMP_TYPE = "urn:recovery-pipelines:timestamp:v1"
SIGN_OFF_TYPE = "urn:recovery-pipelines:sign-off:v1"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"

_IDENTITY = ("drill", "scenario", "target", "engine", "month", "run_id")
_PROVENANCE = (
    "automated_verdict",
    "manual_verification",
    "plan",
    "initiator",
    "scheduled_at",
    "operator",
    "code",
    "snapshots",
    "faults",
    "sampling",
    "isolation",
    "shard",
    "merged",
)
_MEASURED = (
    "files",
    "bytes",
    "lost_entries",
    "rpo_seconds",
    "recovery_seconds",
    "detect_seconds",
    "fetch_seconds",
    "verify_seconds",
    "publish_seconds",
    "resolution_seconds",
)
_ENVIRONMENT = ("host", "system", "python", "user_id", "libraries", "engine", "engine_version")


def drill_statement(
    folder: str, files: Mapping[str, str], record: Mapping[str, Any], seq: int, prev: str
) -> bytes:
    """The statement about the results in `folder` (relative to the data home).

    `files` are names and SHA-256; `record` is the drill's record; `seq` and `prev` are its place
    in the chain.
    """
    metrics, snapshot, copies = record["metrics"], record["system_snapshot"], record["canaries"]
    predicate = {
        "folder": folder,
        "drill": {name: record[name] for name in _IDENTITY},
        "started_at": record["started_at"],
        "ended_at": record["ended_at"],
        "verdict": record["verdict"],
        **{name: record[name] for name in _PROVENANCE if name in record},
        "checks": {check["name"]: check["verdict"] for check in record["checks"]},
        "self_test": {
            "copies": len(copies),
            "judged_rightly": sum(bool(copy["caught"]) for copy in copies),
        },
        "errors": record["errors"],
        "not_tested": record["not_tested"],
        "objectives": record["objectives"],
        "measured": {name: metrics[name] for name in _MEASURED if name in metrics},
        "environment": {name: snapshot[name] for name in _ENVIRONMENT if name in snapshot},
    }
    return encode(DRILL_TYPE, files, predicate, seq, prev)


def key_statement(public_pem: str, key_id: str, seq: int, prev: str) -> bytes:
    """The statement that from the next entry on the key `key_id` signs."""
    digest = hashlib.sha256(public_pem.encode()).hexdigest()
    predicate = {"key_id": key_id, "public_key": public_pem}
    return encode(KEY_TYPE, {"key.pub.pem": digest}, predicate, seq, prev)


def encode(
    kind: str, subjects: Mapping[str, str], predicate: Mapping[str, Any], seq: int, prev: str
) -> bytes:
    """A statement of `kind` about `subjects` (name to SHA-256), for one place in the chain."""
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"digest": {"sha256": subjects[name]}, "name": name} for name in subjects],
        "predicateType": kind,
        "predicate": {
            **predicate,
            "chain": {"seq": seq, "prev": prev},
            "sealed_at": datetime.now(UTC).isoformat(),
        },
    }
    text = json.dumps(statement, sort_keys=True, separators=(",", ":"), default=str)
    return text.encode()


def parse(payload: bytes) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Kind, subjects (name to SHA-256) and predicate of a signed statement."""
    try:
        content = json.loads(payload)
        if content["_type"] != _STATEMENT_TYPE:
            raise EvidenceError("no in-toto statement of version 1")
        subjects = {
            str(subject["name"]): str(subject["digest"]["sha256"]) for subject in content["subject"]
        }
        return str(content["predicateType"]), subjects, dict(content["predicate"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EvidenceError(f"no in-toto statement ({type(error).__name__})") from None
