#!/usr/bin/env python3
"""The whole stack is backed up while it works, lost, and made anew from the backup; clients of the JavaScript SDK stay."""

import http.client
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "deploy/stack"), str(ROOT / "e2e"), str(ROOT / "e2e/nginx")]
import cases  # noqa: E402
from cluster import free_port  # noqa: E402
from peers import WebSocket, ask, until  # noqa: E402
from process import clean_environment  # noqa: E402
from whole import Stack  # noqa: E402

BINARY = os.environ.get("PLENUM_BIN", str(ROOT / "target/debug/plenum"))
START_SECONDS = 60
CHANNELS = [f"demo:kept-{number}" for number in range(6)]
BLOCKED = "mallory"


class Watchers:
    """The process with the clients."""

    def __init__(self, port):
        environment = dict(os.environ, PLENUM_TOOLS=str(ROOT / ".tools"), NO_PROXY="127.0.0.1")
        self.process = subprocess.Popen(
            ["node", str(ROOT / "e2e/stack/watchers.mjs"), json.dumps({"port": port, "channels": CHANNELS})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )

    def seen(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.kill()
        self.process.communicate()


class Publisher(threading.Thread):
    """Publishes 0, 1, 2, … to each channel in turn until it is told to end; `acknowledged` counts them. A publication without an
    answer is repeated with the same key."""

    def __init__(self, publish):
        super().__init__(daemon=True)
        self.publish, self.ending, self.acknowledged = publish, threading.Event(), 0

    def run(self):
        for number in itertools.count():
            for channel in CHANNELS:
                while not self.published(channel, number):
                    self.ending.wait(0.05)
            self.acknowledged = number + 1
            if self.ending.wait(0.01):
                return


    def published(self, channel, number):
        try:
            self.publish(channel=channel, data=number, idempotency_key=f"{channel}-{number}")
            return True
        except (OSError, AssertionError, http.client.HTTPException, ValueError):
            return False


class Backup(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="plenum-backup-")
        self.addCleanup(temporary.cleanup)
        self.folder, self.port = pathlib.Path(temporary.name), free_port()

    def stack(self, name):
        """A stack that clients reach at the same address as the others, not started."""
        stack = Stack(self.folder / name, BINARY, lambda kind, _=0: self.port if kind == "nginx" else free_port())
        self.addCleanup(stack.stop)
        return stack

    def plenum(self, stack, *arguments, **environment):
        command = [BINARY, *arguments, "--config", str(stack.replicas[0].config)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env={**clean_environment(), **environment}, check=False
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def as_backup_user(self, stack, *arguments):
        return self.plenum(stack, *arguments, "--set", "nats.user=backup", PLENUM_NATS__PASSWORD=stack.secrets.backup)

    def api(self, stack, method, **body):
        headers = {"X-API-Key": stack.secrets.api, "Content-Type": "application/json"}
        answer = ask(stack.nginx.port, f"/api/{method}", "POST", headers, json.dumps(body).encode())
        reply = json.loads(answer.body)
        self.assertIn("result", reply, reply)
        return reply["result"]

    def history(self, stack, channel):
        return [each["data"] for each in self.api(stack, "history", channel=channel, limit=-1)["publications"]]

    def lets_in(self, stack, user):
        token = self.plenum(stack, "token", "make", "--user", user).strip()
        with WebSocket(stack.nginx.port) as client:
            client.send(id=1, connect={"token": token})
            return client.receive() is not None

    def test_a_stack_that_was_lost_comes_back_from_its_backup_and_clients_notice(self):
        old = self.stack("old")
        old.start(START_SECONDS)
        self.api(old, "block_user", user=BLOCKED)
        watchers = Watchers(self.port)
        self.addCleanup(watchers.stop)
        until("all are subscribed", lambda: all(each["state"] == "subscribed" for each in watchers.seen()))
        publisher = Publisher(lambda **body: self.api(old, "publish", **body))
        publisher.start()
        until("something to keep", lambda: publisher.acknowledged > 20, 120)
        surely = publisher.acknowledged
        print(f"      {self.as_backup_user(old, 'backup', '--to', str(self.folder / 'backup')).strip()}")
        until("something to lose", lambda during=publisher.acknowledged: publisher.acknowledged > during + 10, 120)
        publisher.ending.set()
        publisher.join(30)
        self.assertFalse(publisher.is_alive(), "a publication gets no answer")
        count = publisher.acknowledged
        everything = list(range(count))
        until("everybody has everything", lambda: all(each["publications"] == everything for each in watchers.seen()))
        before = [each["subscribed"] for each in watchers.seen()]
        old.stop()

        new = self.stack("new")
        new.start_stores(START_SECONDS)
        print(f"      {self.as_backup_user(new, 'restore', '--from', str(self.folder / 'backup')).strip()}")
        new.start_ours(START_SECONDS)
        until("all are back", lambda: all(
            len(each["subscribed"]) > len(told) and each["state"] == "subscribed"
            for each, told in zip(watchers.seen(), before, strict=True)))
        for each, told_before in zip(watchers.seen(), before, strict=True):
            told = each["subscribed"][len(told_before)]  # the first after the restore
            self.assertEqual((told["wasRecovering"], told["recovered"]), (True, False), each["channel"])
            self.assertNotEqual(told["epoch"], told_before[-1]["epoch"])
        for channel in CHANNELS:
            kept = self.history(new, channel)
            self.assertEqual(kept, everything[: len(kept)], channel)
            self.assertGreaterEqual(len(kept), surely, channel)
            self.assertLess(len(kept), count, "nothing came after the backup: the case shows nothing")
            until("both are present", lambda: self.api(new, "presence_stats", channel=channel)["num_clients"] == 2)
            self.api(new, "publish", channel=channel, data="anew")
        until("what is new arrives", lambda: all(each["publications"] == [*everything, "anew"] for each in watchers.seen()))
        self.assertFalse(self.lets_in(new, BLOCKED), "a blocked user got in")
        self.assertTrue(self.lets_in(new, "alice"))
        print(f"      {count} publications a channel, {len(kept)} of them restored; {len(watchers.seen())} clients noticed")


if __name__ == "__main__":
    cases.CASE_SECONDS = 400
    cases.run(sys.modules[__name__])
