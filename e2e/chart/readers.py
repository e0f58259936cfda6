"""Those who read what the chart renders take it: nginx, Plenum, NATS, the shell, Prometheus, Grafana, and whoever installs it."""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import time

import yaml

from base import BINARY, NATS, NGINX, PROMTOOL, REDIS, ROOT, Rendered
import rendering
from cluster import free_port
from peers import until
from rendering import CHART, NAMESPACE, resources, scenarios

NOTES = ("default", "ingress", "gateway", "loadbalancer", "no-nginx")


def served(port):
    """The certificate that is shown at a port, or None where nothing listens."""
    try:
        return ssl.get_server_certificate(("127.0.0.1", port), timeout=5)
    except OSError:
        return None


def command(pid):
    """The name of a process; empty when there is none."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


class Fall:
    """A number that falls to 0, looked at again and again from now on."""

    def __init__(self, number, count):
        self.count, self.seen = count, [(time.monotonic(), number)]

    def look(self):
        with contextlib.suppress(OSError):
            self.seen.append((time.monotonic(), self.count()))
        time.sleep(0.05)

    def in_steps(self, seconds):
        """Whether it fell to 0 and by one in so many seconds; by more only where as much time passed between two looks."""
        steps = list(itertools.pairwise(self.seen))
        return self.seen[-1][1] == 0 and all(
            less <= more <= less + 1 + (now - before) // seconds for (before, more), (now, less) in steps
        )


class Readers(Rendered):
    def test_nginx_takes_its_configuration(self):
        for name, values, found in self.each(nginx=True):
            with self.subTest(scenario=name):
                data = found["ConfigMap", "plenum-nginx"]["data"]
                with tempfile.TemporaryDirectory() as path:
                    folder = pathlib.Path(path)
                    for file, text in data.items():
                        (folder / file).write_text(text)
                    start = data["start"].replace("/etc/plenum-nginx", path).replace("/tmp/nginx.conf", f"{path}/nginx.conf")
                    (folder / "start").write_text(re.sub(r"^(exec nginx.*|renew &)$", "", start, flags=re.M))
                    self.succeeds("sh", folder / "start", environment={**os.environ, "RESOLVER": "127.0.0.1"})
                    conf = (folder / "nginx.conf").read_text()
                    if "/etc/nginx-tls" in conf:
                        self.certificate(folder)
                        conf = conf.replace("/etc/nginx-tls", path)
                    (folder / "nginx.conf").write_text(conf)
                    self.succeeds(NGINX, "-t", "-q", "-c", folder / "nginx.conf")
                    self.assertIn("least_conn", conf)
                    written = rendering.written(values)
                    self.assertEqual("ssl_certificate " in conf, bool(written["nginx"]["tls"]["existingSecret"]))
                    self.assertEqual("location /api/" in conf, written["api"]["public"], name)

    def test_settings_of_nginx_arrive_as_they_stand_in_the_values(self):
        policy = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; frame-ancestors 'none'"
        values = {
            "nginx": {"settings": {"CSP": policy, "HSTS_SECONDS": 63_072_000, "HTTPS_SUFFIX": "", "PROXY_PROTOCOL": True, "WORKERS": None}},
            "websocket": {"maxConnections": 1_000_000, "autoscaling": {"enabled": True, "connections": 1_000_000}},
        }
        with tempfile.TemporaryDirectory() as path:
            folder = pathlib.Path(path)
            (folder / "values.yaml").write_text(yaml.safe_dump(values))
            for program in rendering.HELMS:
                found = resources(program, folder / "values.yaml")
                data = found["ConfigMap", "plenum-nginx"]["data"]
                for file, text in data.items():
                    (folder / file).write_text(text.replace("/etc/plenum-nginx", path).replace("/tmp/nginx", f"{path}/nginx"))
                (folder / "start").write_text(re.sub(r"^exec nginx.*$", "", (folder / "start").read_text(), flags=re.M))
                self.succeeds("sh", folder / "start", environment={**os.environ, "RESOLVER": "127.0.0.1"})
                conf = (folder / "nginx.conf").read_text()
                self.assertIn(f'add_header Content-Security-Policy "{policy}" always;', conf)
                self.assertIn('"max-age=63072000"', conf)
                self.assertIn("real_ip_header proxy_protocol;", conf)
                self.assertIn("worker_processes 8;", conf)
                self.assertIn("max_conns=1100000;", conf)
                target = found["HorizontalPodAutoscaler", "plenum-websocket"]["spec"]["metrics"][1]["pods"]["target"]
                self.assertEqual(target["averageValue"], "1000000")
                self.assertNotIn(("Pod", "plenum-test-session"), found, "it does not speak the PROXY protocol")

    def test_nginx_lets_connections_be_silent_for_longer_than_two_pings(self):
        def timeouts(*more):
            text = resources("helm3", None, *[word for setting in more for word in ("--set", setting)])["ConfigMap", "plenum-nginx"]["data"]["start"]
            return tuple(re.search(rf"'{name}=(\w+)'", text)[1] for name in ("STREAM_TIMEOUT", "SHUTDOWN_TIMEOUT"))

        self.assertEqual(timeouts(), ("60s", "3600s"))
        self.assertEqual(timeouts("config.client.ping_interval=5s"), ("60s", "3600s"))
        self.assertEqual(timeouts("config.client.ping_interval=1m30.5s", "config.client.pong_timeout=500ms"), ("183s", "3600s"))
        self.assertEqual(timeouts("config.client.ping_interval=1h", "nginx.settings.STREAM_TIMEOUT=70s"), ("70s", "3600s"))
        # Old workers go over ten times the drain, long before nginx would end them.
        self.assertEqual(timeouts("drain.seconds=600"), ("60s", "12000s"))

    def certificate(self, folder):
        """A new pair in files of its own, as the kubelet makes them: nginx keeps what has the inode and second of before."""
        self.succeeds("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
                      "-keyout", folder / "new.key", "-out", folder / "new.crt")
        for end in ("key", "crt"):
            (folder / f"new.{end}").replace(folder / f"tls.{end}")

    def test_a_renewed_certificate_is_served_and_the_old_workers_go_one_after_the_other(self):
        data = resources("helm3", None, "--set", "nginx.tls.existingSecret=tls")["ConfigMap", "plenum-nginx"]["data"]
        port = free_port()
        with tempfile.TemporaryDirectory() as path:
            folder = pathlib.Path(path)
            self.certificate(folder)
            for old, new in (
                ("/etc/plenum-nginx", path), ("/etc/nginx-tls", path), ("/tmp/nginx.conf", f"{path}/nginx.conf"),
                ("sleep 60", "sleep 1"), ("end_over 600 ", "end_over 8 "), ("'WORKERS=8'", "'WORKERS=4' 'OPEN_FILES=40000'"),
                ("'HTTPS=8443'", f"'HTTPS=127.0.0.1:{port}' 'RUN={path}' 'USER={'root' if os.geteuid() == 0 else ''}'"),
                ("'HTTP=8080'", f"'HTTP=127.0.0.1:{free_port()}'"), ("'STATUS=8081'", f"'STATUS=127.0.0.1:{free_port()}'"),
            ):
                self.assertIn(old, data["start"])
                data["start"] = data["start"].replace(old, new)
            data["workers"] = data["workers"].replace("/tmp/nginx", f"{path}/nginx")
            data["nginx.conf.template"] = data["nginx.conf.template"].replace("client_header_timeout 10s", "client_header_timeout 90s")
            for file, text in data.items():
                (folder / file).write_text(text)
            environment = {**os.environ, "RESOLVER": "127.0.0.1", "PATH": f"{NGINX.parent}:{os.environ['PATH']}"}
            nginx = subprocess.Popen(["sh", str(folder / "start")], env=environment, stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL, start_new_session=True)
            children = pathlib.Path(f"/proc/{nginx.pid}/task/{nginx.pid}/children")
            workers = lambda: {pid for pid in children.read_text().split() if command(pid) == command(nginx.pid)}  # noqa: E731
            try:
                until("the certificate is served", lambda: served(port) == (folder / "tls.crt").read_text(), 30)
                until("its workers run", lambda: len(workers()) == 4, 30)
                old, trust = workers(), ssl.create_default_context(cafile=folder / "tls.crt")
                # Requests that are under way: without any a worker would go at once.
                for _ in range(64):
                    client = trust.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
                    self.addCleanup(client.close)
                    client.sendall(b"GET / HTTP/1.1\r\nHost: ")
                fall = Fall(4, lambda: len(old & workers()))
                self.certificate(folder)
                until("the new certificate is served", lambda: served(port) == (folder / "tls.crt").read_text(), 30)
                end = time.monotonic() + 60
                while fall.seen[-1][1] and time.monotonic() < end:
                    fall.look()
                self.assertTrue(fall.in_steps(2), fall.seen)
                self.assertEqual(len(workers()), 4, "the new ones stay")
            finally:
                os.killpg(nginx.pid, signal.SIGTERM)
                nginx.wait(30)

    def test_an_nginx_that_ends_lets_its_workers_go_one_after_the_other(self):
        data = resources("helm3")["ConfigMap", "plenum-nginx"]["data"]
        with tempfile.TemporaryDirectory() as path:
            folder, ports = pathlib.Path(path), [free_port(), free_port()]
            for old, new in (
                ("/etc/plenum-nginx", path), ("/tmp/nginx", f"{path}/nginx"), ("'WORKERS=8'", "'WORKERS=4' 'OPEN_FILES=40000'"),
                ("'HTTP=8080'", f"'HTTP=127.0.0.1:{ports[0]}' 'RUN={path}' 'USER={'root' if os.geteuid() == 0 else ''}'"),
                ("'STATUS=8081'", f"'STATUS=127.0.0.1:{ports[1]}'"),
            ):
                self.assertIn(old, data["start"])
                for file in ("start", "workers", "stop"):
                    data[file] = data[file].replace(old, new)
            data["nginx.conf.template"] = data["nginx.conf.template"].replace("client_header_timeout 10s", "client_header_timeout 90s")
            for file, text in data.items():
                (folder / file).write_text(text)
            environment = {**os.environ, "RESOLVER": "127.0.0.1", "PATH": f"{NGINX.parent}:{os.environ['PATH']}"}
            nginx = subprocess.Popen(["sh", str(folder / "start")], env=environment, stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL, start_new_session=True)
            workers = pathlib.Path(f"/proc/{nginx.pid}/task/{nginx.pid}/children")
            try:
                until("its workers run", lambda: (folder / "nginx.pid").exists() and len(workers.read_text().split()) == 4, 30)
                # Requests that are under way: without any a worker would go at once.
                clients = [socket.create_connection(("127.0.0.1", ports[0])) for _ in range(64)]
                for client in clients:
                    self.addCleanup(client.close)
                    client.sendall(b"GET / HTTP/1.1\r\nHost: ")
                fall = Fall(4, lambda: 0 if nginx.poll() is not None else len(workers.read_text().split()))
                stop = subprocess.Popen(["sh", str(folder / "stop"), "0", "8"], env=environment, stderr=subprocess.DEVNULL)
                while nginx.poll() is None:
                    fall.look()
                fall.look()
                self.assertEqual((nginx.wait(30), stop.wait(30)), (0, 0))
                self.assertTrue(fall.in_steps(2), fall.seen)
            finally:
                if nginx.poll() is None:
                    os.killpg(nginx.pid, signal.SIGKILL)
                    nginx.wait(30)

    def test_plenum_takes_its_configuration(self):
        for name, _, found in self.each():
            with self.subTest(scenario=name):
                spec = found["Deployment", "plenum-websocket"]["spec"]["template"]["spec"]
                secret = "a-secret-of-the-tests-of-the-chart-only"
                environment = {name: value for name, value in os.environ.items() if not name.startswith("PLENUM_")}
                environment |= {each["name"]: each.get("value", secret) for each in spec["containers"][0]["env"]}
                with tempfile.TemporaryDirectory() as folder:
                    file = pathlib.Path(folder) / "plenum.json"
                    file.write_text(found["ConfigMap", "plenum-config"]["data"]["plenum.json"])
                    environment["PLENUM_CONFIG"] = str(file)
                    self.succeeds(BINARY, "config", "check", environment=environment)

    def test_nats_takes_its_configuration(self):
        for name, _, found in self.each():
            with self.subTest(scenario=name):
                if ("ConfigMap", "plenum-nats") not in found:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    file = pathlib.Path(folder) / "nats.conf"
                    text = found["ConfigMap", "plenum-nats"]["data"]["nats.conf"]
                    file.write_text(text.replace("/data", folder))
                    environment = {**os.environ, "POD_NAME": "plenum-nats-0", "PLENUM_NATS_PASSWORD": "a-password",
                                   "PLENUM_NATS_BACKUP_PASSWORD": "another"}
                    self.succeeds(NATS, "-t", "-c", file, environment=environment)

    def test_the_shell_takes_the_scripts_of_redis(self):
        data = resources("helm3")["ConfigMap", "plenum-redis"]["data"]
        for script in ("start", "ready", "stop", "bootstrap"):
            ended = subprocess.run(["sh", "-n"], input=data[script], capture_output=True, text=True, check=False)
            self.assertEqual(ended.returncode, 0, ended.stderr)

    def test_a_redis_node_is_ready_with_its_data_and_a_primary_that_ends_gives_its_slots_away(self):
        data = resources("helm3")["ConfigMap", "plenum-redis"]["data"]
        port, one, other = free_port(), "127.0.0.1", "127.0.0.2"
        secret = "a-password"
        environment = {**os.environ, "PATH": f"{REDIS}:{os.environ['PATH']}", "OPERATOR_PASSWORD": secret}

        def node(address, *words):
            return subprocess.run([REDIS / "redis-cli", "--user", "operator", "-h", address, "-p", str(port), *words], text=True,
                                  capture_output=True, check=False, env={**environment, "REDISCLI_AUTH": secret}).stdout

        def script(name, address):
            # A port of its own for what is 6379 in a pod.
            text = data[name].replace('-h "$', f'-p {port} -h "$')
            return subprocess.run(["sh", "-c", text], env={**environment, "POD_IP": address}, capture_output=True, text=True,
                                  check=False).returncode

        with tempfile.TemporaryDirectory() as path, contextlib.ExitStack() as ends:
            for address in (one, other):
                folder = pathlib.Path(path) / address
                folder.mkdir()
                (folder / "redis.conf").write_text(
                    f"port {port}\nbind {address}\ncluster-announce-ip {address}\ndir {folder}\nsave \"\"\n"
                    f"cluster-enabled yes\ncluster-port {free_port()}\n"
                    f"user operator on >{secret} ~* &* +@all\nmasteruser operator\nmasterauth {secret}\n")
                started = subprocess.Popen([REDIS / "redis-server", folder / "redis.conf"], stdout=subprocess.DEVNULL)
                ends.callback(started.wait, 30)
                ends.callback(started.terminate)
                until("it answers", lambda address=address: "PONG" in node(address, "ping"), 30)
            self.assertEqual(script("ready", one), 0, "a primary")
            node(one, "cluster", "addslotsrange", "0", "16383")
            bus = re.search(r"@(\d+)", node(other, "cluster", "nodes"))[1]
            node(one, "cluster", "meet", other, str(port), bus)
            known = node(one, "cluster", "myid").strip()
            until("the replica follows", lambda: "OK" in node(other, "cluster", "replicate", known), 30)
            until("the replica is ready", lambda: script("ready", other) == 0, 30)
            until("its primary knows it", lambda: f"slave {known}" in node(one, "cluster", "nodes"), 30)
            until("the slots are served", lambda: "cluster_state:ok" in node(other, "cluster", "info"), 30)
            self.assertEqual(script("stop", one), 0)
            self.assertEqual([node(each, "role").split("\n")[0] for each in (one, other)], ["slave", "master"])
            until("the old primary is ready", lambda: script("ready", one) == 0, 30)
            node(other, "config", "set", "masterauth", "wrong")
            node(one, "config", "set", "masterauth", "wrong")
            node(other, "client", "kill", "type", "replica")
            until("a replica without its primary is not ready", lambda: script("ready", one) == 1, 30)
            self.assertEqual(script("stop", one), 0, "a replica has nothing to give away")

    def test_prometheus_takes_the_rules_and_grafana_gets_every_dashboard(self):
        found = resources("helm3", scenarios()["ha"])
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "rules.yaml"
            file.write_text(yaml.safe_dump(found["PrometheusRule", "plenum"]["spec"]))
            self.succeeds(PROMTOOL, "check", "rules", file)
        boards = found["ConfigMap", "plenum-dashboards"]["data"]
        self.assertEqual(sorted(boards), sorted(path.name for path in (ROOT / "grafana/dashboards").glob("*.json")))
        for text in boards.values():
            self.assertTrue(json.loads(text)["panels"])

    def test_secrets_are_long_and_differ_from_install_to_install(self):
        made = [resources("helm3", None, "--set", f"tests.seconds={number}") for number in (1, 2)]
        kept = [(key, name) for key, each in made[0].items() if key[0] == "Secret" for name in each["data"] if name != "user"]
        self.assertGreaterEqual(len(kept), 6)
        for key, name in kept:
            one, other = (base64.b64decode(each[key]["data"][name]) for each in made)
            self.assertNotEqual(one, other, f"{key} {name}")
            self.assertGreaterEqual(len(one), 40, f"{key} {name}")

    def notes(self, values, *more):
        said = rendering.helm("helm4", "install", rendering.RELEASE, CHART, "--namespace", NAMESPACE, "--values", values,
                              "--dry-run=client", "--kubeconfig", os.devnull, *more)
        return said.split("NOTES:\n", 1)[1]

    def test_the_notes_warn_where_all_clients_would_share_an_address(self):
        balanced = ("--set", "nginx.service.type=LoadBalancer")
        for name, more, warned in (
            ("default", (), False), ("ingress", (), False), ("ingress", ("--set", "nginx.trustedProxies=null"), True),
            ("default", balanced, True), ("default", (*balanced, "--set", "nginx.service.externalTrafficPolicy=Local"), False),
        ):
            with self.subTest(scenario=name, settings=more):
                self.assertEqual("nginx.trustedProxies" in self.notes(scenarios()[name], *more), warned)

    def test_the_notes_warn_where_prometheus_would_be_shut_out(self):
        watched = ("--set", "metrics.podMonitor.enabled=true")
        for name, more, warned in (
            ("default", (), False), ("default", watched, True), ("default", (*watched, "--set", "networkPolicy.enabled=false"), False),
            ("ha", (), False), ("ha", ("--set-json", "networkPolicy.metricsFrom=[]"), True),
        ):
            with self.subTest(scenario=name, settings=more):
                self.assertEqual("networkPolicy.metricsFrom" in self.notes(scenarios()[name], *more), warned)

    def test_the_notes_tell_the_address_and_three_commands_that_name_what_is_there(self):
        for name in NOTES:
            with self.subTest(scenario=name):
                values = scenarios()[name]
                notes = self.notes(values)
                self.assertIn("/connection/websocket", notes)
                self.assertIn("http://plenum-api.chat:9000/api", notes)
                self.assertIn('plenum/api-client: "true"', notes)
                self.assertEqual("No browser can connect yet" in notes, name not in ("ingress", "gateway", "loadbalancer"))
                for number in (1, 2, 3):
                    self.assertRegex(notes, rf"(?m)^  {number}\. ")
                self.assertEqual(len(re.findall(r"^\s+(?:kubectl|helm) ", notes.split("Next:")[1], re.M)), 3)
                found = resources("helm3", values)
                named = re.findall(r"(?:get |/?)(service|secret)[/ ](plenum[a-z-]*) ", notes)
                self.assertGreaterEqual(len(named), 2)
                for kind, title in named:
                    self.assertIn((kind.capitalize(), title), found)
