"""A time stamp authority of our own: openssl behind a small HTTP server."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

_CONFIG = """\
[tsa]
default_tsa = here
[here]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
accuracy = secs:1
ess_cert_id_alg = sha256
"""
_EXTENSIONS = """\
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=critical,timeStamping
"""


def _openssl(*argv: str | Path, stdin: bytes | None = None) -> bytes:
    done = subprocess.run(["openssl", *argv], input=stdin, capture_output=True, check=True)
    return done.stdout


def _make(folder: Path) -> None:
    folder.mkdir()
    (folder / "serial").write_text("01\n")
    (folder / "extensions").write_text(_EXTENSIONS)
    (folder / "openssl.cnf").write_text(_CONFIG.format(folder=folder))
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _openssl(
        *("req", "-x509", *key, "-days", "30", "-subj", "/CN=Test root"),
        *("-addext", "keyUsage=critical,keyCertSign"),
        *("-keyout", folder / "ca.key", "-out", folder / "ca.pem"),
    )
    request = ("-keyout", folder / "tsa.key", "-out", folder / "tsa.csr")
    _openssl("req", *key, "-subj", "/CN=Test authority", *request)
    _openssl(
        *("x509", "-req", "-in", folder / "tsa.csr", "-days", "30"),
        *("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial"),
        *("-extfile", folder / "extensions", "-out", folder / "tsa.pem"),
    )


@contextmanager
def stamping(folder: Path) -> Iterator[str]:
    """The address of an authority whose root certificate is `folder`/ca.pem."""
    _make(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = folder / "query.tsq"
            query.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            config = ("-config", folder / "openssl.cnf", "-section", "here")
            reply = _openssl("ts", "-reply", "-queryfile", query, *config)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
