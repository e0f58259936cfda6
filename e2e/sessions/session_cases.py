"""The cases: each fills in its figures and what was wrong, and leaves the system whole."""

import time

from failure import Failure
from resumes import Resumes
from stack import until
from system import CHANNELS, STAYS, Refused, Sampler

GHOST_SECONDS = 5.0  # how long somebody may be shown whose replica was killed
CENSUS_SECONDS = 6  # after that long replicas have judged one that is silent, and every held back leave was told
IN_FORCE_SECONDS = 1.0  # until a block, or its end, is in force on every replica
REBUILT_SECONDS = 2  # a look at Redis each second, and the time to write
UNBROKEN_SECONDS = 1.4  # a reader that did not hear itself for 2 s, or heard itself 1.5 s late, counts the silence of others anew
ANEW_SECONDS = 2.4  # a replica that did not hear itself for 3 s announces its clients anew; it speaks each 0.5 s
# What a busy machine may add to a stall; Redis is away for longer in each case.
STALL_SECONDS = 2
# The same for the median of the publishers, beside what the process of the clients was late: less than one deadline of Redis calls.
TYPICAL_SECONDS = 0.7
NO_PONG = 3012
AWAY_SECONDS = 2.5  # a replica is paused for that long: five looks at the ledger, none of its clients gives it up
GROUPS = ("crowd", "watch")

CASES = []


def case(name, short=False):
    def register(body):
        CASES.append((name, body, short))
        return body

    return register


# What the cases share


def populate(system):
    """36 clients on all replicas, and one observer of each channel on the replica that stays."""
    system.clients.run("group", group="watch", count=len(CHANNELS), homes=[STAYS], pinned=True, watch=True)
    system.clients.run("group", group="crowd", count=36)
    system.clients.run("publish")
    whole(system)


def look(system, group):
    return system.clients.run("look", group=group)["members"]


def expected(system, groups=GROUPS):
    """Client ids that ought to be present, by channel."""
    there = {channel: set() for channel in CHANNELS}
    for group in groups:
        for number, member in enumerate(look(system, group)):
            there[CHANNELS[number % len(CHANNELS)]].add(member["ids"][-1])
    return there


def differences(system, groups=GROUPS, replicas=(0, 1, 2)):
    """What replicas show that is not so, in words; empty when all is right."""
    wanted, found = expected(system, groups), []
    for number in replicas:
        for channel in CHANNELS:
            try:
                shown = system.present(channel, number)
            except (Refused, OSError) as error:
                found.append(f"replica {number}, {channel}: {error}")
                continue
            if shown != wanted[channel]:
                more, less = sorted(shown - wanted[channel]), sorted(wanted[channel] - shown)
                found.append(f"replica {number}, {channel}: {len(more)} too many {more[:2]}, {len(less)} missing {less[:2]}")
    return found


def whole(system, groups=GROUPS, replicas=(0, 1, 2), seconds=15):
    """Waits until presence is right everywhere; how long that took."""
    begin = time.monotonic()
    until(lambda: f"presence is right: {differences(system, groups, replicas)[:4]}",
          lambda: not differences(system, groups, replicas), seconds)
    return time.monotonic() - begin


def told(system, since, ids=None):
    """Joins and leaves that observers saw since then, of these clients or of all."""
    return [
        each for member in look(system, "watch") for each in member["seen"]
        if each["at"] / 1000 >= since and (ids is None or each["client"] in ids)
    ]


def require(wrong, condition, text):
    if not condition:
        wrong.append(text)


def seconds(value):
    return f"{value:.1f} s"


def stalls(system):
    """What stalled longest since the last call, in seconds, and what more is known of it."""
    answer = system.clients.run("stalls", groups=GROUPS)
    return {what: answer[what] / 1000 for what in ("delivery", "publishing", "typical", "late", "subscribe")}, answer


