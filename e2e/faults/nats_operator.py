"""Somebody with every right on NATS, over a bare connection: deletes streams, keeps backups and restores them."""

import json
import socket

from failure import Failure

PASSWORD = "a-password-of-the-test-suites-only"
CHUNK = 64 * 1024


class Operator:
    def __init__(self, server):
        self.socket = socket.create_connection((server.host, server.port), 10)
        self.file = self.socket.makefile("rb")
        self.file.readline()
        login = {"verbose": False, "user": "operator", "pass": PASSWORD, "lang": "test", "version": "1"}
        self.send(f"CONNECT {json.dumps(login)}\r\nSUB _INBOX_operator.> 1\r\n".encode())

    def send(self, data):
        self.socket.sendall(data)

    def publish(self, subject, body=b"", reply=""):
        self.send(f"PUB {subject} {reply + ' ' if reply else ''}{len(body)}\r\n".encode() + body + b"\r\n")

    def next(self):
        """The next message to this connection: subject, reply subject (or ""), payload."""
        while line := self.file.readline():
            if line.startswith(b"MSG"):
                _, subject, _, *reply, size = line.decode().split()
                return subject, "".join(reply), self.file.read(int(size) + 2)[:-2]
            if line.startswith(b"PING"):
                self.send(b"PONG\r\n")
            if line.startswith(b"-ERR"):
                raise Failure(line.decode())
        raise Failure("NATS closed the operator's connection")

    def request(self, subject, body=None):
        self.publish(subject, json.dumps(body).encode() if body else b"", "_INBOX_operator.answer")
        _, _, payload = self.next()
        answer = json.loads(payload)
        if "error" in answer:
            raise Failure(f"{subject}: {answer['error']}")
        return answer

    def delete(self, stream):
        self.request(f"$JS.API.STREAM.DELETE.{stream}")

    def recreate(self, stream):
        """Deletes the stream and makes it again with the same settings."""
        config = self.request(f"$JS.API.STREAM.INFO.{stream}")["config"]
        self.delete(stream)
        self.request(f"$JS.API.STREAM.CREATE.{stream}", config)

    def backup(self, stream):
        """The stream as it is now: what its restoring begins with, and the parts of it."""
        wanted = {"deliver_subject": "_INBOX_operator.backup", "no_consumers": True, "chunk_size": CHUNK}
        answer = self.request(f"$JS.API.STREAM.SNAPSHOT.{stream}", wanted)
        parts = []
        while True:
            _, reply, part = self.next()
            if not part:
                return {key: answer[key] for key in ("config", "state")}, parts
            parts.append(part)
            if reply:
                self.publish(reply)

    def restore(self, stream, backup):
        """Puts the backup in the place of the stream."""
        head, parts = backup
        self.delete(stream)
        target = self.request(f"$JS.API.STREAM.RESTORE.{stream}", head)["deliver_subject"]
        for part in parts:
            self.publish(target, part, "_INBOX_operator.answer")
            _, _, answer = self.next()
            if answer and not answer.startswith(b"+OK"):
                raise Failure(f"restoring {stream}: {answer.decode()}")
        self.request(target)

    def close(self):
        self.socket.close()
