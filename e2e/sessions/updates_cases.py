"""Updates of sessions that a failover took back."""

import time

from frame import Updates
from session_cases import case, require
from system import until


def replica_of(system, primary):
    """The node that follows this one."""
    for node in system.redis.nodes:
        role = node.ask("ROLE")
        if role[0] == "slave" and role[2] == primary.port:
            return node
    raise RuntimeError(f"nobody follows {primary.name}")


@case("updates that a failover took back are told, though nobody uses their sessions any more")
def taken_back(system, figures, wrong):
    victim = system.primaries()[0]
    replica = replica_of(system, victim)
    updates = Updates(system.redis)
    try:
        time.sleep(3)
        # What is acknowledged from here on is with the victim alone.
        replica.freeze()
        victim.ask("CLIENT", "KILL", "TYPE", "replica")
        time.sleep(1)
        updates.rest()
        victim.kill()
        replica.thaw()
        until("the replica took over", lambda: replica.role() == "master", 30)
        kept = updates.finish()
    except BaseException:
        updates.abandon()
        raise
    finally:
        replica.thaw()
        if victim.process.poll() is not None:
            victim.start()
        system.redis.wait()
    reader = kept["reader"]
    figures["updates of sessions"] = (
        f"{kept['acknowledged']} acknowledged, {kept['lost']} lost; the writer's client told of {kept['told']} sessions, "
        f"another that had read them of {reader['told']}; not told: {kept['silent']} and {reader['silent']}"
    )
    require(wrong, kept["lost"], "no update was lost: the case shows nothing")
    require(wrong, kept["silent"] == 0, f"the writer's client did not tell of {kept['silent']} sessions")
    require(wrong, reader["silent"] == 0, f"the reader's client did not tell of {reader['silent']} sessions")