def judge_delivery(calm, hurt, detail, figures, wrong, unanswered=0.0):
    """Messages must not wait for Redis: one that did would wait for as long as Redis is away. `unanswered`: seconds that
    publishers themselves wait before they turn to another replica."""
    for what in ("delivery", "publishing"):
        figures[f"longest stall of {what}"] = f"{seconds(hurt[what])}, before {seconds(calm[what])}"
        enough = hurt[what] <= calm[what] + STALL_SECONDS + unanswered
        require(wrong, enough, f"{what} stalled: {detail['worst']}, {detail['publishErrors']}")
    figures["longest stall of the median publisher"] = f"{seconds(hurt['typical'])}, before {seconds(calm['typical'])}"
    enough = hurt["typical"] <= calm["typical"] + TYPICAL_SECONDS + hurt["late"] + unanswered
    require(wrong, enough, f"most publishers stalled for {hurt['typical']:.1f} s, their process was late by {hurt['late']:.1f} s")
    if hurt["publishing"] > calm["publishing"]:
        figures["slowest publications"] = ", ".join(
            f"{each['took'] / 1000:.1f} s at {time.strftime('%H:%M:%S', time.localtime(each['at'] / 1000))} on replica "
            f"{each['replica']}, {each['channel']}" for each in detail["slow"]) or "none"
    figures["connections lost meanwhile"] = detail["returned"] or "none"
    figures["publications repeated after"] = detail["publishErrors"] or "none"


def emptied(system):
    for node in system.primaries():
        node.ask("FLUSHALL")


def described(events):
    """How many joins and leaves, and whose."""
    kinds = [each["kind"] for each in events]
    return f"{kinds.count('join')} joins, {kinds.count('leave')} leaves {sorted({each['user'] for each in events})[:6]}"


def killed_and_resumed(system, number, group, figures, wrong):
    """Kills a replica; its clients in the group must come back elsewhere as who they were."""
    resumes = Resumes(system, GROUPS)
    before = look(system, group)
    lost = [i for i, member in enumerate(before) if member["replica"] == number]
    require(wrong, lost, f"no client was on replica {number}")
    there = expected(system)
    connects = [member["connects"] - (i not in lost) for i, member in enumerate(before)]
    others = [each for each in range(3) if each != number]
    with Sampler(system, others) as sampler:
        resumes.kill(number)
        killed = time.time()
        after = system.clients.run("back", group=group, connects=connects, seconds=20)["members"]
        took = max((after[i]["connectedAt"] / 1000 - killed for i in lost), default=0)
        time.sleep(CENSUS_SECONDS)
    after = look(system, group)
    kept = [i for i in lost if after[i]["ids"] == before[i]["ids"]]
    seen = told(system, killed)
    hidden = sampler.hidden(there) if len(kept) == len(lost) else None
    figures["clients of the killed replica"] = (
        f"{len(lost)}, {len(kept)} came back with their client id, the last after {seconds(took)}")
    figures["joins and leaves seen"] = len(seen)
    resumes.judge(figures, wrong)
    figures["longest missing from presence"] = "unknown" if hidden is None else seconds(hidden)
    others = [after[i] for i in lost if i not in kept]
    require(wrong, not others, f"{len(others)} came back as somebody else: {others[:2]}")
    require(wrong, not seen, f"observers were told: {described(seen)}")
    stood = system.stalls.longest(killed)
    enough = REBUILT_SECONDS if stood > ANEW_SECONDS else 0
    require(wrong, (hidden or 0) <= enough, f"presence lacked somebody for {hidden} s; this process stood still for {stood:.1f} s")


@case("replica killed: its clients come back as who they were", short=True)
def resume(system, figures, wrong):
    killed_and_resumed(system, 0, "crowd", figures, wrong)
    system.restart(0)
    figures["presence right on all replicas"] = f"after {seconds(whole(system))} more"


@case("replica killed with clients that do not come back: nobody is shown for long", short=True)
def ghosts(system, figures, wrong):
    made = system.clients.run("group", group="gone", count=12, homes=[1], pinned=True)["members"]
    ids = {member["ids"][-1] for member in made}
    whole(system, (*GROUPS, "gone"))
    with Sampler(system, [0, STAYS]) as sampler:
        system.replicas[1].kill()
        killed = time.time()
        system.clients.run("dismiss", group="gone")
        time.sleep(GHOST_SECONDS + 3)
    last = sampler.last_shown(ids)
    age = (last or killed) - killed
    figures["shown after the kill"] = seconds(age)
    figures["samples"] = f"{len(sampler.samples)}, refused: {sampler.errors or 'none'}"
    judge_ghosts(system, wrong, killed, last or killed)
    require(wrong, last, "they were never shown")
    crowd = {each for there in expected(system).values() for each in there}
    left = [each for each in told(system, killed, crowd) if each["kind"] == "leave"]
    require(wrong, not left, f"observers were told that somebody left who is there: {left[:3]}")
    system.restart(1)
    figures["presence right on all replicas"] = f"after {seconds(whole(system))} more"


