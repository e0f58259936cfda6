"""The system under test: three NATS servers, three replicas, and a process with publishers and subscribers."""

import json
import os
import pathlib
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "deploy/stack"))
from cluster import BINARY as NATS_BINARY  # noqa: E402
from cluster import PERMISSIONS, Cluster, free_port  # noqa: E402
from proxy import Proxies  # noqa: E402

BINARY = os.environ.get("PLENUM_BIN", str(ROOT / "target/debug/plenum"))
LOGS = ROOT / "target/e2e"
PASSWORD = "a-password-of-the-test-suites-only"
START_SECONDS = 40
STOP_SECONDS = 20


class Failure(Exception):
    """A case that did not go as it must."""


def until(what, condition, seconds):
    """Polls; what it waited for is in the failure."""
    end = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise Failure(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.05)


def get_json(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=2) as response:
        return json.loads(response.read())


class Replica:
    def __init__(self, number, folder, settings, log_path):
        self.name = f"replica {number}"
        self.port = free_port()
        self.log_path = log_path
        self.config = pathlib.Path(folder) / f"replica-{number}.json"
        self.config.write_text(json.dumps({**settings, "http_server": {"address": "127.0.0.1", "port": self.port}}))
        self.process = None
        self.killed = False

    def launch(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PLENUM_")}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [BINARY, "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            )
        self.killed = False

    def ready(self):
        if self.process.poll() is not None:
            raise Failure(f"{self.name} ended with status {self.process.returncode}; see {self.log_path}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.killed = True

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self):
        """Ends it; says what went wrong, or None."""
        if self.process is None or self.killed:
            return None
        if self.process.poll() is not None:
            return f"{self.name} had ended by itself with status {self.process.returncode}"
        self.thaw()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"{self.name} did not end within {STOP_SECONDS} s after SIGTERM"
        return None if status == 0 else f"{self.name} ended with status {status} after SIGTERM"

    def misbehaved(self):
        text = self.log_path.read_text(errors="replace")
        if "panicked at" in text:
            return f"{self.name} panicked; see {self.log_path}"
        if "permissions violation" in text.lower():
            return f"{self.name} did on NATS what deploy/nats/plenum.conf does not allow"
        return None


