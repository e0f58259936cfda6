#!/usr/bin/env python3
"""A crowd of SDK clients and publishers behind nginx while replicas are rolled and killed, and nginx is replaced.

As in Kubernetes the replicas have one name, which leads to an address for each; nginx asks a name server for them every second, a
replica that is replaced starts before the old one ends, and one that ends is taken out of the name at once.

CLIENTS, DRAIN (seconds) and PLENUM_BIN in the environment change what runs; 1,000 clients and 20 s take about eight minutes.
"""

import itertools
import json
import math
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "deploy/stack"), str(ROOT / "e2e"), str(ROOT / "e2e/nginx")]
import cases  # noqa: E402
from cluster import free_port  # noqa: E402
from peers import Names, until  # noqa: E402
from replicas_cases import metric  # noqa: E402
from whole import Stack, any_port  # noqa: E402

BINARY = os.environ.get("PLENUM_BIN", str(ROOT / "target/debug/plenum"))
CLIENTS = int(os.environ.get("CLIENTS", "1000"))
DRAIN = int(os.environ.get("DRAIN", "20"))
CHANNELS, PUBLISHERS, PAUSE_MS = 20, 10, 500
ROUNDS = 2
BETWEEN_SECONDS = 3  # a replica serves so long before the next one goes; `minReadySeconds` of the chart


