"""All of Plenum as processes of this machine: nginx, replicas, API, worker, NATS, Redis, and Prometheus where it is installed."""

import json
import os
import pathlib
import secrets
import shutil
import signal
import socket
import threading
import time

from cluster import ROOT, Cluster, free_port
from nginx import Nginx
from process import Process, clean_environment, wait_ready
from redis import RedisCluster
from replica import Replica

PAGE = ROOT / "services/api/src/page"
WEB = ROOT / "services/web/dist"
PROMETHEUS = ROOT / ".tools/prometheus/bin/prometheus"
FIXED = {
    "nginx": 8080, "nginx-status": 8081, "websocket": 8001, "websocket-internal": 9001, "api": 9010, "worker": 9020,
    "nats": 4222, "nats-routes": 6222, "nats-monitor": 8222, "redis": 7001, "redis-bus": 17001, "prometheus": 9090,
}
# What all clients of this machine share is one address.
UNBOUNDED = {"HANDSHAKES_PER_ADDRESS": 100_000, "HANDSHAKE_BURST": 100_000, "CONNECTIONS_PER_ADDRESS": 65_535}


def fixed_port(kind, number=0):
    return FIXED[kind] + number


def any_port(_kind, _number=0):
    return free_port()


def open_namespace(name):
    """A namespace in which anybody may do anything: the stack is for this machine only."""
    words = ("subscribe_for_client", "subscribe_for_anonymous", "publish_for_subscriber", "publish_for_anonymous",
             "presence_for_subscriber", "presence_for_anonymous", "history_for_subscriber", "history_for_anonymous")
    return {
        "name": name, "presence": True, "join_leave": True, "history_size": 20_000, "history_ttl": "1h",
        "allow_positioning": True, "allow_recovery": True, **{f"allow_{word}": True for word in words},
    }


def secret():
    """A new one. It begins with a letter: nats-server reads what comes from its environment as a number where it looks like one."""
    return f"x{secrets.token_urlsafe(24)}"


class Secrets:
    """Made at each start."""

    def __init__(self):
        self.nats, self.api, self.tokens, self.redis, self.backup = (secret() for _ in range(5))


