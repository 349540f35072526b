"""Servers over loopback that break off, fall silent and ignore ranges on demand, for the tests of downloads."""

import contextlib
import os
import re
import socket
import struct
import threading
import time
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
