"""A connection whose client id is taken over while its replica is paused: for how long its old socket still writes."""

import contextlib
import statistics
import time

from failure import Failure
from proxy import Proxies
from session_cases import case, require, whole
from system import STAYS

HOME, HEIR = 1, 0  # the replica of the old socket, and the one that takes its client id over
ROUNDS = 12
SHORT_SECONDS = 1.0
LONG_SECONDS = 5.0  # the others do not count the replica any more, and it knows that it stood still
ENDS_SECONDS = 30  # whatever a busy machine adds: that it ends at all
SUPERSEDED, NO_PONG = 3503, 3012  # a replica that cannot ask the ledger yet may miss a pong of before its pause first


@case("an old socket whose replica was paused for 1 s is closed")
def paused_shortly(system, figures, wrong):
    taken_over(system, figures, wrong, lambda number: one(system, wrong, number, SHORT_SECONDS))
    whole(system, seconds=30)


@case("an old socket whose replica was paused for 5 s is closed")
def paused_for_long(system, figures, wrong):
    taken_over(system, figures, wrong, lambda number: one(system, wrong, number, LONG_SECONDS))
    whole(system, seconds=30)


@case("an old socket whose replica was paused and lost the order to close it is closed by the ledger")
def order_lost(system, figures, wrong):
    with behind_proxies(system) as (proxies, links):
        def lose():
            proxies.cut(links)
            return lambda: proxies.restore(links)

        taken_over(system, figures, wrong, lambda number: one(system, wrong, number, SHORT_SECONDS, lose))
    whole(system, seconds=30)


def one(system, wrong, number, length, lose=lambda: lambda: None):
    """One takeover while the replica is paused; `lose` breaks what it hears the others by, and gives what mends that again.
    Answers seconds after it went on: the last publication that came on the old socket, the last that was accepted from it,
    its close; the seconds between the first and the last that was accepted; and how many were accepted, and sent."""
    where = {"channel": f"deep:takeover-{number}", "user": f"taken-over-{number}"}
    held = system.clients.run("hold", home=HOME, other=STAYS, **where)
    replica = system.replicas[HOME]
    replica.freeze()
    try:
        mend = lose()
        try:
            taken = system.clients.run("take", home=HEIR)
            time.sleep(length)
        finally:
            mend()
    finally:
        thawed = time.time()
        replica.thaw()
    last = system.clients.run("lasted", seconds=ENDS_SECONDS, wait=ENDS_SECONDS + 100)
    require(wrong, taken["client"] == held["client"], f"round {number}: not resumed")
    require(wrong, last["code"] in (SUPERSEDED, NO_PONG), f"round {number}: the old socket was closed with {last['code']}")
    require(wrong, last["heir"] == "open", f"round {number}: the new connection was {last['heir']}")
    # What came before the replica went on came while it was not paused yet.
    after = [max(0.0, last[what] / 1000 - thawed) for what in ("frameAt", "acceptedAt", "closedAt")]
    return *after, (last["acceptedAt"] - last["firstAt"]) / 1000, last["accepted"], last["sent"]


def taken_over(system, figures, wrong, turn):
    rounds = [turn(number) for number in range(ROUNDS)]
    frames, accepted, closed, between, counts, sent = zip(*rounds)
    figures["takeovers"] = ROUNDS
    figures["publications came on the old socket until"] = f"{spread(frames)} after its replica went on (least, median, most)"
    figures["publications of the old socket were accepted until"] = f"{spread(accepted)}, from the first to the last {spread(between)}"
    figures["the old socket was closed"] = f"{spread(closed)} after its replica went on"
    figures["publications accepted of those sent on it after the takeover"] = (
        f"{min(counts)}, {statistics.median(counts):.0f}, {max(counts)} of {min(sent)} to {max(sent)}")


def spread(values):
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{low * 1000:.0f} ms, {middle * 1000:.0f} ms, {high * 1000:.0f} ms"


@contextlib.contextmanager
def behind_proxies(system):
    """The replica reaches NATS through proxies, which can lose what is under way."""
    replica, proxies = system.replicas[HOME], Proxies()
    try:
        links = [proxies.open(server.port) for server in system.cluster.servers]
        urls = [f"nats://127.0.0.1:{link.port}" for link in links]
        restarted(system, replica, lambda settings: settings["nats"].update(servers=urls, pool={"discover_servers": False}))
        yield proxies, links
    finally:
        def back(settings):
            settings["nats"]["servers"] = system.cluster.urls
            del settings["nats"]["pool"]

        restarted(system, replica, back)
        proxies.stop()


def restarted(system, replica, change):
    if problem := replica.stop():
        raise Failure(problem)
    system.configure(replica, change)
    system.restart(HOME)
