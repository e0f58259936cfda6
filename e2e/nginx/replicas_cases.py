#!/usr/bin/env python3
"""nginx with the shipped template in front of three real replicas and the API."""

import json
import os
import pathlib
import signal
import sys
import tempfile
import time
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "deploy/stack"), str(ROOT / "e2e"), str(ROOT / "e2e/nginx")]
import cases  # noqa: E402
from cluster import Cluster  # noqa: E402
from nginx import Nginx  # noqa: E402
from peers import Refused, WebSocket, ask, until  # noqa: E402
from process import wait_ready  # noqa: E402
from replica import Replica  # noqa: E402

BINARY = os.environ.get("PLENUM_BIN", str(ROOT / "target/debug/plenum"))
PASSWORD = "a-password-of-the-test-suites-only"
KEY = "an-api-key-of-the-test-suites-only"
OPEN = {
    "allow_subscribe_for_client": True, "allow_subscribe_for_anonymous": True, "history_size": 100, "history_ttl": "60s",
}
# Everything that a replica answers besides connections, and ways to write it that a proxy could understand differently.
INTERNAL = [
    "/metrics", "/health", "/livez", "/readyz", "/report", "/drain", "/debug/pprof/", "/healthz", "/status", "/api",
    "/openapi.json", "//metrics", "/./metrics", "/%6detrics", "/metrics/", "/metrics%20", "/metrics?x=1", "/Metrics",
    "/api/../metrics", "/api/..%2fmetrics", "/api/%2e%2e/metrics", "/api/./../metrics", "/api/x/../../metrics",
    "/connection/websocket/../../metrics", "/connection/websocket%2f..%2f..%2fmetrics", "/connection/../metrics",
    "/connection/websocket/", "/connection/", "/emulation/../metrics", "/..;/metrics", "/api/..;/metrics",
    "/api/%2e%2e%2fmetrics", "/api//../metrics", "http://plenum.test/metrics",
]


