#!/usr/bin/env python3
"""A Redis Cluster on loopback, in a folder, with the settings and users of deploy/redis: three primaries, three replicas.

    deploy/stack/redis.py [--folder DIRECTORY] [--port FIRST] [--primaries N] [--replicas N]

By hand it prints one line of JSON (servers, user, password, nodes with pids) when the cluster serves all slots, and ends all of
it on SIGTERM, SIGINT or when its standard input is closed. Without --port the nodes listen on free ports.
"""

import argparse
import hashlib
import json
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from cluster import ROOT, STOP_SECONDS, free_port  # noqa: E402

BINARY = ROOT / ".tools/redis/bin/redis-server"
SETTINGS = ROOT / "deploy/redis"
SLOTS = 16_384


class RedisError(Exception):
    """A node answered with an error."""


class Connection:
    """A connection that speaks just enough RESP2 to set up and look at a cluster."""

    def __init__(self, port, user, password, seconds=5):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self.reader = self.socket.makefile("rb")
        self.ask("AUTH", user, password)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.reader.close()
        self.socket.close()

    def ask(self, *words):
        parts = [str(word).encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        return self._answer()

    def _answer(self):
        line = self.reader.readline()
        if not line.endswith(b"\r\n"):
            raise OSError("the node closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.reader.read(size + 2)[:-2].decode(errors="replace")
        if kind == b"*":
            return None if int(rest) < 0 else [self._answer() for _ in range(int(rest))]
        return rest.decode()


class Node:
    """One redis-server; its configuration, data and log are in its folder."""

    def __init__(self, number, folder, ports, passwords):
        self.name = f"redis-{number}"
        self.folder = pathlib.Path(folder).resolve() / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self.bus_port = ports
        self.passwords = passwords
        self.log_path = self.folder / "server.log"
        self.process = None
        users = (SETTINGS / "users.conf").read_text()
        for user, password in passwords.items():
            users = users.replace(f"@{user.upper()}_SHA256@", hashlib.sha256(password.encode()).hexdigest())
        self._write("users.conf", users)
        lines = [
            f"include {SETTINGS / 'plenum.conf'}",
            f"include {self.folder / 'users.conf'}",
            f"port {self.port}",
            f"cluster-port {self.bus_port}",
            "bind 127.0.0.1",
            f"dir {self.folder}",
            "masteruser replication",
            f"masterauth {passwords['replication']}",
        ]
        self._write("server.conf", "\n".join(lines) + "\n")

    def _write(self, name, text):
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)

    def start(self):
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [str(BINARY), str(self.folder / "server.conf")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )

    def connect(self, user="operator"):
        return Connection(self.port, user, self.passwords[user])

    def ask(self, *words):
        with self.connect() as connection:
            return connection.ask(*words)

    def answers(self):
        """Whether it takes commands; False while it loads its data."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with status {self.process.returncode}; see {self.log_path}")
        try:
            return self.ask("PING") == "PONG"
        except (OSError, RedisError):
            return False

    def state(self):
        """The lines of CLUSTER INFO as a dictionary; empty where it does not answer."""
        try:
            return dict(line.split(":", 1) for line in self.ask("CLUSTER", "INFO").split())
        except (OSError, RedisError):
            return {}

    def role(self):
        """`master` or `slave`, as Redis names them; None where it does not answer."""
        try:
            return self.ask("ROLE")[0]
        except (OSError, RedisError):
            return None

    def linked(self):
        """Whether it is a primary, or a replica that has its primary's data."""
        try:
            role = self.ask("ROLE")
        except (OSError, RedisError):
            return False
        return role[0] == "master" or role[3] == "connected"

    def kill(self):
        self.process.kill()
        self.process.wait()

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def ask_to_stop(self):
        if self.process and self.process.poll() is None:
            self.thaw()
            self.process.send_signal(signal.SIGTERM)

    def stop(self):
        """Ends it, at last by force."""
        self.ask_to_stop()
        if self.process:
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()


class RedisCluster:
    """Primaries first, then their replicas; `ports` gives client and bus port of a node's number."""

    def __init__(self, folder, password=None, primaries=3, replicas=1, ports=lambda number: (free_port(), free_port())):
        if not BINARY.exists():
            raise RuntimeError(f"{BINARY} is missing: deploy/tools/install redis")
        self.user, self.password = "plenum", password or secrets.token_hex(16)
        passwords = {"plenum": self.password, "replication": secrets.token_hex(16), "operator": secrets.token_hex(16)}
        count = primaries * (1 + replicas)
        self.nodes = [Node(number, folder, ports(number), passwords) for number in range(count)]
        self.primaries = primaries

    @property
    def servers(self):
        """Addresses for the setting redis.servers."""
        return [f"127.0.0.1:{node.port}" for node in self.nodes]

    def start(self, seconds=30):
        """Starts the nodes and makes them a cluster, once; gives back when every node serves all slots."""
        self.launch()
        self.finish(seconds)

    def launch(self):
        """Starts the processes without waiting for them."""
        for node in self.nodes:
            node.start()

    def finish(self, seconds=30):
        end = time.monotonic() + seconds
        self._until(end, "every node answers", lambda: all(node.answers() for node in self.nodes))
        if self.nodes[0].state().get("cluster_slots_assigned") == "0":
            self._create(end)
        self.wait(max(0.0, end - time.monotonic()))

    def wait(self, seconds=30):
        """Until every node sees all slots served and all nodes, and replicas have their data."""
        self._until(time.monotonic() + seconds, "the cluster is whole", self.whole)

    def whole(self):
        for node in self.nodes:
            state = node.state()
            if state.get("cluster_state") != "ok" or state.get("cluster_slots_ok") != str(SLOTS):
                return False
            if state.get("cluster_known_nodes") != str(len(self.nodes)):
                return False
        return all(node.linked() for node in self.nodes)

    def _until(self, end, what, condition):
        while not condition():
            if time.monotonic() > end:
                raise RuntimeError(f"Redis: not in time: {what}; logs are in {self.nodes[0].folder.parent}")
            time.sleep(0.05)

    def _create(self, end):
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            with node.connect() as connection:
                # Different epochs from the start: otherwise nodes would have to settle who is first.
                connection.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if number < self.primaries:
                    low, high = (SLOTS * at // self.primaries for at in (number, number + 1))
                    connection.ask("CLUSTER", "ADDSLOTSRANGE", low, high - 1)
        with first.connect() as connection:
            for node in self.nodes[1:]:
                connection.ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        known = str(len(self.nodes))
        self._until(end, "the nodes know each other",
                    lambda: all(node.state().get("cluster_known_nodes") == known for node in self.nodes))
        names = [node.ask("CLUSTER", "MYID") for node in self.nodes[: self.primaries]]
        for number, node in enumerate(self.nodes[self.primaries :]):
            node.ask("CLUSTER", "REPLICATE", names[number % self.primaries])

    def stop(self):
        for node in self.nodes:
            node.ask_to_stop()
        for node in self.nodes:
            node.stop()

    def described(self):
        return {
            "servers": self.servers,
            "user": self.user,
            "password": self.password,
            "operator_password": self.nodes[0].passwords["operator"],
            "nodes": [
                {"name": node.name, "address": f"127.0.0.1:{node.port}", "pid": node.process.pid, "role": node.role()}
                for node in self.nodes
            ],
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where data and logs are kept (default: a new one that is removed at the end)")
    parser.add_argument("--port", type=int, help="port of the first node; the others follow, bus ports lie 10000 higher")
    parser.add_argument("--primaries", type=int, default=3, choices=range(3, 10))
    parser.add_argument("--replicas", type=int, default=1, choices=range(0, 3), help="of each primary")
    options = parser.parse_args()

    ended = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: ended.set())
    # Ends with whoever started it, also when that one was killed.
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), ended.set()), daemon=True).start()

    with tempfile.TemporaryDirectory(prefix="plenum-redis-") as temporary:
        settings = {"primaries": options.primaries, "replicas": options.replicas}
        if options.port:
            settings["ports"] = lambda number: (options.port + number, options.port + number + 10_000)
        cluster = RedisCluster(options.folder or temporary, **settings)
        try:
            cluster.start()
            print(json.dumps(cluster.described()), flush=True)
            ended.wait()
        finally:
            cluster.stop()
    # The thread that reads standard input may still wait: it must not hold up the end.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
