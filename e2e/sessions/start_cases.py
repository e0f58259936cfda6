"""A replica that starts while many users are blocked: what it reads, and that Redis decides nothing."""

import concurrent.futures
import json
import time

from failure import Failure
from session_cases import case, emptied, refused_everywhere, require

BLOCKS = 10_000
TAIL = 1_500  # records of the ledger that a start reads beside a copy: one is made anew after 1,000
KNOWN = "blocks and revocations are known"
COPIED_SECONDS = 150  # a copy is made once a minute at most
KNOWN_SECONDS = 120  # on a busy machine a start without the copy has taken 55 s
STARTED = 1


def started(system):
    """Starts replica 1 anew; what its log says of the blocks that it read."""
    replica = system.replicas[STARTED]
    problem = replica.stop()
    if problem:
        raise Failure(problem)
    before = replica.log_path.stat().st_size
    system.restart(STARTED)
    end = time.monotonic() + KNOWN_SECONDS
    while time.monotonic() < end:
        with replica.log_path.open("rb") as log:
            log.seek(before)
            for line in log:
                if KNOWN.encode() in line:
                    return json.loads(line)
        time.sleep(0.1)
    raise Failure("the replica did not say that it knows the blocks")


def block(system, numbers, method="block_user"):
    def ask(number):
        system.api(method, number % 3, seconds=10, user=f"kept-out-{number}")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, numbers))


def described(start):
    return f"{start['read']} records of the ledger read, {start['took']}"


@case("a replica that starts with 10,000 blocks reads the copy, and without Redis the ledger")
def many_blocks(system, figures, wrong):
    begin = time.monotonic()
    block(system, range(BLOCKS))
    figures["blocks"] = f"{BLOCKS} made in {time.monotonic() - begin:.0f} s"
    end = time.monotonic() + COPIED_SECONDS
    while not (start := started(system))["copied"] or start["read"] > TAIL:
        if time.monotonic() > end:
            raise Failure(f"no start read a copy: {start}")
        time.sleep(5)
    figures["a start with the copy"] = described(start)
    require(wrong, start["entries"] >= BLOCKS, f"{start['entries']} entries are known")
    refused_everywhere(system, wrong, "kept-out-0")
    emptied(system)
    start = started(system)
    figures["a start after Redis was emptied"] = described(start)
    require(wrong, not start["copied"] and start["entries"] >= BLOCKS, f"not all of the ledger was read: {start}")
    refused_everywhere(system, wrong, f"kept-out-{BLOCKS - 1}")
    for node in system.redis.nodes:
        node.freeze()
    try:
        start = started(system)
    finally:
        for node in system.redis.nodes:
            node.thaw()
        system.redis.wait()
    figures["a start while Redis is frozen"] = described(start)
    require(wrong, not start["copied"] and start["entries"] >= BLOCKS, f"not all of the ledger was read: {start}")
    block(system, range(BLOCKS), "unblock_user")