class Load:
    """The process with publishers and subscribers (load.mjs)."""

    def __init__(self, settings):
        environment = dict(os.environ, PLENUM_TOOLS=str(ROOT / ".tools"), NO_PROXY="127.0.0.1")
        self.process = subprocess.Popen(
            ["node", str(ROOT / "e2e/faults/load.mjs"), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        self.answers = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def ask(self, command, seconds=30):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        try:
            line = self.answers.get(timeout=seconds)
        except queue.Empty:
            raise Failure(f"publishers and subscribers: no answer to {command} within {seconds} s") from None
        if line is None:
            raise Failure("publishers and subscribers ended by themselves")
        answer = json.loads(line)
        if "failure" in answer:
            raise Failure(answer["failure"])
        return answer

    def stop(self):
        self.process.kill()
        self.process.wait()


class Operator:
    """Requests to NATS of somebody who may do everything, over a bare connection."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.file = self.socket.makefile("rb")
        self.file.readline()
        login = {"verbose": False, "user": "operator", "pass": PASSWORD, "lang": "test", "version": "1"}
        self.socket.sendall(f"CONNECT {json.dumps(login)}\r\nSUB _INBOX_operator 1\r\n".encode())

    def request(self, subject, body=b""):
        self.socket.sendall(f"PUB {subject} _INBOX_operator {len(body)}\r\n".encode() + body + b"\r\n")
        while line := self.file.readline():
            if line.startswith(b"MSG"):
                size = int(line.split()[-1])
                answer = json.loads(self.file.read(size + 2))
                if "error" in answer:
                    raise Failure(f"{subject}: {answer['error']}")
                return answer
            if line.startswith(b"PING"):
                self.socket.sendall(b"PONG\r\n")
            if line.startswith(b"-ERR"):
                raise Failure(line.decode())
        raise Failure("NATS closed the operator's connection")

    def close(self):
        self.socket.close()


class Stack:
    """Everything of one case. `nats` are settings of the replicas, `max_file` the storage of each NATS server."""

    def __init__(self, name, folder, nats=None, load=None, proxied_replica=False, proxied_routes=False, max_file="64G"):
        LOGS.mkdir(parents=True, exist_ok=True)
        self.folder, self.slug = pathlib.Path(folder), re.sub(r"\W+", "-", name)
        self.proxies = Proxies()
        self.cluster = Cluster(3, folder, PASSWORD)
        self.configure_nats(proxied_routes, max_file)
        settings = json.loads((ROOT / "e2e/plenum.json").read_text())
        common = {"replicas": 3, "user": "plenum", "password": PASSWORD, **(nats or {})}
        ports = [server.port for server in self.cluster.servers]
        self.replica_links = [self.proxies.open(port) for port in ports] if proxied_replica else []
        self.replicas = []
        for number in range(3):
            through = [link.port for link in self.replica_links] if number == 0 and proxied_replica else ports
            urls = [f"nats://127.0.0.1:{port}" for port in through]
            log_path = LOGS / f"faults-{self.slug}-replica-{number}.log"
            log_path.write_bytes(b"")
            self.replicas.append(Replica(number, folder, {**settings, "nats": {**common, "servers": urls}}, log_path))
        self.load_settings = {
            "endpoints": [replica.port for replica in self.replicas],
            "apiKey": settings["http_api"]["key"], "tokenKey": settings["client"]["token"]["hmac_secret_key"],
            "namespace": "deep", "channels": 8, "publishers": 12, "subscribers": 32, "pauseMs": 40, **(load or {}),
        }
        self.load = None

    def configure_nats(self, proxied_routes, max_file):
        """As deploy/stack writes it, with an operator in the account, and routes through proxies when asked for."""
        accounts = PERMISSIONS.read_text().replace(
            "users: [", "users: [\n      { user: operator, password: $PLENUM_NATS_PASSWORD }", 1
        )
        servers = self.cluster.servers
        self.routes = {}
        for high in range(3) if proxied_routes else ():
            for low in range(high):
                self.routes[low, high] = self.proxies.open(servers[low].route_port)
        for number, server in enumerate(servers):
            path = server.folder / "server.conf"
            text = re.sub(r"^include .*$", lambda _: accounts, path.read_text(), flags=re.MULTILINE)
            text = text.replace("max_file: 64G", f"max_file: {max_file}")
            cluster = "cluster { no_advertise: true, "
            if proxied_routes:
                # Each pair has one route, made by its higher member; gossip leads nowhere. JetStream wants one configured:
                # one to the server itself is recognized and dropped.
                lower = [link.port for (_, high), link in self.routes.items() if high == number] or [server.route_port]
                routes = json.dumps([f"nats-route://127.0.0.1:{port}" for port in lower])
                text = re.sub(r"routes: \[.*\]", f"routes: {routes}", text)
                cluster += 'advertise: "127.0.0.1:9", '
            path.write_text(text.replace("cluster {", cluster))

    def start(self):
        self.cluster.start()
        for replica in self.replicas:
            replica.launch()
        for replica in self.replicas:
            until(f"{replica.name} ready", replica.ready, START_SECONDS)
        self.load = Load(self.load_settings)
        self.load.ask("start", 45)

    def stop(self):
        """Ends all of it; says what went wrong, or None."""
        problem = None
        try:
            if self.load:
                self.load.stop()
            for server in self.cluster.servers:
                if server.process and server.process.poll() is None:
                    server.process.send_signal(signal.SIGCONT)
            for replica in self.replicas:
                problem = problem or replica.stop()
            for replica in self.replicas:
                problem = problem or replica.misbehaved()
        finally:
            self.cluster.stop()
            for number, server in enumerate(self.cluster.servers):
                if server.log_path.exists():
                    shutil.copy(server.log_path, LOGS / f"faults-{self.slug}-nats-{number}.log")
            self.proxies.stop()
        return problem

    # NATS

    def streams(self):
        """Leader's name by stream, as far as any server knows."""
        found = {}
        for server in self.cluster.servers:
            try:
                accounts = get_json(server.monitor_port, "jsz?accounts=1&streams=1").get("account_details", [])
            except (urllib.error.URLError, OSError, ValueError):
                continue
            for account in accounts:
                for stream in account.get("stream_detail") or []:
                    if leader := stream.get("cluster", {}).get("leader"):
                        found[stream["name"]] = leader
        return found

    def log_streams(self):
        return {name: leader for name, leader in self.streams().items() if not name.startswith("KV_")}

    def leader(self):
        """The NATS server that leads most streams of the log."""
        leaders = list(until("a leader", self.log_streams, 10).values())
        name = max(sorted(set(leaders)), key=leaders.count)
        return next(server for server in self.cluster.servers if server.name == name)

    def kill_nats(self, server):
        server.process.kill()
        server.process.wait()

    def nats_ready(self, seconds=60):
        def everyone():
            return all(server.ready() for server in self.cluster.servers)

        until("all NATS servers ready", everyone, seconds)

    # Load

    def progress(self, more, seconds):
        """Waits until each publisher has had `more` further publications acknowledged."""
        least = self.load.ask("status")["least"] + more
        until(f"{more} more acknowledged of each publisher", lambda: self.load.ask("status")["least"] >= least, seconds)
