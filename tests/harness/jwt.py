"""JSON web tokens, signed by openssl; and a key set that is served over HTTP or HTTPS and can be exchanged."""

import base64
import hashlib
import hmac
import json
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


def encode(data):
    """Base64 for URLs, without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(algorithm, sign, claims, **header):
    """A token; `sign` makes bytes of bytes."""
    head = json.dumps({"alg": algorithm, "typ": "JWT", **header}).encode()
    body = f"{encode(head)}.{encode(json.dumps(claims).encode())}"
    return f"{body}.{encode(sign(body.encode()))}"


def hs256(secret):
    """Signs with a secret."""
    return lambda data: hmac.new(secret, data, hashlib.sha256).digest()


def claims(device, expires_in_s=600, **more):
    """Claims of a device; None leaves one out."""
    made = {"sub": device, "exp": int(time.time()) + expires_in_s, **more}
    return {name: value for name, value in made.items() if value is not None}


class RsaKey:
    """A new RSA key in a folder."""

    def __init__(self, folder, name):
        self.name, self.path, self.public = name, folder / f"{name}.pem", folder / f"{name}.pub"
        openssl("genrsa", "-out", self.path, "2048")
        openssl("rsa", "-in", self.path, "-pubout", "-out", self.public)

    def sign(self, data):
        """As RS256 does."""
        return openssl("dgst", "-sha256", "-sign", self.path, data=data)

    def token(self, token_claims):
        """A token that names this key."""
        return signed("RS256", self.sign, token_claims, kid=self.name)

    def jwk(self):
        """The public half, as a member of a key set."""
        modulus = openssl("rsa", "-in", self.path, "-noout", "-modulus").decode().strip().split("=")[1]
        number = encode(bytes.fromhex(modulus))
        return {"kty": "RSA", "kid": self.name, "alg": "RS256", "use": "sig", "n": number, "e": "AQAB"}


def openssl(*arguments, data=None):
    """Runs openssl and gives what it printed."""
    done = subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, check=True)
    return done.stdout


class KeySet:
    """An HTTP server with a key set; with a certificate (the paths of it and of its key), an HTTPS server."""

    def __init__(self, keys, certificate=None, port=0):
        self.keys, self.reads, self.location = keys, 0, None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            """Answers every GET with the keys of the moment."""

            def do_GET(self):  # noqa: N802
                outer.reads += 1
                if outer.location:
                    self.send_response(302)
                    self.send_header("Location", outer.location)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = json.dumps({"keys": [key.jwk() for key in outer.keys]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Says nothing."""

        self.server = HTTPServer(("127.0.0.1", port), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            # The handshake is the handler's affair, or a client that breaks it off would end the loop.
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port, scheme = self.server.server_port, "https" if certificate else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}/jwks.json"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        """Stops serving."""
        self.server.shutdown()
        self.server.server_close()
