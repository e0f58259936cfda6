#!/usr/bin/env python3
"""A crowd of SDK clients and publishers behind nginx while replicas are rolled and killed, and nginx is replaced.

CLIENTS, DRAIN (seconds) and PLENUM_BIN in the environment change what runs; 1,000 clients and 20 s take about eight minutes.
"""

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
from peers import until  # noqa: E402
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
        self.stack.start(60)
        log = (folder / "crowd.log").open("w")
        self.addCleanup(log.close)
        self.crowd = Crowd(self.stack, log)
        self.addCleanup(self.crowd.stop)
        begin = time.monotonic()
        self.crowd.ask("start", 180)
        self.say(f"{CLIENTS} clients in {time.monotonic() - begin:.0f} s, on replicas {self.spread()}")

    def say(self, text):
        print(f"      {text}", flush=True)

    def spread(self):
        return [int(metric(replica, "plenum_connections")) for replica in self.stack.replicas if replica.running]

    def everybody(self, seconds=90):
        """Waits until all clients are subscribed and publications go on; gives the seconds that the first took."""
        begin = time.monotonic()
        until(lambda: f"all are back: {self.crowd.ask('status')}",
              lambda: (at := self.crowd.ask("status"))["subscribed"] == at["clients"] or time.sleep(0.2), seconds)
        took = time.monotonic() - begin
        before = self.crowd.ask("status")
        until("publications go on", lambda: (self.crowd.ask("status")["apiAcknowledged"] > before["apiAcknowledged"] + PUBLISHERS)
              or time.sleep(0.2), seconds)
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
            for name in [replica.name for replica in self.stack.replicas] + ["api", "worker"]:
                self.roll(name, round_)
        self.verdict()

    def roll(self, name, round_):
        part = next(part for part in self.stack.ours if part.name == name)
        moved = int(metric(part, "plenum_connections"))
        self.crowd.ask("phase")
        answer = self.stack.restart(name)
        self.assertEqual(answer["status"], 0, name)
        self.everybody()
        time.sleep(BETWEEN_SECONDS)
        phase = self.crowd.ask("phase")
        pace = moved / DRAIN
        self.say(f"round {round_ + 1}, {name}: {moved} moved in {answer['ended']:.1f} s, asked at {pace:.1f}/s, most "
                 f"{phase['mostPerSecond']} reconnects in a second; now {self.spread()}")
        self.assertEqual(phase["failed"], {}, "handshakes that clients saw fail")
        self.assertEqual(phase["opened"], moved, "who was not on it stays where they are")
        if moved:
            self.assertLessEqual(phase["mostPerSecond"], math.ceil(2 * pace))
            self.assertLess(answer["ended"], DRAIN + 10)

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
        phase = self.told("replica killed", self.everybody())
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
        phase = self.told("nginx killed, down for 1 s", self.everybody())
        self.assertEqual(phase["opened"], CLIENTS)

    def added(self):
        before = self.spread()
        new = self.stack.one_more()
        new.start()
        new.wait_ready(60)
        self.stack.nginx.reload(WEBSOCKET_SERVERS=" ".join(f"127.0.0.1:{replica.port}" for replica in self.stack.replicas))
        self.crowd.ask("grow", 120)
        phase = self.told("replica added, a tenth more clients", self.everybody())
        self.assertEqual(phase["opened"], math.ceil(CLIENTS / 10))
        self.assertEqual(phase["failed"], {})
        # It has the fewest, so it gets all of the new ones; nobody is moved.
        self.assertEqual(self.spread(), [*before, math.ceil(CLIENTS / 10)])


if __name__ == "__main__":
    cases.CASE_SECONDS = 900
    cases.run(sys.modules[__name__])
