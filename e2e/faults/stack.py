"""The system under test: three NATS servers, three replicas, and a process with publishers and subscribers."""

import json
import os
import pathlib
import queue
import re
import shutil
import signal
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
from failure import Failure  # noqa: E402
from networks import Networks  # noqa: E402
from nats_operator import PASSWORD  # noqa: E402
from proxy import Proxies  # noqa: E402

BINARY = os.environ.get("PLENUM_BIN", str(ROOT / "target/debug/plenum"))
LOGS = ROOT / "target/e2e"
START_SECONDS = 40
STOP_SECONDS = 20


def until(what, condition, seconds):
    """Polls; what it waited for is in the failure."""
    end = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise Failure(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.05)


def get_json(server, path):
    """What a NATS server says of itself."""
    with urllib.request.urlopen(f"http://{server.host}:{server.monitor_port}/{path}", timeout=2) as response:
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


class Stack:
    """Everything of one case.

    `nats` are settings of the replicas, `max_file` the storage of each NATS server, `server_lines` more lines of its
    configuration. The NATS servers are on loopback, or `spaced` in networks of their own.
    """

    def __init__(
        self, name, folder, nats=None, load=None, proxied_replica=False, proxied_routes=False, spaced=False, max_file="64G",
        server_lines=(),
    ):
        LOGS.mkdir(parents=True, exist_ok=True)
        self.folder, self.slug = pathlib.Path(folder), re.sub(r"\W+", "-", name)
        self.proxies = Proxies()
        self.cluster = Cluster(3, folder, PASSWORD)
        self.networks = Networks(3) if spaced else None
        self.configure_nats(proxied_routes, max_file, server_lines)
        settings = json.loads((ROOT / "e2e/plenum.json").read_text())
        common = {"replicas": 3, "user": "plenum", "password": PASSWORD, **(nats or {})}
        self.replica_links = [self.proxies.open(server.port) for server in self.cluster.servers] if proxied_replica else []
        self.replicas = []
        for number in range(3):
            urls = self.cluster.urls
            if number == 0 and proxied_replica:
                urls = [f"nats://127.0.0.1:{link.port}" for link in self.replica_links]
            log_path = LOGS / f"faults-{self.slug}-replica-{number}.log"
            log_path.write_bytes(b"")
            self.replicas.append(Replica(number, folder, {**settings, "nats": {**common, "servers": urls}}, log_path))
        self.load_settings = {
            "endpoints": [replica.port for replica in self.replicas],
            "apiKey": settings["http_api"]["key"], "tokenKey": settings["client"]["token"]["hmac_secret_key"],
            "namespace": "deep", "channels": 8, "publishers": 12, "subscribers": 32, "pauseMs": 40, **(load or {}),
        }
        self.load = None

    def configure_nats(self, proxied_routes, max_file, server_lines):
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
            if self.networks:
                text = self.spaced(text, number)
            path.write_text("\n".join([text.replace("cluster {", cluster), *server_lines, ""]))

    def spaced(self, text, number):
        """The server's configuration with addresses of its own networks."""
        server, networks = self.cluster.servers[number], self.networks
        server.host, server.command = networks.client_address(number), networks.command(number)
        text = text.replace(f"127.0.0.1:{server.route_port}", f"{networks.peer_address(number)}:{server.route_port}")
        for other, peer in enumerate(self.cluster.servers):
            text = text.replace(f"127.0.0.1:{peer.route_port}", f"{networks.peer_address(other)}:{peer.route_port}")
        return text.replace("127.0.0.1", server.host)

    def start(self):
        if self.networks:
            self.networks.start()
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
            if self.networks:
                self.networks.stop()
        return problem

    # NATS

    def streams(self):
        """Leader's name by stream, as far as any server knows."""
        found = {}
        for server in self.cluster.servers:
            try:
                accounts = get_json(server, "jsz?accounts=1&streams=1").get("account_details", [])
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
