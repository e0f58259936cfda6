"""Redis nodes that die, freeze, move slots or are all away, while clients talk, subscribe and leave."""

import contextlib
import threading
import time

from redis import Connection, RedisError
from session_cases import CENSUS_SECONDS, STALL_SECONDS, case, described, expected, judge_delivery, look, require, seconds
from session_cases import stalls, told, whole
from system import CHANNELS, STAYS, Sampler

PROBES = 12  # loops that subscribe to a channel of their own, again and again
LEAVERS = 8
RESULTS_MOVED = 20  # slots with results of publications, besides all with presence
SERVED_AGAIN_SECONDS = 3.0  # what a subscribe or a look at presence may take longer than Redis is away


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


def freeze(node):
    node.frozen = True
    node.freeze()


def thaw(node):
    node.thaw()
    node.frozen = False


def under_fault(system, figures, wrong, hurt, heal, during, bound=True):
    """Everything that is measured while Redis is hurt for `during` seconds and healed again. `bound`: Redis mends itself, so
    subscribes and presence may stall no longer than its slots are away."""
    for node in system.redis.nodes:
        node.frozen = False
    system.clients.run("group", group="leavers", count=LEAVERS, homes=[STAYS], pinned=True)
    groups = ("crowd", "watch", "leavers")
    whole(system, groups)
    there = expected(system)
    leavers = {member["ids"][-1] for member in look(system, "leavers")}
    names = [*CHANNELS, *(f"room:probe-{number}" for number in range(PROBES))]
    system.clients.run("probe", count=PROBES, namespace="room")
    try:
        stalls(system)
        time.sleep(8)
        calm, _ = stalls(system)
        gap = Gap(system.redis.nodes)
        begin = time.time()
        with Sampler(system, [STAYS], names) as sampler:
            gap.start()
            time.sleep(1)
            hurt()
            time.sleep(1)
            system.clients.run("dismiss", group="leavers")
            left = time.time()
            time.sleep(during - 1)
            heal()
            system.redis.wait()
            served = time.time()
            figures["presence right on all replicas"] = f"{seconds(whole(system, seconds=30))} after Redis was whole"
            time.sleep(3)
        ghosts = sampler.last_shown(leavers)
        away = gap.finish()
        found, detail = stalls(system)
    finally:
        system.clients.run("probed")
    members = {channel: there.get(channel, set()) for channel in names}
    hidden, asked = sampler.hidden(members), sampler.stall()
    mine = [each for each in told(system, begin) if each["client"] in set().union(*there.values())]
    judge_delivery(calm, found, detail, figures, wrong)
    figures["slots without a primary"] = seconds(away)
    figures["longest stall of subscribe"] = f"{seconds(found['subscribe'])}, before {seconds(calm['subscribe'])}"
    figures["longest stall of presence"] = f"{seconds(asked)}, refused: {sampler.errors or 'none'}"
    figures["subscribes"] = f"{detail['subscribes']}, refused: {detail['subscribeErrors'] or 'none'}"
    figures["longest missing from presence"] = seconds(hidden)
    late = f", {seconds(max(0.0, ghosts - served))} after Redis was whole" if ghosts else ""
    figures["shown after they left"] = f"{seconds(max(0.0, (ghosts or left) - left))}{late}"
    require(wrong, hidden <= 2, f"somebody was missing for {hidden:.1f} s")
    require(wrong, not mine, f"observers were told: {described(mine)}")
    require(wrong, (ghosts or left) <= max(left, served) + 3, "who left is shown for longer than 3 s after Redis was whole")
    for what, stall in (("subscribe", found["subscribe"]), ("presence", asked)):
        limit = away + max(SERVED_AGAIN_SECONDS, STALL_SECONDS)
        require(wrong, not bound or stall <= limit, f"{what} stalled for {stall:.1f} s, Redis for {away:.1f} s")


@case("Redis primary killed")
def primary_killed(system, figures, wrong):
    victim = system.primaries()[0]
    under_fault(system, figures, wrong, victim.kill, victim.start, 15)


@case("Redis primary frozen for 20 s")
def primary_frozen(system, figures, wrong):
    victim = system.primaries()[0]
    under_fault(system, figures, wrong, lambda: freeze(victim), lambda: thaw(victim), 20)


