"""Time stamps by a third party (RFC 3161): an entry existed at a time that our clock cannot fake.

The authority signs the SHA-256 of the chain's head, which stands for everything before it; its
reply becomes an entry about that head.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from cryptography import x509

from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.evidence import statement
from recovery_pipelines.evidence.chain import Chain, Entry, append_about, read_chain
from recovery_pipelines.plan.model import TimestampAuthority

_TIMEOUT_SECONDS = 10


def stamp(home: Path, authority: TimestampAuthority) -> Entry:
    """Have the head of the chain stamped; returns the entry that holds the reply.

    The reply is verified against the authority's certificates first. Raises EvidenceError if
    there is no valid one; the chain is then as it was.
    """
    try:
        from rfc3161_client import (
            HashAlgorithm,
            TimestampRequestBuilder,
            VerificationError,
            VerifierBuilder,
            decode_timestamp_response,
        )
    except ImportError:
        raise EvidenceError(
            "time stamps need the package rfc3161-client: install recovery-pipelines[timestamp]"
        ) from None
    chain = read_chain(home)
    head, line = chain.head, chain.content.splitlines()[-1]
    request = TimestampRequestBuilder(line, HashAlgorithm.SHA256).build()
    try:
        roots = x509.load_pem_x509_certificates(authority.ca.read_bytes())
        answer = requests.post(
            authority.url,
            data=request.as_bytes(),
            headers={"Content-Type": "application/timestamp-query"},
            timeout=_TIMEOUT_SECONDS,
        )
        answer.raise_for_status()
        reply = decode_timestamp_response(answer.content)
        builder = VerifierBuilder.from_request(request)
        for root in roots:
            builder = builder.add_root_certificate(root)
        builder.build().verify_message(reply, line)
    except (OSError, ValueError, requests.RequestException, VerificationError) as error:
        raise EvidenceError(
            f"no time stamp from {authority.url}: {type(error).__name__}: {error}"
        ) from None
    predicate = {
        "authority": authority.url,
        "stamped_at": reply.tst_info.gen_time.isoformat(),
        "reply": base64.b64encode(answer.content).decode(),
    }

    def choose(now: Chain) -> tuple[Entry, Mapping[str, Any]]:
        return now.entries[head.seq - 1], predicate

    return append_about(home, statement.TIMESTAMP_TYPE, choose)
