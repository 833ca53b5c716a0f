"""Time stamps: of the chain's head, by an authority that is verified, openssl agreeing."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from recovery_pipelines import evidence
from recovery_pipelines.drills.recoveries import carry_out
from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.evidence import keys
from recovery_pipelines.evidence.chain import read_chain
from recovery_pipelines.evidence.timestamp import stamp
from recovery_pipelines.plan.model import TimestampAuthority
from recovery_pipelines.verdict import Verdict
from tests.authority import stamping
from tests.plans import MONTH, make_spec
from tests.test_evidence import chain_path, is_accepted, seal

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
pytest.importorskip("rfc3161_client")


def openssl_agrees(home: Path, ca: Path, digest: str) -> bool:
    reply = home / "reply.tsr"
    reply.write_bytes(base64.b64decode(read_chain(home).head.predicate["reply"]))
    argv = ["openssl", "ts", "-verify", "-digest", digest, "-in", reply, "-CAfile", ca]
    return subprocess.run(argv, capture_output=True).returncode == 0


def test_the_head_is_stamped_and_openssl_agrees(tmp_path: Path) -> None:
    home, ca = tmp_path / "data", tmp_path / "tsa" / "ca.pem"
    head = seal(home, 1)
    with stamping(tmp_path / "tsa") as url:
        entry = stamp(home, TimestampAuthority(url=url, ca=ca))
        assert entry.predicate["about"] == {"seq": head.seq, "sha256": head.digest}
        assert openssl_agrees(home, ca, head.digest)
        assert not openssl_agrees(home, ca, entry.digest)
        trusted = keys.read_public(home / "evidence" / "key.pub.pem")
        assert evidence.verify(home, trusted).is_verified
        sound = chain_path(home).read_bytes()
        start = sound.rindex(b"\n", 0, -1) + 1
        for position in range(start, len(sound)):
            flipped = bytearray(sound)
            flipped[position] ^= 1 << position % 8
            assert not is_accepted(bytes(flipped)), position
        with stamping(tmp_path / "other"):
            other = TimestampAuthority(url=url, ca=tmp_path / "other" / "ca.pem")
            with pytest.raises(EvidenceError, match="no time stamp"):
                stamp(home, other)
    for authority in (
        TimestampAuthority(url=url, ca=ca),
        TimestampAuthority(url=url, ca=tmp_path / "none.pem"),
    ):
        with pytest.raises(EvidenceError, match="no time stamp"):
            stamp(home, authority)
    assert chain_path(home).read_bytes() == sound


def test_a_drill_is_stamped_and_does_not_depend_on_it(tmp_path: Path) -> None:
    with stamping(tmp_path / "tsa") as url:
        settings = {"url": url, "ca": "tsa/ca.pem"}
        spec = make_spec(tmp_path, "incremental_recovery", evidence__timestamp_authority=settings)
        assert carry_out(spec, MONTH, "stamped").verdict is Verdict.PASS
        chain = read_chain(spec.plan.data_home)
        assert chain.head.predicate["about"]["seq"] == chain.drills[0].seq
    assert carry_out(spec, MONTH, "alone").verdict is Verdict.PASS
    assert len(read_chain(spec.plan.data_home).entries) == 4