class Stack:
    """`port(kind, number)` says where each part listens; `settings` are merged into the configuration of every replica."""

    def __init__(self, folder, binary, port=fixed_port, replicas=3, nats=3, redis=True, settings=None, drain="10s"):
        self.folder = pathlib.Path(folder)
        self.logs = self.folder / "logs"
        self.logs.mkdir(parents=True)
        self.folder.chmod(0o700)
        self.binary, self.port, self.secrets = binary, port, Secrets()
        self.nats = Cluster(
            nats, self.folder / "nats", self.secrets.nats,
            lambda number: (port("nats", number), port("nats-routes", number), port("nats-monitor", number)),
            self.secrets.backup,
        )
        self.redis = None
        if redis:
            ports = lambda number: (port("redis", number), port("redis-bus", number))  # noqa: E731
            self.redis = RedisCluster(self.folder / "redis", self.secrets.redis, ports=ports)
        self.configuration = configuration = self._configuration(nats, drain) | (settings or {})
        self.made = 0
        self.replicas = [self._websocket() for _ in range(replicas)]
        self.api = self._replica("api", "api", configuration, (port("api"),) * 2)
        self.worker = self._replica("worker", "worker", configuration, (port("worker"),) * 2)
        self.nginx = Nginx(self.folder / "nginx", {
            "WEBSOCKET_SERVERS": " ".join(f"127.0.0.1:{replica.port}" for replica in self.replicas),
            "API_SERVERS": f"127.0.0.1:{self.api.internal_port}", "WEB_ROOT": self._web(), **UNBOUNDED,
        }, port("nginx"), port("nginx-status"), self.logs)
        self.prometheus = self._prometheus() if PROMETHEUS.exists() else None
        self.ours = [*self.replicas, self.api, self.worker, self.nginx]
        self.stopping = threading.Lock()

    def _configuration(self, nats, drain):
        configuration = {
            "nats": {
                "servers": self.nats.urls, "replicas": 3 if nats >= 3 else 1, "user": "plenum", "password": self.secrets.nats,
            },
            "client": {
                "allowed_origins": ["http://127.0.0.1:*", "http://localhost:*"],
                "allow_anonymous_connect_without_token": True,
                # The load test opens 500 a second, also to a single replica.
                "connection_rate_limit": 1000,
                "token": {"hmac_secret_key": self.secrets.tokens},
            },
            "http_api": {"key": self.secrets.api},
            "channel": {"namespaces": [open_namespace("demo"), open_namespace("chat")]},
            "shutdown": {"drain_time": drain},
        }
        if self.redis:
            configuration["redis"] = {
                "servers": self.redis.servers, "user": self.redis.user, "password": self.redis.password,
            }
        return configuration

    def _websocket(self):
        number, self.made = self.made, self.made + 1
        ports = self.port("websocket", number), self.port("websocket-internal", number)
        return self._replica("websocket", f"websocket-{number + 1}", self.configuration, ports)

    def one_more(self):
        """A further replica, not started; nginx does not know it before it is told so."""
        replica = self._websocket()
        self.replicas.append(replica)
        self.ours.append(replica)
        return replica

    def _replica(self, role, name, configuration, ports):
        return Replica(role, name, self.folder, self.binary, configuration, ports, log_folder=self.logs)

    def _web(self):
        """The web application where it is built, else the page that `serve --dev` shows."""
        if WEB.exists():
            return WEB
        web = self.folder.resolve() / "web"
        web.mkdir()
        for file in PAGE.iterdir():
            shutil.copy(file, web / file.name)
        return web

    def _prometheus(self):
        port, folder = self.port("prometheus"), self.folder.resolve() / "prometheus"
        folder.mkdir()
        targets = [
            {"targets": [f"127.0.0.1:{each.internal_port}"], "labels": {"instance": each.name, "role": each.arguments[1]}}
            for each in [*self.replicas, self.api, self.worker]
        ]
        settings = {
            "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
            "scrape_configs": [{"job_name": "plenum", "static_configs": targets}],
        }
        # JSON is YAML too.
        (folder / "prometheus.yml").write_text(json.dumps(settings, indent=2))
        return Process(
            "prometheus",
            [PROMETHEUS, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=1d"],
            self.logs / "prometheus.log", clean_environment(), f"http://127.0.0.1:{port}/-/ready", stop_seconds=15,
        )

    @property
    def parts(self):
        """Everything that has a process, as (name, process id)."""
        redis = self.redis.nodes if self.redis else []
        prometheus = [self.prometheus] if self.prometheus else []
        all_of_them = [*self.ours, *self.nats.servers, *redis, *prometheus]
        return [(part.name, part.process.pid) for part in all_of_them if part.process]

    @property
    def ports(self):
        """Every port that the stack listens on, by who does."""
        ports = {}
        for replica in self.replicas:
            ports[replica.name] = [replica.port, replica.internal_port]
        ports["api"], ports["worker"] = [self.api.internal_port], [self.worker.internal_port]
        ports["nginx"] = [self.nginx.port, self.nginx.status_port]
        for server in self.nats.servers:
            ports[server.name] = [server.port, server.monitor_port] + ([server.route_port] if server.clustered else [])
        for node in self.redis.nodes if self.redis else []:
            ports[node.name] = [node.port, node.bus_port]
        if self.prometheus:
            ports["prometheus"] = [int(self.prometheus.ready_url.split(":")[2].split("/")[0])]
        return ports

    @property
    def url(self):
        return f"http://127.0.0.1:{self.nginx.port}"

    @property
    def websocket_url(self):
        return f"ws://127.0.0.1:{self.nginx.port}/connection/websocket"

    def start(self, seconds=60):
        """Starts everything at once: each part waits for what it needs by itself."""
        end = time.monotonic() + seconds
        self._launch_stores()
        for part in self._others():
            part.start()
        self._finish_stores(end)
        wait_ready(self._others(), max(1.0, end - time.monotonic()))

    def start_stores(self, seconds=60):
        """Starts NATS and Redis only; `start_ours` starts the rest."""
        self._launch_stores()
        self._finish_stores(time.monotonic() + seconds)

    def start_ours(self, seconds=60):
        for part in self._others():
            part.start()
        wait_ready(self._others(), seconds)

    def _others(self):
        return [*self.ours, *([self.prometheus] if self.prometheus else [])]

    def _launch_stores(self):
        for server in self.nats.servers:
            server.start()
        if self.redis:
            self.redis.launch()

    def _finish_stores(self, end):
        if self.redis:
            self.redis.finish(max(0.0, end - time.monotonic()))
        while not all(server.ready() for server in self.nats.servers):
            if time.monotonic() > end:
                raise RuntimeError(f"the NATS servers were not ready in time; see {self.folder}/nats")
            time.sleep(0.05)

    def restart(self, name, kill=False):
        """Ends a process of ours with SIGTERM, as an update does, or kills it, and starts it again; gives its status, and the
        seconds to end and to serve."""
        part = next((part for part in self.ours if part.name == name), None)
        if part is None:
            raise ValueError(f"no such process: {name}; there are: {' '.join(part.name for part in self.ours)}")
        begin = time.monotonic()
        part.stop_signal = signal.SIGTERM
        if kill:
            part.kill()
        status = part.stop()
        ended = time.monotonic()
        part.start()
        part.wait_ready()
        return {"name": name, "status": status, "ended": ended - begin, "ready": time.monotonic() - ended}

    def stop(self):
        """Ends everything, ours first and without a drain."""
        with self.stopping:
            plenum = [*self.replicas, self.api, self.worker]
            for part in plenum:
                part.stop_signal = signal.SIGINT
            first = self._others()
            for part in first:
                part.ask_to_stop()
            for part in first:
                part.stop()
            if self.redis:
                for node in self.redis.nodes:
                    node.ask_to_stop()
            self.nats.stop()
            if self.redis:
                self.redis.stop()


def taken(ports):
    """Those of the ports that something listens on."""
    found = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                found.append(port)
    return found


def born(pid):
    """When a process was started, in ticks since boot; None when there is none. With the number it names a process for good."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = stat.rsplit(")", 1)[1].split()
    return None if after_name[0] == "Z" else int(after_name[19])


def end_leftovers(pids, seconds=10):
    """Ends processes named as [name, pid, born] whose supervisor is gone; gives the names of those that were still there."""
    def alive():
        return [each for each in pids if each[2] is not None and born(each[1]) == each[2]]

    found = [name for name, _, _ in alive()]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for _, pid, _ in alive():
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, number)
        end = time.monotonic() + seconds
        while alive() and time.monotonic() < end:
            time.sleep(0.05)
    return found
