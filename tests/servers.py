"""Servers over loopback that break off, fall silent and ignore ranges on demand, for the tests of downloads."""

import contextlib
import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves {name: bytes} with ranges; `plan` is a list of what to do with the next requests.

    An entry of the plan is an int (send so many bytes of the body, then hang up), "error" (503), "whole" (ignore the
    range), "other range", "no length", "slow", None (behave), or a pair of a way and a number of bytes (None: all):
    "reset" and "silent" after so many; "no length", "whole, no length" and "chunked" ending there. `asked` collects
    (name, range).
    """

    daemon_threads = True

    def __init__(self, files, handler=None):
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.files, self.plan, self.asked = files, [], []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request, client_address):
        """A client that was killed or hung up is what the tests want; no traceback for it."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.serve(self.path.strip("/"))

    def answer(self, status, **headers):
        """A reply without a body; the names of headers are written with _ for -."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def serve(self, name, **headers):
        """Send the file `name` as the plan says."""
        server, asked = self.server, self.headers.get("Range")
        server.asked.append((name, asked))
        act = server.plan.pop(0) if server.plan else None
        way, most = act if isinstance(act, tuple) else ("cut", act) if isinstance(act, int) else (act, None)
        if way == "error" or name not in server.files:
            return self.answer(503 if way == "error" else 404)
        data, start = server.files[name], 0
        if asked and way not in ("whole", "whole, no length"):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if way == "other range":
                start -= 1
            if start >= len(data):
                return self.answer(416, Content_Range=f"bytes */{len(data)}")
            self.send_response(206)
            if way not in ("no length", "chunked"):
                headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            else:
                headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/*"
        else:
            self.send_response(200)
        body = data[start:]
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        if way == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif way not in ("no length", "whole, no length"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if way == "slow":
            for at in range(0, len(body), 1 << 18):
                self.wfile.write(body[at:at + (1 << 18)])
                time.sleep(0.2)
        elif way == "chunked":
            for at in range(0, len(body[:most]), 50_000):
                piece = body[:most][at:at + 50_000]
                self.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            if most is None:
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(body[:most])
        if way == "reset":
            time.sleep(0.3)  # the bytes are to arrive before the reset, which discards what has not
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        if way == "silent":
            time.sleep(1.5)
        self.close_connection = True


@contextlib.contextmanager
def serving(server):
    """Run a server in a thread while the body runs; yields it."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class HubServer(Server):
    """Imitates what huggingface_hub asks of the Hub: a model's info, HEAD and GET of resolve/, large files elsewhere.

    `repositories` is {"owner/name": {revision: {file name: bytes}}}; a revision has the commit `commit_of` gives.
    Large files (LARGE) are redirected to the host localhost, as the Hub does to its store. Repositories that are
    `private` or `gated` are read with the token TOKEN alone; OTHER is a token of somebody else. `tokens` collects
    (path, Authorization) of every request; the next `busy` HEAD requests are answered 503. `hashes` False is a mirror
    that lists names alone; `moves` redirects GET of a small file where HEAD was not redirected.
    """

    LARGE, TOKEN, OTHER = (".safetensors", ".bin", ".model"), "hf_right", "hf_other"

    def __init__(self, repositories):
        super().__init__({}, HubHandler)
        self.repositories, self.private, self.gated, self.renamed = repositories, set(), set(), {}
        self.tokens, self.busy, self.hashes, self.moves = [], 0, True, False
        self.url = self.url.rstrip("/")

    @staticmethod
    def commit_of(repository, revision):
        return hashlib.sha1(f"{repository} {revision}".encode()).hexdigest()

    def revision(self, repository, revision):
        """Return (commit, {file name: bytes}) of a branch, tag or commit; None where there is none."""
        for name, files in self.repositories[repository].items():
            commit = self.commit_of(repository, name)
            if revision in (name, commit):
                return commit, files
        return None


def blob_id(data):
    """The name git gives to contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubHandler(Handler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server, path = self.server, urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        server.tokens.append((path, self.headers.get("Authorization")))
        if path.startswith("/store/"):
            return self.serve(path.removeprefix("/store/"))
        asked = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(?:revision|tree)/(.+))?", path) \
            or re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if asked is None:
            return self.answer(404)
        repository = server.renamed.get(asked[1], asked[1])
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", server.TOKEN, server.OTHER):
            return self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
        known = token == server.TOKEN
        if repository not in server.repositories or (repository in server.private and not known):
            return self.answer(404, X_Error_Code="RepoNotFound") if token else self.answer(401)
        at = server.revision(repository, asked[2] or "main")
        if at is None:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if path.startswith("/api/"):
            return self.send_json((self.tree if "/tree/" in path else self.info)(repository, *at))
        if repository in server.gated and not known:
            return self.answer(403 if token else 401, X_Error_Code="GatedRepo")
        if self.command == "HEAD" and server.busy:
            server.busy -= 1
            return self.answer(503)
        self.resolve(*at, asked[3])

    def info(self, repository, commit, files):
        """The answer of /api/models/NAME?blobs=True."""
        siblings = [{"rfilename": name} | ({"blobId": blob_id(data), "size": len(data)} | (
            {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}}
            if name.endswith(self.server.LARGE) else {}) if self.server.hashes else {}) for name, data in files.items()]
        return {"id": repository, "modelId": repository, "sha": commit, "private": repository in self.server.private,
                "gated": repository in self.server.gated, "tags": [], "downloads": 0, "siblings": siblings}

    def tree(self, repository, commit, files):
        """The answer of /api/models/NAME/tree/COMMIT?recursive=true."""
        return [{"type": "file", "path": sibling["rfilename"], "oid": sibling["blobId"], "size": sibling["size"]} | (
            {"lfs": {"oid": sibling["lfs"]["sha256"], "size": sibling["size"], "pointerSize": 134}}
            if "lfs" in sibling else {}) for sibling in self.info(repository, commit, files)["siblings"]]

    def resolve(self, commit, files, name):
        """The answer of NAME/resolve/COMMIT/FILE: the file, or where it lies."""
        if name not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        data, server = files[name], self.server
        if name.endswith(server.LARGE):
            digest = hashlib.sha256(data).hexdigest()
            server.files.setdefault(digest, data)
            return self.answer(302, Location=f"http://localhost:{server.server_address[1]}/store/{digest}?Expires=9",
                               ETag='"of the pointer"', X_Linked_Etag=f'"{digest}"', X_Linked_Size=str(len(data)),
                               X_Repo_Commit=commit)
        server.files.setdefault(f"{commit}/{name}", data)
        headers = {"ETag": f'"{blob_id(data)}"', "X_Repo_Commit": commit}
        if self.command == "GET" and server.moves:
            return self.answer(302, Location=f"http://localhost:{server.server_address[1]}/store/{commit}/{name}")
        if self.command == "GET":
            return self.serve(f"{commit}/{name}", **headers)
        self.send_response(200)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()

    def send_json(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
