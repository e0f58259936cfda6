"""Replicas that are paused, or killed again and again under many clients."""

import threading
import time

from failure import Failure
from frame import HIDDEN_SECONDS, Frame
from resumes import Resumes
from session_cases import GHOST_SECONDS, GROUPS, case, described, expected, judge_ghosts, look, require, seconds, told, whole
from system import STAYS, Sampler

NOTICED_SECONDS = 6.0  # a client gives up a silent replica after 4 s, and needs a while to be somewhere else
ATTEMPT_SECONDS = 5.0  # so long a publisher waits for a replica (clients.mjs)
SPREAD = 160  # clients of 500 that are brought back to a replica that is to be killed
DISMISSED = 8  # clients of each killed replica that do not come back
# All clients are one process. When that is late by more, pings that wait in its sockets make it give up connections, and replicas
# miss its pongs.
LATE_SECONDS = 1.5


@case("replica killed under load")
def killed_under_load(system, figures, wrong):
    # The others may have left this replica in an earlier case.
    system.clients.run("group", group="here", count=12, homes=[1])
    groups = (*GROUPS, "here")
    whole(system, groups)
    resumes = Resumes(system, groups)
    before = {member["user"]: member["ids"] for member in look(system, "here")}
    with Frame(system, [0, STAYS], groups) as frame:
        time.sleep(1)
        resumes.kill(1)
        time.sleep(10)
        system.restart(1)
        figures["presence right on all replicas"] = f"{seconds(whole(system, groups, seconds=30))} after it was started again"
        time.sleep(3)
    frame.judge(figures, wrong, HIDDEN_SECONDS)
    resumes.judge(figures, wrong)
    changed = [member["user"] for member in look(system, "here") if member["ids"] != before[member["user"]]]
    figures["its clients"] = f"{len(before)}, {len(changed)} are somebody else"
    require(wrong, not changed, f"came back as somebody else: {changed[:3]}")
    system.clients.run("dismiss", group="here")
    whole(system)


@case("replica paused for 10 s announces itself again")
def paused(system, figures, wrong):
    paused_for(system, figures, wrong, 10)


@case("replica paused for 30 s, its entries are removed meanwhile: it announces itself again")
def paused_long(system, figures, wrong):
    paused_for(system, figures, wrong, 30)


def paused_for(system, figures, wrong, length):
    # These wait for their replica; the others there have noticed after four seconds, and resume elsewhere.
    system.clients.run("group", group="held", count=8, homes=[1], pinned=True, patience=90_000)
    system.clients.run("group", group="here", count=12, homes=[1])
    groups = (*GROUPS, "here", "held")
    whole(system, groups)
    resumes = Resumes(system, groups)
    held = {member["ids"][-1] for member in look(system, "held")}
    before = {member["user"]: member["ids"] for member in (*look(system, "crowd"), *look(system, "here"))}
    with Frame(system, [0, STAYS], (*GROUPS, "here")) as frame:
        sampler = frame.sampler
        system.replicas[1].freeze()
        frozen = time.time()
        try:
            time.sleep(length)
        finally:
            system.replicas[1].thaw()
        thawed = time.time()
        last = max((asked for at, _, _, shown, asked in sampler.samples if shown and shown & held and at < thawed), default=frozen)
        right = whole(system, groups, seconds=30)
    # Who comes back after the replica stopped counting is announced again.
    frame.judge(figures, wrong, NOTICED_SECONDS, ATTEMPT_SECONDS, kinds=("leave",))
    resumes.judge(figures, wrong)
    after = [*look(system, "crowd"), *look(system, "here")]
    changed = [member["user"] for member in after if member["ids"] != before[member["user"]]]
    now = {member["ids"][-1] for member in look(system, "held")}
    seen = told(system, frozen)
    figures["its clients were shown"] = f"{seconds(last - frozen)} after it was paused"
    figures["presence right again"] = f"{seconds(right)} after it went on"
    figures["clients that waited for it"] = f"{len(held & now)} of {len(held)} have their client id"
    figures["clients that noticed"] = f"12 and more, {len(changed)} are somebody else"
    figures["observers were told"] = described(seen)
    judge_ghosts(system, wrong, frozen, last)
    require(wrong, not changed, f"came back as somebody else: {changed[:3]}")
    require(wrong, held == now, f"{len(held - now)} that waited are somebody else")
    there = now | {member["ids"][-1] for member in after}
    gone = [each for each in seen if each["kind"] == "leave" and each["client"] in there]
    require(wrong, not gone, f"observers were told that somebody left who is there: {described(gone)}")
    system.clients.run("dismiss", group="held")
    system.clients.run("dismiss", group="here")
    whole(system)