def judge_ghosts(system, wrong, gone, last):
    """Whether clients that were gone then were shown last soon enough, beside what the machine stood still."""
    begin = system.stalls.went_on(gone, last, UNBROKEN_SECONDS)
    late = system.stalls.between(begin, last)
    text = f"somebody was shown for {last - gone:.1f} s, {last - begin:.1f} s without a long stall, {late:.1f} s of short ones"
    require(wrong, last - begin <= GHOST_SECONDS + late, text)


@case("Redis emptied: presence is rebuilt", short=True)
def flushed(system, figures, wrong):
    there = expected(system)
    stalls(system)
    with Sampler(system, [0, 1, 2]) as sampler:
        time.sleep(1)
        begin = time.time()
        emptied(system)
        time.sleep(0.5)
        took = 0.5 + whole(system)
        time.sleep(2)
    hidden, seen = sampler.hidden(there), told(system, begin)
    figures["presence right again"] = f"after {seconds(took)}; longest that somebody was missing: {seconds(hidden)}"
    figures["longest stall of delivery"] = seconds(stalls(system)[0]["delivery"])
    require(wrong, hidden <= REBUILT_SECONDS, f"somebody was missing for {hidden:.1f} s")
    require(wrong, not seen, f"observers were told: {described(seen)}")


@case("two tabs are two sessions, a copied token is refused", short=True)
def tabs(system, figures, wrong):
    # Who uses the token of a living connection takes it over, so both are used after their successor was confirmed.
    settings = {"count": 1, "channel": "room:tabs", "user": "one-user", "pinned": True, "patience": 60_000}
    first = system.clients.run("group", group="tab-1", homes=[0], **settings)["members"][0]
    second = system.clients.run("group", group="tab-2", homes=[1], **settings)["members"][0]
    require(wrong, first["ids"] != second["ids"], "two tabs have one client id")
    copied = system.clients.run("data", group="tab-1")["data"]
    system.clients.run("cut", group="tab-1")
    back = system.clients.run("back", group="tab-1", connects=[1])["members"][0]
    require(wrong, back["ids"] == first["ids"], f"the cut tab came back as somebody else: {back}")
    # The answer to the ping that follows a resume confirms the successor. With the third, the answer to the second has been there.
    until("three pings after the resume", lambda: look(system, "tab-1")[0]["pings"] >= 3, 30)
    # The fence is in the ledger: nothing that a Redis failover could forget is needed to refuse the copy.
    emptied(system)
    thief = system.clients.run("group", group="thief", homes=[2], data=copied, **settings)["members"][0]
    require(wrong, thief["ids"] != first["ids"], "a copied, outdated token was accepted")
    text = copied["plenum"]["resume"]
    altered = {"plenum": {"resume": text[:-8] + ("A" * 8 if text[-8:] != "A" * 8 else "B" * 8)}}
    forger = system.clients.run("group", group="forger", homes=[0], data=altered, **settings)["members"][0]
    require(wrong, forger["ids"] != first["ids"], "an altered token was accepted")
    owner = look(system, "tab-1")[0]
    # A pong that was late on a machine that stood still is nobody's disturbance.
    disturbed = set(owner["codes"][len(back["codes"]):]) - {NO_PONG}
    require(wrong, not disturbed and owner["ids"] == first["ids"], f"the owner was disturbed: {owner}")
    # A page that was loaded again: no connection token at all, only what it kept.
    kept = system.clients.run("data", group="tab-2")["data"]
    system.clients.run("dismiss", group="tab-2")
    reloaded = system.clients.run("group", group="reloaded", homes=[2], data=kept, bare=True, **settings)["members"][0]
    figures["a reloaded page without connection token"] = (
        "has its client id" if reloaded["ids"] == second["ids"] else f"is somebody else: {reloaded['ids']}")
    require(wrong, reloaded["ids"] == second["ids"], f"a reloaded page is somebody else: {reloaded}")
    for group in ("tab-1", "thief", "forger", "reloaded"):
        system.clients.run("dismiss", group=group)


