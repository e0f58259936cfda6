#!/usr/bin/env python3
"""The whole stack of deploy/stack: it starts, carries messages, loses none while its replicas are restarted, and leaves nothing."""

import contextlib
import http.client
import json
import math
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "deploy/stack"), str(ROOT / "e2e"), str(ROOT / "e2e/nginx")]
import cases  # noqa: E402
from peers import Refused, WebSocket, ask, until  # noqa: E402
from whole import Stack, any_port, born, end_leftovers, taken  # noqa: E402

BINARY = os.environ.get("PLENUM_BIN", str(ROOT / "target/debug/plenum"))
START_SECONDS = 90  # about 16 processes at once
USERS, PER_SECOND = 24, 40


def board_queries():
    """Every query of every board, with the variables as Grafana fills them in, and the panel that asks it."""
    filled = {"$job": ".*", "$instance": ".*", "$__rate_interval": "20s", "$__range": "1m"}
    for path in sorted((ROOT / "grafana/dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"]
                for variable, value in filled.items():
                    expression = expression.replace(variable, value)
                yield expression, f"{board['title']}: {panel['title']}"


def alert_queries():
    """Whether the metrics that the alerts name exist; the alerts themselves stay silent here."""
    text = (ROOT / "grafana/alerts/plenum.yaml").read_text()
    expressions = " ".join(line for line in text.splitlines() if line.strip().startswith("expr:"))
    names = sorted(set(re.findall(r"\b(?:plenum|process)_\w+", expressions)))
    assert names, "no alert names a metric"
    return [(f"count({name})", "alerts") for name in names]


class Listener(threading.Thread):
    """A client that stays subscribed with recovery, comes back when it is asked to, and keeps what it gets."""

    def __init__(self, stack, channel, number):
        super().__init__(daemon=True)
        self.port, self.channel, self.name = stack.nginx.port, channel, f"listener {number}"
        self.position, self.got, self.story = None, [], []
        self.ending, self.joined = threading.Event(), threading.Event()
        self.refused, self.socket = 0, None

    def note(self, text):
        self.story.append(f"{time.monotonic():.3f} {self.name}: {text}")

    def run(self):
        while not self.ending.is_set():
            try:
                with WebSocket(self.port) as self.socket:
                    self.stay(self.socket)
            except Refused as error:
                self.refused += 1
                self.note(f"refused: {error}")
            except (OSError, AssertionError) as error:
                self.note(f"cut: {error!r}")
            if not self.ending.wait(0.1):
                self.note("comes back")

    def stay(self, connection):
        self.granted(connection, "connect", {})
        request = {"channel": self.channel, "recoverable": True}
        if self.position:
            request |= {"recover": True, "offset": self.position[0], "epoch": self.position[1]}
        result = self.granted(connection, "subscribe", request)
        if self.position:
            assert result.get("recovered"), f"not recovered: {result}"
        self.note(f"subscribed from {self.position}: offset {result.get('offset')}, "
                  f"publications {[each['offset'] for each in result.get('publications', [])]}")
        self.position = [result.get("offset", 0), result["epoch"]]
        for publication in result.get("publications", []):
            self.take(publication)
        self.joined.set()
        while not self.ending.is_set():
            message = connection.receive()
            if message is None:
                self.note("closed by the server")
                return
            if publication := message.get("push", {}).get("pub"):
                self.take(publication)

    def granted(self, connection, method, request):
        """The result of a command; what is refused for now is asked for again, as an SDK does."""
        while True:
            reply = connection.command(**{method: request})
            if method in reply:
                return reply[method]
            self.note(f"{method}: {reply}")
            assert reply.get("error", {}).get("temporary") and not self.ending.wait(0.1), f"{method}: {reply}"

    def take(self, publication):
        self.position[0] = publication["offset"]
        self.got.append((publication["data"]["n"], publication["offset"]))

    def done(self, count):
        return bool(self.got) and self.got[-1][0] == count - 1

    def end(self):
        self.ending.set()
        with contextlib.suppress(OSError):
            self.socket.socket.shutdown(socket.SHUT_RDWR)
        self.join(10)


class Publisher(threading.Thread):
    """Publishes 0, 1, 2, … through nginx and the API; a publication without an answer is repeated with the same key."""

    def __init__(self, stack, channel):
        super().__init__(daemon=True)
        self.stack, self.channel = stack, channel
        self.ending, self.count, self.repeated = threading.Event(), 0, 0

    def run(self):
        headers = {"X-API-Key": self.stack.secrets.api, "Content-Type": "application/json"}
        while not self.ending.wait(1 / PER_SECOND):
            key = f"{self.channel}-{self.count}"
            body = {"channel": self.channel, "data": {"n": self.count}, "idempotency_key": key}
            while not self.publish(headers, json.dumps(body).encode()):
                self.repeated += 1
                self.ending.wait(0.05)
            self.count += 1

    def publish(self, headers, body):
        try:
            answer = ask(self.stack.nginx.port, "/api/publish", "POST", headers, body)
            return answer.status == 200 and "result" in json.loads(answer.body)
        except (OSError, http.client.HTTPException, ValueError):
            return False  # without an answer, or with half of one


class Whole(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory(prefix="plenum-stack-")
        cls.addClassCleanup(temporary.cleanup)
        cls.stack = Stack(pathlib.Path(temporary.name) / "stack", BINARY, any_port, drain="2s")
        cls.addClassCleanup(cls.stack.stop)
        begin = time.monotonic()
        cls.stack.start(START_SECONDS)
        cls.took = time.monotonic() - begin

    def test_the_page_and_its_files_are_served(self):
        page = ask(self.stack.nginx.port, "/")
        self.assertIn(b"/page.js", page.body)
        for name in ("/page.js", "/page.css", "/centrifuge.js"):
            self.assertEqual(ask(self.stack.nginx.port, name).status, 200)
        print(f"      ready after {self.took:.1f} s")

    def test_replicas_are_restarted_one_by_one_and_nobody_loses_anything(self):
        def roll():
            for replica in self.stack.replicas:
                answer = self.stack.restart(replica.name)
                self.assertEqual(answer["status"], 0, replica.name)

        self.under_load("rolled", roll, USERS // 2)

    def test_a_killed_replica_costs_nobody_a_message(self):
        victim = self.stack.replicas[1]

        def kill():
            victim.kill()
            time.sleep(2)  # the others carry the load
            victim.start()
            victim.wait_ready(START_SECONDS)

        self.under_load("killed", kill, USERS // 4)

    def test_nginx_can_be_reloaded_and_killed_and_nobody_loses_a_message(self):
        nginx = self.stack.nginx

        def replace():
            nginx.reload(HSTS_SECONDS=2)
            time.sleep(1)
            nginx.kill()
            time.sleep(1)
            nginx.start()
            nginx.wait_ready(START_SECONDS)

        self.under_load("replaced", replace, USERS)

    def under_load(self, name, disturb, least_reconnects):
        """Clients and a publisher through nginx while `disturb` does: everybody gets everything, once and in order."""
        channel = f"demo:{name}"
        listeners = [Listener(self.stack, channel, number) for number in range(USERS)]
        publisher = Publisher(self.stack, channel)
        for thread in [*listeners, publisher]:
            thread.start()
        try:
            until("all are there", lambda: all(listener.joined.is_set() for listener in listeners))
            before = self.comings(listeners)
            disturb()
        finally:
            publisher.ending.set()
            publisher.join(30)
        wanted = list(range(publisher.count))
        try:
            until("everybody has everything", lambda: all(each.done(publisher.count) for each in listeners))
        except AssertionError:
            pass  # told below, with what is missing
        for listener in listeners:
            listener.end()
        comings = self.comings(listeners) - before
        print(f"      {publisher.count} publications ({publisher.repeated} repeated), {USERS} clients, {comings} reconnects")
        self.assertGreaterEqual(comings, least_reconnects, "nobody was moved: the case shows nothing")
        for listener in listeners:
            self.check(listener, wanted)
        self.assertEqual(sum(listener.refused for listener in listeners), 0, "handshakes that a client saw fail")

    def comings(self, listeners):
        return sum(len([line for line in each.story if "comes back" in line]) for each in listeners)

    def check(self, listener, wanted):
        numbers = [n for n, _ in listener.got]
        if numbers and numbers == self.expected(listener, wanted):
            return
        missing = sorted(set(self.expected(listener, wanted)) - set(numbers))
        story = "\n".join(listener.story)
        around = [each for each in listener.got if missing and abs(each[0] - missing[0]) < 5]
        self.fail(f"{listener.name}: missing {missing}, {len(numbers) - len(set(numbers))} doubled; around {around}\n{story}")

    def expected(self, listener, wanted):
        """From the first that it got on: the publisher began while clients came in."""
        return wanted[listener.got[0][0] :] if listener.got else wanted

    def test_prometheus_scrapes_every_process_of_plenum(self):
        self.assertIsNotNone(self.stack.prometheus, "not installed")
        port = self.stack.ports["prometheus"][0]

        def up():
            answer = json.loads(ask(port, "/api/v1/query?query=sum%20by%20(role)%20(up)").body)
            return {each["metric"]["role"]: each["value"][1] for each in answer["data"]["result"]}

        until(lambda: f"all to be scraped: {up()}", lambda: up() == {"websocket": "3", "api": "1", "worker": "1"})

    def test_every_query_of_every_board_returns_data(self):
        """With somebody connected, something published, something refused and somebody who comes back."""
        listeners = [Listener(self.stack, "demo:board", number) for number in range(3)]
        publisher = Publisher(self.stack, "demo:board")
        for thread in [*listeners, publisher]:
            thread.start()
        try:
            until("all are there", lambda: all(listener.joined.is_set() for listener in listeners))
            waiting = dict(board_queries()) | dict(alert_queries())
            self.assertGreater(len(waiting), 20)

            def all_answered():
                self.disturb(listeners[0])
                for expression in [each for each in waiting if self.has_data(each)]:
                    del waiting[expression]
                return not waiting

            until(lambda: f"data for {waiting}", all_answered, 60)
        finally:
            publisher.ending.set()
            publisher.join(30)
            for listener in listeners:
                listener.end()

    def disturb(self, listener):
        """A command and an API call that fail, and a client that comes back."""
        with WebSocket(self.stack.nginx.port) as client:
            client.command(connect={})
            client.command(subscribe={"channel": "nowhere:a"})
        headers = {"X-API-Key": self.stack.secrets.api, "Content-Type": "application/json"}
        ask(self.stack.nginx.port, "/api/publish", "POST", headers, b'{"channel": "nowhere:a", "data": 1}')
        with contextlib.suppress(OSError):
            listener.socket.socket.shutdown(socket.SHUT_RDWR)

    def has_data(self, expression):
        """Whether Prometheus knows at least one number for it; what is only NaN would be an empty panel."""
        query = urllib.parse.urlencode({"query": expression})
        answer = json.loads(ask(self.stack.ports["prometheus"][0], f"/api/v1/query?{query}").body)
        self.assertEqual(answer["status"], "success", f"{expression}: {answer}")
        return any(not math.isnan(float(each["value"][1])) for each in answer["data"]["result"])

    def connections(self):
        """How many clients each replica has."""
        metrics = [ask(replica.internal_port, "/metrics").body.decode() for replica in self.stack.replicas]
        return [sum(float(count) for count in re.findall(r"(?m)^plenum_connections(?:{.*})? (\S+)$", each)) for each in metrics]

    def doctor(self, *more):
        """Exit status and findings of `plenum doctor` with every part of the stack named."""
        stack = self.stack
        command = [BINARY, "doctor", "--json", "--timeout", "15s", "--config", stack.replicas[0].config,
                   "--url", stack.websocket_url, "--origin", stack.url, "--channel", "demo:doctor-",
                   "--api", f"http://127.0.0.1:{stack.api.internal_port}/api"]
        for replica in stack.replicas:
            command += ["--url", f"ws://127.0.0.1:{replica.port}/connection/websocket"]
        for server in stack.nats.servers:
            command += ["--nats-monitoring", f"http://127.0.0.1:{server.monitor_port}"]
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=80)
        for secret in vars(stack.secrets).values():
            self.assertNotIn(secret, done.stdout + done.stderr)
        return done.returncode, json.loads(done.stdout)["findings"]

    def test_the_doctor_finds_the_stack_well_and_names_a_server_that_is_gone(self):
        # It compares what replicas have with and without its own: clients of the case before must be gone.
        until(lambda: f"nobody is connected: {self.connections()}", lambda: self.connections() == [0, 0, 0])
        status, findings = self.doctor()
        bad = [each for each in findings if each["state"] == "failed"]
        self.assertEqual((status, bad), (0, []))
        checked = {each["check"] for each in findings if each["state"] == "ok"}
        self.assertEqual({"names", "nats", "redis", "websocket", "message", "clocks"} - checked, set())
        spread = next(each["found"] for each in findings if each["subject"] == "spread over replicas")
        self.assertEqual(spread, "6 connections came to 3 replicas")
        gone = self.stack.nats.servers[2]
        gone.stop()
        try:
            status, findings = self.doctor("--only", "nats")
        finally:
            gone.start()
            until("NATS is whole again", gone.ready, START_SECONDS)
        bad = [each["subject"] for each in findings if each["state"] == "failed"]
        self.assertEqual((status, bad[0]), (1, f"server {gone.url}"), findings)

    def test_an_unknown_process_is_not_restarted(self):
        with self.assertRaises(ValueError):
            self.stack.restart("postgres")


class Ending(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="plenum-stack-")
        self.addCleanup(temporary.cleanup)
        self.stack = Stack(pathlib.Path(temporary.name) / "stack", BINARY, any_port, replicas=1, nats=1)
        self.addCleanup(self.stack.stop)
        self.stack.start(START_SECONDS)
        self.ports = [port for ports in self.stack.ports.values() for port in ports]
        self.assertEqual(sorted(taken(self.ports)), sorted(set(self.ports)))

    def test_nothing_is_left_after_the_end(self):
        self.stack.stop()
        self.assertEqual(taken(self.ports), [])
        for _, pid in self.stack.parts:
            self.assertIsNone(born(pid))

    def test_what_a_killed_supervisor_left_is_ended_and_nothing_else(self):
        noted = [[name, pid, born(pid)] for name, pid in self.stack.parts]
        noted.append(["somebody else", os.getpid(), born(os.getpid()) + 1])
        threads = [threading.Thread(target=part.process.wait, daemon=True)
                   for part in [*self.stack.ours, *self.stack.nats.servers, *self.stack.redis.nodes]]
        for thread in threads:  # as the system would: they have no parent any more
            thread.start()
        self.assertNotIn("somebody else", end_leftovers(noted))
        self.assertEqual(taken(self.ports), [])


if __name__ == "__main__":
    cases.run(sys.modules[__name__])