@case("a replica killed every 20 s for 3 minutes, 500 clients")
def rolling(system, figures, wrong):
    system.clients.run("pace", pauseMs=400)
    system.clients.run("late")
    right = False
    try:
        killed_in_turn(system, figures, wrong)
        right = not wrong
    finally:
        late = system.clients.run("late")["late"] / 1000
        figures["longest that the process of the clients was late"] = f"{late:.1f} s"
        if not right:
            require(wrong, late <= LATE_SECONDS, "this machine was too busy for the clients, which says nothing about Plenum")


def killed_in_turn(system, figures, wrong):
    # All at once would be more joins than the one process of clients takes on a busy machine.
    for _ in range(10):
        system.clients.run("group", group="many", count=50, wait=120, seconds=100)
    groups = (*GROUPS, "many")
    whole(system, groups, seconds=30)
    resumes = Resumes(system, groups)
    before = {member["user"]: member["ids"] for member in look(system, "many")}
    begin, longest, ghosts, hidden, rounds, hit = time.monotonic(), 0.0, 0.0, 0.0, 0, []
    while time.monotonic() - begin < 180:
        number, start = rounds % 2, time.monotonic()
        if not number:
            spread(system)
        hit.append(sum(member["replica"] == number for member in look(system, "many")))
        right, shown, missing = killed_once(system, groups, number, resumes)
        longest, ghosts, hidden = max(longest, right), max(ghosts, shown), max(hidden, missing)
        rounds += 1
        time.sleep(max(0.0, 20 - (time.monotonic() - start)))
    members = look(system, "many")
    changed = [member["user"] for member in members if member["ids"] != before[member["user"]]]
    figures["kills"] = f"{rounds}, {min(hit)} to {max(hit)} of the clients were there"
    require(wrong, min(hit) >= SPREAD // 2, f"a killed replica had only {min(hit)} clients")
    figures["longest until presence was right"] = seconds(longest)
    figures["longest that somebody was shown who did not come back"] = f"{seconds(ghosts)}, {DISMISSED} at each kill"
    figures["longest missing from presence"] = seconds(hidden)
    figures["clients that are somebody else"] = f"{len(changed)} of {len(members)}"
    resumes.judge(figures, wrong)
    require(wrong, ghosts <= GHOST_SECONDS, f"somebody was shown for {ghosts:.1f} s")
    require(wrong, hidden <= HIDDEN_SECONDS, f"somebody was missing for {hidden:.1f} s")
    require(wrong, not changed, f"came back as somebody else: {changed[:3]}")
    whole(system, groups, seconds=30)


def spread(system):
    """Those of a killed replica have gone to the next one, at last to the one that stays: some of them go on to the first."""
    members = look(system, "many")
    cut = [number for number, member in enumerate(members) if member["replica"] == STAYS][:SPREAD]
    connects = [member["connects"] - (number not in cut) for number, member in enumerate(members)]
    system.clients.run("cut", group="many", count=SPREAD, replica=STAYS)
    system.clients.run("back", group="many", connects=connects, seconds=30)


def killed_once(system, groups, number, resumes):
    """Kills a replica and starts it again after 5 s; some of its clients do not come back. Answers how long it took until
    presence was right on the others, for how long those who left were shown there, and somebody who is there was not."""
    made = system.clients.run("group", group="gone", count=DISMISSED, homes=[number], pinned=True)["members"]
    whole(system, (*groups, "gone"), seconds=30)
    gone, there, others = {member["ids"][-1] for member in made}, expected(system, groups), (1 - number, STAYS)
    with Sampler(system, others) as sampler:
        time.sleep(0.5)
        resumes.kill(number)
        killed = time.time()
        restarted = threading.Timer(5, system.replicas[number].launch)
        restarted.start()
        system.clients.run("dismiss", group="gone")
        right = whole(system, groups, others, seconds=30)
        time.sleep(max(0.0, killed + GHOST_SECONDS + 2 - time.time()))
    restarted.join()
    system.ready()
    last = sampler.last_shown(gone)
    if last is None:
        raise Failure("those who were dismissed were never shown")
    return right, max(0.0, last - killed), sampler.hidden(there)
