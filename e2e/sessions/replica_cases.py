"""Replicas that are paused, or killed again and again under many clients."""

import threading
import time

from session_cases import GHOST_SECONDS, GROUPS, case, described, look, require, seconds, told, whole
from system import STAYS, Sampler


@case("replica paused for 10 s announces itself again")
def paused(system, figures, wrong):
    paused_for(system, figures, wrong, 10)


@case("replica paused for 30 s, its entries are removed meanwhile: it announces itself again")
def paused_long(system, figures, wrong):
    paused_for(system, figures, wrong, 30)


def paused_for(system, figures, wrong, length):
    # These wait for their replica; the others there have noticed after four seconds, and resume elsewhere.
    system.clients.run("group", group="held", count=8, homes=[1], pinned=True, patience=90_000)
    groups = (*GROUPS, "held")
    whole(system, groups)
    held = {member["ids"][-1] for member in look(system, "held")}
    before = {member["user"]: member["ids"] for member in look(system, "crowd")}
    with Sampler(system, [0, STAYS]) as sampler:
        system.replicas[1].freeze()
        frozen = time.time()
        try:
            time.sleep(length)
        finally:
            system.replicas[1].thaw()
        thawed = time.time()
        last = max((at for at, _, _, shown in sampler.samples if shown and shown & held and at < thawed), default=frozen)
        right = whole(system, groups, seconds=30)
    after = look(system, "crowd")
    changed = [member["user"] for member in after if member["ids"] != before[member["user"]]]
    now = {member["ids"][-1] for member in look(system, "held")}
    seen = told(system, frozen)
    figures["its clients were shown"] = f"{seconds(last - frozen)} after it was paused"
    figures["presence right again"] = f"{seconds(right)} after it went on"
    figures["clients that waited for it"] = f"{len(held & now)} of {len(held)} have their client id"
    figures["clients that noticed"] = f"{len(changed)} of {len(after)} are somebody else"
    figures["observers were told"] = described(seen)
    require(wrong, last - frozen <= GHOST_SECONDS, f"shown for {last - frozen:.1f} s")
    require(wrong, not changed, f"came back as somebody else: {changed[:3]}")
    require(wrong, held == now, f"{len(held - now)} that waited are somebody else")
    there = now | {member["ids"][-1] for member in after}
    gone = [each for each in seen if each["kind"] == "leave" and each["client"] in there]
    require(wrong, not gone, f"observers were told that somebody left who is there: {described(gone)}")
    system.clients.run("dismiss", group="held")
    whole(system)


@case("a replica killed every 20 s for 3 minutes, 500 clients")
def rolling(system, figures, wrong):
    system.clients.run("pace", pauseMs=400)
    system.clients.run("group", group="many", count=500, wait=120, seconds=100)
    groups = (*GROUPS, "many")
    whole(system, groups, seconds=30)
    asked = sum(member["asked"] for member in look(system, "many"))
    before = {member["user"]: member["ids"] for member in look(system, "many")}
    begin, longest, rounds = time.monotonic(), 0.0, 0
    while time.monotonic() - begin < 180:
        number, start = rounds % 2, time.monotonic()
        system.replicas[number].kill()
        restarted = threading.Timer(5, system.replicas[number].launch)
        restarted.start()
        longest = max(longest, whole(system, groups, (STAYS,), seconds=30))
        restarted.join()
        system.ready()
        rounds += 1
        time.sleep(max(0.0, 20 - (time.monotonic() - start)))
    members = look(system, "many")
    changed = [member["user"] for member in members if member["ids"] != before[member["user"]]]
    asked = sum(member["asked"] for member in members) - asked
    figures["kills"] = rounds
    figures["longest until presence was right"] = seconds(longest)
    figures["clients that are somebody else"] = f"{len(changed)} of {len(members)}"
    figures["connection tokens asked for"] = asked
    require(wrong, longest <= 2 * GHOST_SECONDS, f"presence was wrong for {longest:.1f} s")
    require(wrong, not changed, f"came back as somebody else: {changed[:3]}")
    require(wrong, not asked, f"getToken was called {asked} times")
    whole(system, groups, seconds=30)