def metric(replica, name, label=""):
    """The sum of a metric over its labels, or over those lines that have this label (`result="accepted"`)."""
    with urllib.request.urlopen(f"http://127.0.0.1:{replica.internal_port}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    found = [line for line in lines if line.startswith((f"{name} ", f"{name}{{")) and label in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


class Replicas(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="plenum-nginx-")
        cls.addClassCleanup(cls.temporary.cleanup)
        folder = pathlib.Path(cls.temporary.name)
        nats = Cluster(1, folder, PASSWORD)
        cls.addClassCleanup(nats.stop)
        nats.start()
        settings = {
            "nats": {"servers": nats.urls, "replicas": 1, "user": "plenum", "password": PASSWORD},
            # Most clients here never say `connect`, and must not be sent away for it before a case ends.
            "client": {
                "allow_anonymous_connect_without_token": True, "allowed_origins": ["*"], "stale_close_delay": "5m",
            },
            "http_api": {"key": KEY},
            "channel": {"namespaces": [{"name": "open", **OPEN}]},
        }
        cls.replicas = [Replica("websocket", f"websocket-{at}", folder, BINARY, settings) for at in range(3)]
        cls.api = Replica("api", "api", folder, BINARY, settings)
        for process in [*cls.replicas, cls.api]:
            process.stop_signal = signal.SIGINT  # at once, without a drain
            process.start()
            cls.addClassCleanup(process.stop)
        web = folder / "web"
        web.mkdir()
        (web / "index.html").write_text("<!doctype html><title>Plenum</title>")
        cls.nginx = Nginx(folder / "nginx", {
            "WEBSOCKET_SERVERS": " ".join(f"127.0.0.1:{replica.port}" for replica in cls.replicas),
            "API_SERVERS": f"127.0.0.1:{cls.api.internal_port}",
            "WEB_ROOT": web,
        })
        cls.nginx.start()
        cls.addClassCleanup(cls.nginx.stop)
        wait_ready([*cls.replicas, cls.api, cls.nginx], 60)
        cls.port = cls.nginx.port

    def setUp(self):
        self.open = []
        self.addCleanup(self.close_all)
        until("connections of the case before are gone", lambda: not any(self.counts()))

    def close_all(self):
        for connection in self.open:
            connection.close()

    def connect(self, count=1):
        made = [WebSocket(self.port) for _ in range(count)]
        self.open += made
        return made

    def counts(self):
        return [int(metric(replica, "plenum_connections")) for replica in self.replicas]

    def counted(self, wanted):
        until(lambda: f"{wanted}, not {self.counts()}", lambda: sorted(self.counts()) == wanted)

    def limit(self, replica, connections):
        """Beyond so many connections the replica answers handshakes with 503; 0: no limit."""
        replica.reload(client={"connection_limit": connections})
        refused = connections == 1  # one connection is open: the limit is in force when another is refused

        def in_force():
            try:
                WebSocket(replica.port).close()
                return not refused
            except Refused as error:
                return refused and error.answer.status == 503

        until("the limit is in force", in_force)

    def api_call(self, method, **body):
        headers = {"X-API-Key": KEY, "Content-Type": "application/json"}
        answer = ask(self.port, f"/api/{method}", "POST", headers, json.dumps(body).encode())
        self.assertEqual(answer.status, 200, answer.body)
        return json.loads(answer.body)

    def test_a_publication_through_the_api_reaches_clients_at_every_replica(self):
        clients = self.connect(6)
        for client in clients:
            self.assertIn("connect", client.command(connect={}))
            self.assertIn("subscribe", client.command(subscribe={"channel": "open:a"}))
        self.assertEqual(sorted(self.counts()), [2, 2, 2])
        self.api_call("publish", channel="open:a", data={"n": 1})
        for client in clients:
            self.assertEqual(client.receive()["push"]["pub"]["data"], {"n": 1})

    def test_connections_go_where_the_fewest_are(self):
        self.connect(30)
        self.counted([10, 10, 10])
        first = self.replicas[0]
        first.kill()
        self.addCleanup(lambda: first.running or first.start())
        # nginx counts them until it has seen them end, and then it ends its side of them.
        until("nginx ended what was on the killed one", lambda: sum(each.ended() for each in self.open) == 10)
        self.counts_of_others([10, 10])
        self.connect(4)
        self.counts_of_others([12, 12])
        first.start()
        first.wait_ready()
        # As long as it has fewer than the others, all that is new goes there.
        self.connect(12)
        self.counted([12, 12, 12])
        self.connect(3)
        self.counted([13, 13, 13])

    def counts_of_others(self, wanted):
        others = self.replicas[1:]
        until(wanted, lambda: [int(metric(each, "plenum_connections")) for each in others] == wanted)

    def test_a_503_is_tried_elsewhere_and_the_replica_is_not_held_to_have_failed(self):
        full = self.replicas[0]
        with WebSocket(full.port):
            self.limit(full, 1)
            try:
                refused = metric(full, "plenum_handshakes_total")
                self.connect(20)
                self.counted([1, 10, 10])
                self.assertGreater(metric(full, "plenum_handshakes_total"), refused, "nobody asked it")
            finally:
                full.reload(client={"connection_limit": 0})
            # It has the fewest and takes connections again: nothing else may get the next ones.
            until("the limit is lifted", lambda: self.opened(full.port))
            self.connect(9)
            self.counted([10, 10, 10])

    def test_a_fresh_replica_takes_so_many_a_second_and_the_rest_go_elsewhere_unseen(self):
        a_second, fresh = 5, self.replicas[0]
        self.connect(30)
        self.counted([10, 10, 10])
        fresh.settings["client"] |= {"connection_rate_limit": a_second}
        fresh.write()
        fresh.kill()
        self.addCleanup(lambda: self.lift_rate(fresh))
        begin = time.monotonic()
        fresh.start()
        fresh.wait_ready()

        def handshakes(result):
            return metric(fresh, "plenum_handshakes_total", f'result="{result}"')

        # It has the fewest, so nginx asks it first for every one of them; a client that sees anything but 101 raises.
        self.connect(60)
        until(lambda: f"all are counted: {self.counts()}", lambda: sum(self.counts()) == 80)
        taken, refused = handshakes("accepted"), handshakes("rate_limit")
        seconds = int(time.monotonic() - begin) + 1  # of its clock, which began with it
        self.assertGreater(refused, 0, "nothing was beyond the limit: the case shows nothing")
        self.assertLessEqual(taken, a_second * seconds)
        self.assertEqual(taken, self.counts()[0])
        until("it goes on to fill", lambda: self.connect() and handshakes("accepted") > taken)

    def lift_rate(self, replica):
        replica.reload(client={"connection_rate_limit": 0})
        until("there is no limit", lambda: all(self.opened(replica.port) for _ in range(50)))

    def opened(self, port):
        try:
            WebSocket(port).close()
            return True
        except Refused:
            return False

    def test_when_all_replicas_say_503_the_client_is_told_when_to_come_again(self):
        direct = [WebSocket(replica.port) for replica in self.replicas]
        self.open += direct
        try:
            for replica in self.replicas:
                self.limit(replica, 1)
            with self.assertRaises(Refused) as refused:
                WebSocket(self.port)
            self.assertEqual(refused.exception.answer.status, 503)
            self.assertEqual(refused.exception.answer.one("Retry-After"), "1")
        finally:
            for replica in self.replicas:
                self.limit(replica, 0)

    def test_nothing_internal_can_be_reached(self):
        for target in INTERNAL:
            for method in ("GET", "POST"):
                with self.subTest(target=target, method=method):
                    answer = ask(self.port, target, method, {"X-API-Key": KEY}, b"{}" if method == "POST" else None)
                    self.assertIn(answer.status, (400, 404), answer.body[:300])
                    self.assertNotIn(b"plenum_", answer.body)
        for process in [*self.replicas, self.api]:
            with urllib.request.urlopen(f"http://127.0.0.1:{process.internal_port}/metrics", timeout=5) as response:
                self.assertIn(b"plenum_", response.read(), "the case proves nothing if there is nothing to reach")

    def test_the_api_asks_for_its_key(self):
        answer = ask(self.port, "/api/info", "POST", {}, b"{}")
        self.assertEqual(answer.status, 401)

    def test_a_request_without_an_upgrade_is_no_websocket(self):
        for headers in ({}, {"Upgrade": "h2c", "Connection": "Upgrade"}, {"Upgrade": "websocket2"}):
            with self.subTest(headers=headers):
                self.assertEqual(ask(self.port, "/connection/websocket", headers=headers).status, 400)

    def test_open_connections_outlive_a_reload_of_nginx(self):
        client = self.connect()[0]
        client.command(connect={})
        client.command(subscribe={"channel": "open:b"})
        self.nginx.reload(HSTS_SECONDS=1)
        self.connect(2)
        self.api_call("publish", channel="open:b", data="after")
        self.assertEqual(client.receive()["push"]["pub"]["data"], "after")

    def test_a_connection_on_which_nothing_is_said_stays_open(self):
        """Pings of the server keep it open beyond the time-out; without them it would be cut."""
        self.nginx.reload(STREAM_TIMEOUT="10s")
        self.addCleanup(lambda: self.nginx.reload(STREAM_TIMEOUT="60s"))
        pinging = self.replicas[0]
        self.addCleanup(lambda: self.pings(pinging, 25, "8s"))
        self.pings(pinging, 4, "3900ms")

        def pinged():
            client = WebSocket(self.port)
            if client.command(connect={})["connect"].get("ping") != 4:
                self.open.append(client)  # at another replica: the next one goes where fewer are
                return None
            return client

        client = until("a connection with pings every four seconds", pinged)
        with client:
            for _ in range(3):  # more than the time-out
                self.assertEqual(client.next(), {}, "it was cut")
                client.send()

    def pings(self, replica, interval, pong_timeout):
        """From now on the replica pings new connections every so many seconds."""
        replica.reload(client={"ping_interval": f"{interval}s", "pong_timeout": pong_timeout})

        def in_force():
            with WebSocket(replica.port) as client:
                return client.command(connect={})["connect"].get("ping") == interval

        until("the interval of pings is in force", in_force)

    def test_the_access_log_is_json_and_holds_no_secret(self):
        secrets = ["s3cret-in-query", "s3cret-in-header", "s3cret-in-referer", "s3cret-in-cookie"]
        headers = {"Authorization": f"apikey {secrets[1]}", "Referer": f"http://x/?t={secrets[2]}", "Cookie": f"t={secrets[3]}"}
        for target in ("/api/info", "/connection/websocket", "/nowhere", "/connection/sse"):
            ask(self.port, f"{target}?api_key={secrets[0]}", headers={**headers, "User-Agent": 'a "quoted\\ agent\n'.strip()})
        WebSocket(self.port, f"/connection/websocket?token={secrets[0]}").close()
        # Also when something fails, which is when nginx writes whole requests to its error log.
        for replica in self.replicas:
            replica.signal(signal.SIGKILL)
            replica.process.wait()
        try:
            self.assertEqual(ask(self.port, f"/connection/websocket?token={secrets[0]}").status, 502)
        finally:
            for replica in self.replicas:
                replica.start()
            wait_ready(self.replicas)

        def entries():
            return [json.loads(line) for line in self.nginx.access_log.read_text().splitlines()]

        until("the failed request is logged", lambda: any(entry["status"] == 502 for entry in entries()))
        opened = until("the WebSocket is logged", lambda: [each for each in entries() if each["status"] == 101])
        self.assertEqual(opened[-1]["upgrade"], "websocket")
        self.assertEqual(opened[-1]["path"], "/connection/websocket")
        self.assertTrue(opened[-1]["upstream"].startswith("127.0.0.1:"))
        text = self.nginx.access_log.read_text() + self.nginx.log_path.read_text()
        for secret in secrets:
            self.assertNotIn(secret, text)
        self.assertNotIn("api_key", text)


if __name__ == "__main__":
    cases.run(sys.modules[__name__])
