"""NATS servers with JetStream on loopback, in a folder: one, or several that form a cluster."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BINARY = ROOT / ".tools/nats/nats-server"
PERMISSIONS = ROOT / "deploy/nats/plenum.conf"
BACKUP_USER = ROOT / "deploy/nats/backup.conf"
STOP_SECONDS = 10


# Below the range from which the system takes the ports of outgoing connections, which would come in between.
PORTS = range(15_000, 32_000)
_given = set()


def free_port():
    """A port that nothing listens on now, and that was not given before."""
    while True:
        port = random.choice(PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port


def permissions_with_backup():
    """The account of plenum.conf with the user of backup.conf in it, as an operator writes it."""
    users_end = "\n    ]\n"
    account, end, rest = PERMISSIONS.read_text().rpartition(users_end)
    assert end, f"{PERMISSIONS}: where do its users end?"
    return f"{account}\n{BACKUP_USER.read_text()}{end}{rest}"


class Server:
    """One nats-server; its configuration, data and log are in its folder."""

    def __init__(self, number, folder, ports, routes, password, backup_password=None):
        self.name = f"nats-{number}"
        self.folder = pathlib.Path(folder) / self.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self.route_port, self.monitor_port = ports
        self.password, self.backup_password = password, backup_password
        # Where clients reach it, and what starts it elsewhere than on this machine's own network.
        self.host, self.command = "127.0.0.1", []
        self.clustered = len(routes) > 1
        lines = [
            f"server_name: {self.name}",
            f"listen: 127.0.0.1:{self.port}",
            f"http: 127.0.0.1:{self.monitor_port}",
            f"jetstream {{ store_dir: {json.dumps(str(self.folder / 'store'))}, max_mem: 64M, max_file: 64G }}",
            f"include {json.dumps(os.path.relpath(self._permissions(), self.folder))}",
        ]
        if self.clustered:
            others = [f"nats-route://127.0.0.1:{port}" for port in routes if port != self.route_port]
            lines += [f"cluster {{ name: plenum, listen: 127.0.0.1:{self.route_port}, routes: {json.dumps(others)} }}"]
        (self.folder / "server.conf").write_text("\n".join(lines) + "\n")
        self.log_path = self.folder / "server.log"
        self.process = None

    def _permissions(self):
        if not self.backup_password:
            return PERMISSIONS
        file = self.folder / "permissions.conf"
        file.write_text(permissions_with_backup())
        return file

    @property
    def url(self):
        return f"nats://{self.host}:{self.port}"

    def start(self):
        environment = dict(os.environ, PLENUM_NATS_PASSWORD=self.password)
        if self.backup_password:
            environment["PLENUM_NATS_BACKUP_PASSWORD"] = self.backup_password
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, str(BINARY), "-c", str(self.folder / "server.conf")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            )

    def ready(self):
        """Whether it serves, and in a cluster knows a leader."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with status {self.process.returncode}; see {self.log_path}")
        try:
            self._ask("healthz")
            return not self.clustered or bool(self._ask("jsz").get("meta_cluster", {}).get("leader"))
        except (urllib.error.URLError, OSError, ValueError):
            return False

    def _ask(self, path):
        with urllib.request.urlopen(f"http://{self.host}:{self.monitor_port}/{path}", timeout=2) as response:
            return json.loads(response.read())

    def ask_to_stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def stop(self):
        """Ends it, at last by force."""
        self.ask_to_stop()
        if self.process:
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Cluster:
    """As many servers as asked for; `ports` gives client, route and monitor port of a server's number. With a password for
    it there is a user `backup` besides `plenum`."""

    def __init__(
        self, count, folder, password, ports=lambda number: (free_port(), free_port(), free_port()), backup_password=None
    ):
        if not BINARY.exists():
            raise RuntimeError(f"{BINARY} is missing: deploy/tools/install nats")
        chosen = [ports(number) for number in range(count)]
        routes = [route for _, route, _ in chosen]
        self.servers = [
            Server(number, folder, chosen[number], routes, password, backup_password) for number in range(count)
        ]

    @property
    def urls(self):
        return [server.url for server in self.servers]

    def start(self, seconds=60):
        for server in self.servers:
            server.start()
        end = time.monotonic() + seconds
        while not all(server.ready() for server in self.servers):
            if time.monotonic() > end:
                raise RuntimeError(f"the NATS servers were not ready within {seconds} s")
            time.sleep(0.05)

    def stop(self):
        for server in self.servers:
            server.ask_to_stop()
        for server in self.servers:
            server.stop()