@case("a blocked user is out on every replica within a second", short=True)
def blocked(system, figures, wrong):
    system.clients.run("group", group="blocked", count=6, user="blocked-user", channel="room:blocked")
    stalls(system)
    begin = time.time()
    system.api("block_user", 0, seconds=10, user="blocked-user")
    answered = time.time()
    members = system.clients.run("ended", group="blocked", seconds=15)["members"]
    ages = [member["endedAt"] / 1000 - begin for member in members]
    codes = sorted({member["codes"][-1] for member in members})
    figures["api answered"] = f"after {answered - begin:.2f} s"
    figures["the last of 6 connections was closed"] = f"{max(ages):.2f} s after the call, codes {codes}"
    in_force(system, wrong, max(ages), begin, "closed only")
    require(wrong, codes == [3507], f"codes {codes}")
    system.clients.run("dismiss", group="blocked")
    refused_everywhere(system, wrong, "blocked-user")
    stalls(system)
    begin = time.time()
    system.api("unblock_user", 1, seconds=10, user="blocked-user")
    until("every replica lets the user in again",
          lambda: system.clients.run("answers", user="blocked-user")["answers"] == ["connected"] * 3, 15)
    took = time.time() - begin
    figures["every replica let the user in again"] = f"{took:.2f} s after the call"
    in_force(system, wrong, took, begin, "let in again only")
    system.clients.run("group", group="free", count=3, user="blocked-user", channel="")
    system.clients.run("dismiss", group="free")
    blocked_while_away(system, figures, wrong)
    whole(system)


def in_force(system, wrong, took, begin, what):
    """Whether it was soon enough since `begin`, beside what this process or that of the clients stood still since then."""
    late = max(stalls(system)[0]["late"], system.stalls.between(begin, time.time()))
    require(wrong, took <= IN_FORCE_SECONDS + late, f"{what} after {took:.2f} s; the machine stood still for {late:.2f} s")


def refused_everywhere(system, wrong, user):
    """A connect of a blocked user is refused with 3507 on each of the three replicas."""
    before = len(wrong)
    try:
        system.clients.run("group", group="again", count=3, user=user, channel="", pinned=True, seconds=0)
    except Failure:
        pass  # nobody is connected at once
    try:
        again = system.clients.run("ended", group="again", seconds=30)["members"]
    except Failure:
        again = look(system, "again")
    require(wrong, all(each["client"] == "disconnected" and each["codes"][-1] == 3507 and not each["connects"] for each in again),
            f"not refused with 3507: {again}")
    require(wrong, len(wrong) > before or {each["replica"] for each in again} == {0, 1, 2}, "not all replicas were asked")
    system.clients.run("dismiss", group="again")


def blocked_while_away(system, figures, wrong):
    """One replica hears nothing of the block, and Redis is emptied before it goes on."""
    user = "user-blocked-meanwhile"
    system.clients.run("group", group="away", count=6, user=user, channel="", pinned=True, patience=60_000)
    system.replicas[1].freeze()
    try:
        system.api("block_user", 0, seconds=10, user=user)
        emptied(system)
        time.sleep(AWAY_SECONDS)
    finally:
        stalls(system)
        thawed = time.time()
        system.replicas[1].thaw()
    members = system.clients.run("ended", group="away", seconds=30)["members"]
    late = max(member["endedAt"] / 1000 - thawed for member in members if member["replica"] == 1)
    codes = sorted({member["codes"][-1] for member in members})
    figures["closed by a replica that was paused, Redis emptied"] = f"{late:.2f} s after it went on, codes {codes}"
    in_force(system, wrong, late, thawed, "the replica that was paused closed only")
    require(wrong, codes == [3507], f"codes {codes}")
    system.clients.run("dismiss", group="away")
    refused_everywhere(system, wrong, user)
    system.api("unblock_user", 1, seconds=10, user=user)


def sequences(system, figures, wrong):
    result = system.clients.run("quiet", wait=120)
    figures["publications"] = f"{result['acknowledged']} acknowledged, {result['delivered']} delivered to {result['subscribers']}"
    figures["lost, doubled, reordered, told"] = ", ".join(str(result[k]) for k in ("lost", "doubled", "reordered", "told"))
    figures["publications repeated after"] = result["errors"] or "none"
    wrong += result["faults"]
    require(wrong, not result["misplaced"], f"{result['misplaced']} misplaced")
    require(wrong, not result["told"], f"clients were told of a loss {result['told']} times")
    require(wrong, not result["behind"], f"{len(result['behind'])} never got the last: {result['behind'][:2]}")
    require(wrong, not result["unknown"], f"{result['unknown']} publications got no acknowledgement")