@case("two Redis primaries killed: nobody is left to choose others")
def two_killed(system, figures, wrong):
    victims = system.primaries()[:2]

    def each(act):
        return lambda: [act(node) for node in victims]

    under_fault(system, figures, wrong, each(lambda node: node.kill()), each(lambda node: node.start()), 15, bound=False)


class Mover(threading.Thread):
    """Moves slots of presence and results from one primary to another and back, key by key, until it is told to end."""

    def __init__(self, system):
        super().__init__(daemon=True)
        self.system, self.ended, self.moved, self.problem = system, threading.Event(), 0, None

    def run(self):
        try:
            one, other, *rest = self.system.primaries()
            while not self.ended.is_set():
                self.move(one, other, rest)
                one, other = other, one
        except (OSError, RedisError) as error:
            self.problem = f"slots could not be moved: {error}"

    def move(self, source, target, rest):
        names = {node: node.ask("CLUSTER", "MYID") for node in (source, target)}
        with source.connect() as connection:
            keys = [*connection.ask("KEYS", "plenum:p:*"), *connection.ask("KEYS", "plenum:r:*")[:RESULTS_MOVED]]
            slots = {connection.ask("CLUSTER", "KEYSLOT", key) for key in keys}
        for slot in sorted(slots):
            if self.ended.is_set():
                return
            target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
            while found := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
                login = ("AUTH2", *operator(target))
                source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 2000, "REPLACE", *login, "KEYS", *found)
            for node in (target, source, *rest):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", names[target])
            self.moved += 1

    def finish(self):
        self.ended.set()
        self.join()


@case("slots of Redis moved under load")
def slots_moved(system, figures, wrong):
    mover = Mover(system)
    under_fault(system, figures, wrong, mover.start, mover.finish, 15)
    figures["slots moved"] = mover.moved
    require(wrong, not mover.problem, mover.problem)
    require(wrong, mover.moved, "no slot was moved")


@case("all of Redis away for 20 s")
def redis_away(system, figures, wrong):
    there = expected(system)
    stalls(system)
    time.sleep(5)
    calm, _ = stalls(system)
    begin = time.time()
    with Sampler(system, [0, 1, 2]) as sampler:
        for node in system.redis.nodes:
            node.kill()
        gone = time.time()
        time.sleep(20)
        during, detail = stalls(system)
        system.redis.launch()
        system.redis.finish()
        here = time.time()
        back = whole(system, seconds=30)
        time.sleep(CENSUS_SECONDS)
    hidden, seen = sampler.hidden(there), told(system, begin)
    judge_delivery(calm, during, detail, figures, wrong)
    figures["presence while it was away"] = f"refused: {sampler.errors or 'never'}"
    figures["presence right again"] = f"{seconds(back)} after the nodes served all slots ({seconds(here - gone)} after they went)"
    figures["longest that an answer lacked somebody"] = seconds(hidden)
    require(wrong, sampler.errors, "presence was answered while Redis was away")
    require(wrong, not seen, f"observers were told: {described(seen)}")
    require(wrong, hidden <= 2, f"somebody was missing for {hidden:.1f} s")


@case("connections lost while Redis is away")
def lost_meanwhile(system, figures, wrong):
    there, count, before = expected(system), 12, look(system, "crowd")
    begin = time.time()
    with Sampler(system, [STAYS]) as sampler:
        for node in system.redis.nodes:
            node.kill()
        time.sleep(2)
        system.clients.run("cut", group="crowd", count=count)
        time.sleep(8)  # longer than client.presence_grace
        system.redis.launch()
        system.redis.finish()
        figures["presence right again"] = f"{seconds(whole(system, seconds=30))} after the nodes served all slots"
        time.sleep(CENSUS_SECONDS)
    after, hidden, seen = look(system, "crowd"), sampler.hidden(there), told(system, begin)
    kept = sum(after[i]["ids"] == before[i]["ids"] for i in range(count))
    figures["connections lost"] = f"{count}, {kept} have their client id"
    figures["observers were told"] = described(seen)
    figures["longest that an answer lacked somebody"] = seconds(hidden)
    require(wrong, kept == count, f"{count - kept} came back as somebody else")
    require(wrong, not seen, f"observers were told: {described(seen)}")
    require(wrong, hidden <= 2, f"somebody was missing for {hidden:.1f} s")