class Crowd:
    """The process with clients and publishers (crowd.mjs)."""

    def __init__(self, stack, log):
        settings = {
            "port": stack.nginx.port, "apiKey": stack.secrets.api, "namespace": "demo", "clients": CLIENTS, "channels": CHANNELS,
            "apiPublishers": PUBLISHERS, "sdkPublishers": PUBLISHERS, "pauseMs": PAUSE_MS,
        }
        environment = dict(os.environ, PLENUM_TOOLS=str(ROOT / ".tools"), NO_PROXY="127.0.0.1")
        self.process = subprocess.Popen(
            ["node", str(ROOT / "e2e/stack/crowd.mjs"), json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=log, text=True, env=environment,
        )
        self.answers = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def ask(self, command, seconds=60):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.answers.get(timeout=seconds)
        assert line is not None, "the crowd ended by itself"
        answer = json.loads(line)
        assert "failure" not in answer, answer["failure"]
        return answer

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Rolling(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="plenum-rolling-")
        self.addCleanup(temporary.cleanup)
        folder = pathlib.Path(temporary.name)
        self.stack = Stack(folder / "stack", BINARY, any_port, drain=f"{DRAIN}s")
        self.addCleanup(self.stack.stop)
        self.names, self.port, self.hosts = Names(), free_port(), itertools.count(11)
        self.addCleanup(self.names.stop)
        for replica in self.stack.replicas:
            self.place(replica)
            self.names.addresses.append(replica.address)
        self.stack.nginx.settings |= {
            "WEBSOCKET_SERVERS": f"websocket.plenum.test:{self.port}", "RESOLVE": "resolve", "RESOLVER_VALID": "1s",
            "RESOLVER": f"127.0.0.1:{self.names.port}",
        }
        self.stack.nginx.write()
        self.stack.start(60)
        log = (folder / "crowd.log").open("w")
        self.addCleanup(log.close)
        self.crowd = Crowd(self.stack, log)
        self.addCleanup(self.crowd.stop)
        begin = time.monotonic()
        self.crowd.ask("start", 180)
        self.say(f"{CLIENTS} clients in {time.monotonic() - begin:.0f} s, on replicas {self.spread()}")

    def place(self, replica):
        """An address of its own, and the port that all of them have."""
        replica.address, replica.port = f"127.0.0.{next(self.hosts)}", self.port
        replica.settings["http_server"] |= {"address": replica.address, "internal_address": "127.0.0.1", "port": self.port}
        replica.write()
        replica.stop_seconds = DRAIN + 60

    def say(self, text):
        print(f"      {text}", flush=True)

    def spread(self):
        return [int(metric(replica, "plenum_connections")) for replica in self.stack.replicas if replica.running]

    def everybody(self, reconnects=0, seconds=90):
        """Waits for so many reconnects, until all clients are subscribed, and until publications go on; gives the seconds that the
        first two took."""
        def back():
            at = self.crowd.ask("status")
            return at["opened"] >= reconnects and at["subscribed"] == at["clients"] or time.sleep(0.2)

        begin = time.monotonic()
        until(lambda: f"{reconnects} reconnects, and all are back: {self.crowd.ask('status')}", back, seconds)
        took = time.monotonic() - begin
        before = self.crowd.ask("status")["apiAcknowledged"]
        until("publications go on",
              lambda: self.crowd.ask("status")["apiAcknowledged"] > before + PUBLISHERS or time.sleep(0.2), seconds)
        return took

    def verdict(self, told=False):
        """Ends the publishers; nothing acknowledged may be missing, come twice or out of order."""
        result = self.crowd.ask("quiet", 240)
        self.say(
            f"API: {result['apiAcknowledged']} acknowledged, {result['apiRepeated']} repeated, {result['apiFailed']} failed; "
            f"SDK: {result['sdkAcknowledged']} acknowledged, {result['sdkFailed']} reported as failed; {result['delivered']} "
            f"delivered; lost {result['lost']}, doubled {result['doubled']}, out of order {result['reordered']}, "
            f"told of a loss {result['told']}"
        )
        self.assertEqual(result["behind"], [])
        self.assertEqual(result["faults"], [])
        self.assertEqual([result[kind] for kind in ("lost", "doubled", "reordered", "misplaced", "apiFailed")], [0] * 5)
        if not told:
            self.assertEqual(result["told"], 0, "somebody was told of a loss")
        self.assertGreater(result["apiAcknowledged"], 100)
        self.assertGreater(result["sdkAcknowledged"], 100)
        return result

    def test_all_replicas_are_rolled_twice_and_nobody_notices(self):
        for round_ in range(ROUNDS):
            for old in list(self.stack.replicas):
                self.replaced(old, round_)
            for name in ("api", "worker"):
                self.assertEqual(self.stack.restart(name)["status"], 0, name)
        self.told("API and worker restarted, too", self.everybody())
        self.verdict()

    def replaced(self, old, round_):
        new = self.fresh()
        time.sleep(BETWEEN_SECONDS)
        moved = int(metric(old, "plenum_connections"))
        self.crowd.ask("phase")
        self.names.addresses.remove(old.address)
        begin = time.monotonic()
        self.assertEqual(old.stop(), 0, old.name)
        ended = time.monotonic() - begin
        self.stack.replicas.remove(old)
        self.stack.ours.remove(old)
        self.everybody(moved)
        phase, pace = self.crowd.ask("phase"), moved / DRAIN
        self.say(f"round {round_ + 1}, {old.name} by {new.name}: {moved} moved in {ended:.1f} s, asked at {pace:.1f}/s, most "
                 f"{phase['mostPerSecond']} reconnects in a second; now {self.spread()}")
        self.assertEqual(phase["failed"], {}, "handshakes that clients saw fail")
        self.assertEqual(phase["opened"], moved, "who was not on it stays where they are")
        self.assertLessEqual(phase["mostPerSecond"], math.ceil(2 * pace))
        # A client that is asked to move may have sent a command that was not read: it is told so.
        self.assertEqual([text for text in phase["errors"] if text != "SDK: 11 connection closed"], [])

    def fresh(self):
        """One more replica, in the name once it is ready."""
        new = self.stack.one_more()
        self.place(new)
        new.start()
        new.wait_ready(60)
        self.names.addresses.append(new.address)
        return new

    def test_a_killed_replica_a_replaced_nginx_and_a_new_replica_cost_nobody_a_message(self):
        self.killed()
        self.reloaded()
        self.nginx_killed()
        self.added()
        self.verdict()

    def told(self, what, took):
        phase = self.crowd.ask("phase")
        self.say(f"{what}: all subscribed after {took:.1f} s; {phase['opened']} reconnects, most {phase['mostPerSecond']} in a "
                 f"second; failed handshakes {sum(phase['failed'].values())} {phase['failed'] or ''}; now {self.spread()}; "
                 f"API repeated so far {phase['apiRepeated']}, SDK failed so far {phase['sdkFailed']}")
        return phase

    def killed(self):
        victim = self.stack.replicas[1]
        lost = int(metric(victim, "plenum_connections"))
        victim.kill()
        phase = self.told("replica killed", self.everybody(lost))
        self.assertEqual(phase["opened"], lost, "the others stay")
        self.assertEqual(phase["failed"], {})
        victim.start()
        victim.wait_ready(60)
        # Nobody is moved to it: it fills with those who come.
        phase = self.told("replica back", self.everybody())
        self.assertEqual(phase["opened"], 0)

    def reloaded(self):
        self.stack.nginx.reload(HSTS_SECONDS=2)
        time.sleep(3)
        phase = self.told("nginx reloaded", self.everybody())
        self.assertEqual((phase["opened"], phase["failed"]), (0, {}))

    def nginx_killed(self):
        self.stack.nginx.kill()
        time.sleep(1)
        self.stack.nginx.start()
        self.stack.nginx.wait_ready()
        phase = self.told("nginx killed, down for 1 s", self.everybody(CLIENTS))
        self.assertEqual(phase["opened"], CLIENTS)

    def added(self):
        before = self.spread()
        new = self.fresh()
        time.sleep(BETWEEN_SECONDS)
        self.assertEqual(int(metric(new, "plenum_connections")), 0, "nobody is moved to it")
        self.crowd.ask("grow", 120)
        phase = self.told("replica added, a tenth more clients", self.everybody(math.ceil(CLIENTS / 10)))
        self.assertEqual(phase["opened"], math.ceil(CLIENTS / 10))
        self.assertEqual(phase["failed"], {})
        # It has the fewest, so it gets all of the new ones.
        self.assertEqual(self.spread(), [*before, math.ceil(CLIENTS / 10)])


if __name__ == "__main__":
    cases.CASE_SECONDS = 900
    cases.run(sys.modules[__name__])
