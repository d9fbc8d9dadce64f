"""An OpenID Connect provider for tests: discovery and keys over HTTP, tokens signed with keys that can be rotated."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

CALLS, CONTROL = "api://farebox-calls", "api://farebox-control"


class Provider:
    """Its address is its issuer; `reads` counts what was asked of it."""

    def __init__(self) -> None:
        self.issuer = ""
        self.named_issuer: str | None = None  # what its configuration says, if not the truth
        self.keys: dict[str, Any] = {}
        self.reads: list[str] = []
        self.down = False
        self.rotate("first")

    def rotate(self, key_id: str, *, elliptic: bool = False) -> None:
        """From now on tokens are signed with a new key, and only that is published."""
        key: Any = (
            ec.generate_private_key(ec.SECP256R1()) if elliptic else rsa.generate_private_key(65537, 2048)
        )
        self.keys = {key_id: key}

    def token(self, audience: str = CALLS, *roles: str, **claims: Any) -> str:
        """A token of somebody with these roles; a claim that is None is left out."""
        now = int(time.time())
        values: dict[str, Any] = {
            "iss": self.issuer,
            "aud": audience,
            "sub": "somebody",
            "exp": now + 600,
            "roles": list(roles),
        } | claims
        [(key_id, key)] = self.keys.items()
        return jwt.encode(
            {name: value for name, value in values.items() if value is not None},
            key,
            algorithm="ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256",
            headers={"kid": key_id},
        )

    def document(self, path: str) -> Any:
        """What is published below the issuer's address."""
        self.reads.append(path)
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.named_issuer or self.issuer, "jwks_uri": f"{self.issuer}/keys"}
        return {"keys": [self._published(key_id, key) for key_id, key in self.keys.items()]}

    @staticmethod
    def _published(key_id: str, key: Any) -> dict[str, Any]:
        elliptic = isinstance(key, ec.EllipticCurvePrivateKey)
        public = (ECAlgorithm if elliptic else RSAAlgorithm).to_jwk(key.public_key(), as_dict=True)
        return {**public, "kid": key_id, "use": "sig"}


@contextmanager
def provider() -> Iterator[Provider]:
    """One that listens on a free port of this machine."""
    one = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(one.document(self.path)).encode()
            self.send_response(500 if one.down else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    one.issuer = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield one
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
