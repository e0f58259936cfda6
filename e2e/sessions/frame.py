"""What every fault is measured with: stalls of messages, of subscribes and of looks at presence, and who is shown."""

import contextlib
import threading
import time

from redis import Connection, RedisError
from session_cases import GROUPS, STALL_SECONDS, described, expected, judge_delivery, require, seconds, stalls, told
from system import CHANNELS, STAYS, Sampler

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
            self.sampler.__enter__()
            self.gap.start()
        except BaseException:
            self.system.clients.run("probed")
            raise
        return self

    def __exit__(self, *_):
        self.sampler.__exit__()
        self.away = self.gap.finish()
        try:
            self.found, self.detail = stalls(self.system)
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
        require(wrong, hidden <= HIDDEN_SECONDS, f"somebody was missing for {hidden:.1f} s")
        require(wrong, not seen, f"observers were told: {described(seen)}")
        for what, stall in (("subscribe", subscribe), ("presence", asked)):
            enough = after is None or stall <= self.away + max(after, STALL_SECONDS)
            require(wrong, enough, f"{what} stalled for {stall:.1f} s, Redis for {self.away:.1f} s")
