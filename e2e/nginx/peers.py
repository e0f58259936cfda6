"""What stands around nginx in its cases: clients that speak raw HTTP and WebSocket, upstreams that record, a name server."""

import base64
import http.client
import http.server
import json
import os
import select
import socket
import ssl
import struct
import threading
import time

# For what takes milliseconds on a machine that has time for it.
SECONDS = 30


def until(what, condition, seconds=SECONDS):
    """Polls until `condition()` is true and gives its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what() if callable(what) else what}"
        time.sleep(0.02)
    return value


class Answer:
    """Status, headers (in order, repeated ones kept) and body of a reply."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def all(self, name):
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name):
        values = self.all(name)
        assert len(values) <= 1, f"{name} is there {len(values)} times: {values}"
        return values[0] if values else None


def ask(port, target, method="GET", headers=(), body=None, source=None, tls=None, preface=b""):
    """One request whose target goes out just as it is written, with nothing normalized."""
    with socket.create_connection(("127.0.0.1", port), SECONDS, (source, 0) if source else None) as raw:
        raw.sendall(preface)
        with tls.wrap_socket(raw, server_hostname="localhost") if tls else raw as connection:
            lines = [f"{method} {target} HTTP/1.1", "Host: plenum.test", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in dict(headers).items()]
            if body is not None:
                lines.append(f"Content-Length: {len(body)}")
            try:
                connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before everything was sent: the answer says why
            reply = http.client.HTTPResponse(connection, method=method)
            reply.begin()
            return Answer(reply.status, reply.getheaders(), reply.read())


class Refused(Exception):
    """A handshake was answered with something else than 101."""

    def __init__(self, answer):
        super().__init__(f"{answer.status}: {answer.body[:200]!r}")
        self.answer = answer


class WebSocket:
    """A client of the JSON protocol, as much of it as the cases need."""

    def __init__(self, port, target="/connection/websocket", headers=(), source=None, tls=None):
        self.socket = socket.create_connection(("127.0.0.1", port), SECONDS, (source, 0) if source else None)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {target} HTTP/1.1", "Host: plenum.test", "Connection: Upgrade", "Upgrade: websocket",
            "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}",
        ]
        lines += [f"{name}: {value}" for name, value in dict(headers).items()]
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        self.reader = self.socket.makefile("rb")
        self.status = int(self._line().split()[1])
        self.headers = []
        while line := self._line():
            name, value = line.split(":", 1)
            self.headers.append((name, value.strip()))
        self.waiting, self.number = [], 0
        if self.status != 101:
            size = int(next((value for name, value in self.headers if name.lower() == "content-length"), 0))
            answer = Answer(self.status, self.headers, self.reader.read(size))
            self.close()
            raise Refused(answer)

    def _line(self):
        line = self.reader.readline().decode()
        if not line.endswith("\n"):
            raise ConnectionError("closed during the handshake")
        return line.rstrip("\r\n")

    def _bytes(self, count):
        data = self.reader.read(count)
        if len(data) < count:
            raise ConnectionError("closed in the middle of a message")
        return data

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def ended(self):
        """Whether the other side closed; what has arrived stays to be read."""
        if not select.select([self.socket], [], [], 0)[0]:
            return False
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except ConnectionError:
            return True

    def close(self):
        self.reader.close()
        self.socket.close()

    def send(self, **command):
        data = json.dumps(command).encode()
        mask = os.urandom(4)
        head = bytes([0x81, 0x80 | len(data)]) if len(data) < 126 else b"\x81\xfe" + struct.pack(">H", len(data))
        self.socket.sendall(head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data)))

    def receive(self):
        """The next message that is no ping, or None when the server closed."""
        while True:
            message = self.next()
            if message != {}:
                return message
            self.send()

    def next(self):
        """The next message, pings included."""
        while not self.waiting:
            head = self.reader.read(2)
            if len(head) < 2 or head[0] & 15 == 8:
                return None
            size = head[1] & 127
            if size == 126:
                size = struct.unpack(">H", self._bytes(2))[0]
            elif size == 127:
                size = struct.unpack(">Q", self._bytes(8))[0]
            payload = self._bytes(size)
            if head[0] & 15 == 1:
                self.waiting = [json.loads(line) for line in payload.decode().splitlines()]
        return self.waiting.pop(0)

    def command(self, **command):
        """Sends a command and gives its reply; pushes that come before it are dropped."""
        self.number += 1
        self.send(id=self.number, **command)
        while True:
            message = self.receive()
            assert message is not None, "closed while a reply was awaited"
            if message.get("id") == self.number:
                return message


class Recorder:
    """An upstream that keeps the requests that reach it and answers with its name."""

    def __init__(self, name="recorder", port=0, address="127.0.0.1", status=200):
        recorder = self
        self.name, self.status, self.requests = name, status, []
        # Of an answer in pieces: the first comes at once, the second and the last when they are let go.
        self.more, self.release = threading.Event(), threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                size = int(self.headers.get("Content-Length") or 0)
                recorder.requests.append((self.path, self.headers, self.rfile.read(size)))
                if "slowly" in self.path:
                    self.in_pieces()
                    return
                body = recorder.name.encode()
                self.send_response(recorder.status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Content-Type-Options", "nosniff")
                self.send_header("Content-Type", "application/json")
                if recorder.status == 503:
                    self.send_header("Retry-After", "7")
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def in_pieces(self):
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"5\r\nfirst\r\n")
                recorder.more.wait(SECONDS)
                self.wfile.write(b"6\r\nsecond\r\n")
                recorder.release.wait(SECONDS)
                self.wfile.write(b"4\r\nlast\r\n0\r\n\r\n")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer((address, port), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # nginx resets connections that it needs no more
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def headers(self):
        """Those of the request that came last."""
        return self.requests[-1][1]

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Names:
    """A name server that answers every question with the same addresses (RFC 1035)."""

    def __init__(self):
        self.addresses = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        while True:
            question, peer = self.socket.recvfrom(512)
            if not question:
                return
            end = question.index(b"\0", 12) + 5
            head = question[:2] + struct.pack(">HHHHH", 0x8180, 1, len(self.addresses), 0, 0)
            records = b"".join(
                b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(address) for address in self.addresses
            )
            self.socket.sendto(head + question[12:end] + records, peer)

    def stop(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
            own.sendto(b"", ("127.0.0.1", self.port))
        self.thread.join()
        self.socket.close()


def trusting(certificate):
    """A TLS client that trusts this certificate."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = True
    return context
