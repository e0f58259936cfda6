"""What every fault is measured with: stalls of messages, of subscribes and of looks at presence, who is shown, and what becomes
of updates of sessions."""

import contextlib
import json
import os
import subprocess
import threading
import time

from redis import Connection, RedisError
from session_cases import GROUPS, STALL_SECONDS, described, expected, judge_delivery, require, seconds, stalls, told
from system import CHANNELS, ROOT, STAYS, Sampler

UPDATES = os.environ.get("PLENUM_UPDATES", str(ROOT / "target/debug/examples/updates"))
PROBES = 12  # loops that subscribe to a channel of their own, again and again
CALM_SECONDS = 8
HIDDEN_SECONDS = 2


class Gap(threading.Thread):
    """Asks living nodes all the time whether every slot has a primary that serves it; keeps the longest time without."""

    def __init__(self, nodes):
        super().__init__(daemon=True)
        self.nodes, self.ended, self.longest, self.last = nodes, threading.Event(), 0.0, time.monotonic()

    def run(self):
        while not self.ended.wait(0.05):
            if self.served():
                now = time.monotonic()
                self.longest, self.last = max(self.longest, now - self.last), now

    def served(self):
        return sum(self.serves(node) for node in self.nodes) >= 3

    @staticmethod
    def serves(node):
        if node.process.poll() is not None or node.frozen:
            return False
        # One that freezes now keeps its connection open and answers nothing.
        with contextlib.suppress(OSError, RedisError), Connection(node.port, *operator(node), seconds=0.5) as connection:
            return connection.ask("ROLE")[0] == "master" and "cluster_state:ok" in connection.ask("CLUSTER", "INFO")
        return False

    def finish(self):
        self.ended.set()
        self.join()
        return max(self.longest, time.monotonic() - self.last)


class Updates:
    """Sessions of the crate's store that a process of its own updates by compare-and-set: `PLENUM_UPDATES`, an example of the crate."""

    def __init__(self, redis):
        environment = dict(os.environ, REDIS_USER=redis.user, REDIS_PASSWORD=redis.password)
        self.process = subprocess.Popen(
            [UPDATES, *redis.servers], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )

    def rest(self):
        """From now on nobody uses the sessions; gives back when that is so."""
        self.process.stdin.write("rest\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def finish(self):
        output, _ = self.process.communicate("", timeout=90)
        if self.process.returncode != 0:
            raise RuntimeError(f"{UPDATES} ended with status {self.process.returncode}")
        return json.loads(output)

    def abandon(self):
        self.process.kill()
        self.process.wait()


def operator(node):
    return "operator", node.passwords["operator"]


class Frame:
    """Measures while its block runs, after eight seconds without a fault to compare with. `there`: who ought to be present all
    the time, of `groups`. Presence is asked of `replicas`, of the channels of the groups and of the probes."""

    def __init__(self, system, replicas=(STAYS,), groups=GROUPS):
        self.system, self.there = system, expected(system, groups)
        names = [*CHANNELS, *(f"room:probe-{number}" for number in range(PROBES))]
        self.members = {channel: self.there.get(channel, set()) for channel in names}
        self.sampler = Sampler(system, replicas, names)
        self.updates = None

    def __enter__(self):
        self.system.clients.run("probe", count=PROBES, namespace="room")
        try:
            stalls(self.system)
            time.sleep(CALM_SECONDS)
            self.calm, _ = stalls(self.system)
            for node in self.system.redis.nodes:
                node.frozen = False
            self.gap = Gap(self.system.redis.nodes)
            self.begin = time.time()
            self.updates = Updates(self.system.redis)
            self.sampler.__enter__()
            self.gap.start()
        except BaseException:
            if self.updates:
                self.updates.abandon()
            self.system.clients.run("probed")
            raise
        return self

    def __exit__(self, *_):
        self.sampler.__exit__()
        self.away = self.gap.finish()
        try:
            self.found, self.detail = stalls(self.system)
            self.sessions = self.updates.finish()
        except BaseException:
            self.updates.abandon()
            raise
        finally:
            self.system.clients.run("probed", wait=150)

    def judge(self, figures, wrong, after=None, unanswered=0.0, kinds=("join", "leave")):
        """`after`: seconds that a subscribe or a look at presence may take longer than slots of Redis are away; None: any.
        `unanswered`: seconds that publishers wait for a replica that does not answer. `kinds`: what nobody may be told."""
        hidden, asked = self.sampler.hidden(self.members), self.sampler.stall()
        ids = set().union(*self.there.values())
        seen = [each for each in told(self.system, self.begin, ids) if each["kind"] in kinds]
        judge_delivery(self.calm, self.found, self.detail, figures, wrong, unanswered)
        subscribe = self.found["subscribe"]
        figures["slots without a primary"] = seconds(self.away)
        figures["longest stall of subscribe"] = f"{seconds(subscribe)}, before {seconds(self.calm['subscribe'])}"
        figures["longest stall of presence"] = f"{seconds(asked)}, refused: {self.sampler.errors or 'none'}"
        figures["subscribes"] = f"{self.detail['subscribes']}, refused: {self.detail['subscribeErrors'] or 'none'}"
        figures["longest missing from presence"] = seconds(hidden)
        kept = self.sessions
        figures["updates of sessions"] = (
            f"{kept['acknowledged']} acknowledged, {kept['lost']} lost and told at {kept['told']} looks, {kept['silent']} lost silently; "
            f"longest stall {seconds(kept['stall'])}"
        )
        require(wrong, kept["silent"] == 0, f"{kept['silent']} updates of sessions were lost without a word")
        require(wrong, hidden <= HIDDEN_SECONDS, f"somebody was missing for {hidden:.1f} s")
        require(wrong, not seen, f"observers were told: {described(seen)}")
        for what, stall in (("subscribe", subscribe), ("presence", asked)):
            enough = after is None or stall <= self.away + max(after, STALL_SECONDS)
            require(wrong, enough, f"{what} stalled for {stall:.1f} s, Redis for {self.away:.1f} s")
