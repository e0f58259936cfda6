"""Redis nodes that die, freeze, move slots or are all away, while clients talk, subscribe and leave."""

import threading
import time

from frame import HIDDEN_SECONDS, Frame, operator
from redis import RedisError
from resumes import Resumes
from session_cases import CENSUS_SECONDS, GROUPS, case, described, emptied, expected, look, require, seconds, told, whole
from system import STAYS, Sampler

LEAVERS = 8
RESULTS_MOVED = 20  # slots with results of publications, besides all with presence
SERVED_AGAIN_SECONDS = 3.0  # what a subscribe or a look at presence may take longer than Redis is away


def freeze(node):
    node.frozen = True
    node.freeze()


def thaw(node):
    node.thaw()
    node.frozen = False


def under_fault(system, figures, wrong, hurt, heal, during, bound=True):
    """Everything that is measured while Redis is hurt for `during` seconds and healed again; some clients leave meanwhile.
    `bound`: Redis mends itself, so subscribes and presence may stall no longer than its slots are away."""
    system.clients.run("group", group="leavers", count=LEAVERS, homes=[STAYS], pinned=True)
    whole(system, ("crowd", "watch", "leavers"))
    leavers = {member["ids"][-1] for member in look(system, "leavers")}
    with Frame(system) as frame:
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
    frame.judge(figures, wrong, SERVED_AGAIN_SECONDS if bound else None)
    ghosts = frame.sampler.last_shown(leavers)
    late = f", {seconds(max(0.0, ghosts - served))} after Redis was whole" if ghosts else ""
    figures["shown after they left"] = f"{seconds(max(0.0, (ghosts or left) - left))}{late}"
    require(wrong, (ghosts or left) <= max(left, served) + 3, "who left is shown for longer than 3 s after Redis was whole")
    return frame


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


@case("all of Redis away for 60 s")
def redis_away(system, figures, wrong):
    def hurt():
        for node in system.redis.nodes:
            node.kill()

    def heal():
        said.append(system.well("redis"))
        system.redis.launch()
        system.redis.finish()

    said = []
    frame = under_fault(system, figures, wrong, hurt, heal, 60, bound=False)
    said.append(system.well("redis"))
    count = len(system.replicas)
    require(wrong, said == [[False] * count, [True] * count], f"stats said of Redis, while it was away and after it: {said}")
    require(wrong, frame.sampler.errors, "presence was answered while Redis was away")
    require(wrong, frame.detail["subscribeErrors"], "no subscribe was refused while Redis was away")


@case("Redis emptied under load")
def emptied_under_load(system, figures, wrong):
    under_fault(system, figures, wrong, lambda: emptied(system), lambda: None, 5)


@case("connections lost while Redis is away")
def lost_meanwhile(system, figures, wrong):
    resumes = Resumes(system, GROUPS)
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
    resumes.judge(figures, wrong)
    figures["observers were told"] = described(seen)
    figures["longest that an answer lacked somebody"] = seconds(hidden)
    require(wrong, kept == count, f"{count - kept} came back as somebody else")
    require(wrong, not seen, f"observers were told: {described(seen)}")
    require(wrong, hidden <= HIDDEN_SECONDS, f"somebody was missing for {hidden:.1f} s")
