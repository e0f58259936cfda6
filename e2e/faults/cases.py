"""The faults, one case each."""

import shutil
import signal
import time
from dataclasses import dataclass, field
from typing import Callable

from failure import Failure
from nats_operator import Operator
from networks import unavailable
from stack import get_json, until


@dataclass
class Case:
    """`told`: whether subscribers may be told that something is missing: never, maybe, or all of them must be."""

    name: str
    body: Callable
    seconds: int
    told: str = "never"
    short: bool = False
    skip: str = ""
    least: int = 500
    load: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)


CASES = []


def case(name, seconds, **settings):
    def register(body):
        CASES.append(Case(name, body, seconds, **settings))
        return body

    return register


@case("NATS leader killed and restarted", 60, short=True)
def leader_killed(stack):
    leader = stack.leader()
    stack.kill_nats(leader)
    stack.progress(20, 40)
    leader.start()
    stack.nats_ready()
    stack.progress(20, 30)


@case("replica killed", 60, short=True)
def replica_killed(stack):
    stack.replicas[1].kill()
    stack.progress(40, 30)
    until("all subscribers at other replicas", lambda: stack.load.ask("status")["subscribed"] == 32, 20)
    stack.replicas[1].launch()
    until("the replica's return", stack.replicas[1].ready, 40)
    stack.progress(20, 30)


@case("NATS leader stopped cleanly", 60)
def leader_stopped(stack):
    leader = stack.leader()
    leader.stop()
    stack.progress(20, 40)
    leader.start()
    stack.nats_ready()
    stack.progress(20, 30)


@case("NATS leader frozen for 20 s", 90)
def leader_frozen(stack):
    leader = stack.leader()
    leader.process.send_signal(signal.SIGSTOP)
    time.sleep(20)
    leader.process.send_signal(signal.SIGCONT)
    stack.progress(20, 60)


@case("all NATS servers killed and restarted", 120)
def all_killed(stack):
    for server in stack.cluster.servers:
        stack.kill_nats(server)
    time.sleep(3)
    for server in stack.cluster.servers:
        server.start()
    stack.nats_ready()
    stack.progress(20, 90)


@case("replica cut off from NATS for 30 s", 120, options={"proxied_replica": True})
def replica_cut_off(stack):
    stack.proxies.cut(stack.replica_links)
    time.sleep(30)
    stack.proxies.restore(stack.replica_links)
    stack.progress(40, 60)


@case("packets between a replica and NATS dropped for 30 s", 120, options={"proxied_replica": True})
def replica_stalled(stack):
    stack.proxies.stall(stack.replica_links)
    time.sleep(30)
    stack.proxies.restore(stack.replica_links)
    stack.progress(40, 60)


def cut_off_server(stack, break_links):
    number = stack.cluster.servers.index(stack.leader())
    links = [link for pair, link in stack.routes.items() if number in pair]
    break_links(links)
    time.sleep(30)
    stack.progress(5, 60)
    stack.proxies.restore(links)
    stack.nats_ready(90)
    stack.progress(20, 60)


@case("NATS leader cut off from its peers for 30 s", 240, options={"proxied_routes": True})
def leader_cut_off(stack):
    cut_off_server(stack, stack.proxies.cut)


@case("packets between the NATS leader and its peers dropped for 30 s", 240, options={"proxied_routes": True})
def leader_stalled(stack):
    cut_off_server(stack, stack.proxies.stall)


@case("NATS leader cut off from its peers for 30 s, in network namespaces", 240, options={"spaced": True}, skip=unavailable())
def leader_unplugged(stack):
    leader = stack.leader()
    number = stack.cluster.servers.index(leader)
    stack.networks.cut(number)
    begin = time.monotonic()
    until("the NATS server that was cut off misses its peers", lambda: not leader.ready(), 25)
    time.sleep(max(0, begin + 30 - time.monotonic()))
    stack.progress(5, 60)
    stack.networks.restore(number)
    stack.nats_ready(90)
    stack.progress(20, 60)


@case(
    "slow consumer: NATS drops a connection of a replica that does not read", 90,
    load={"pauseMs": 10, "bytes": 32_000}, options={"server_lines": ['write_deadline: "1s"', "max_pending: 8MB"]},
)
def slow_consumer(stack):
    def slow():
        return sum(get_json(server, "varz")["slow_consumers"] for server in stack.cluster.servers)

    before = slow()
    stack.replicas[2].freeze()
    try:
        until("NATS finds the replica's connections too slow", lambda: slow() > before, 30)
        time.sleep(5)
    finally:
        stack.replicas[2].thaw()
    stack.progress(40, 40)


@case(
    "all clients return to one replica at once, with megabytes missed each", 150,
    load={"subscribers": 150, "publishers": 8, "bytes": 8000, "pauseMs": 20},
)
def clients_return(stack):
    stack.load.ask("away")
    stack.progress(400, 90)
    stack.load.ask("back")
    until("all subscribers are back", lambda: stack.load.ask("status")["subscribed"] == 150, 60)
    slow = sum(get_json(server, "varz")["slow_consumers"] for server in stack.cluster.servers)
    if slow:
        raise Failure(f"NATS closed {slow} connections of replicas as slow consumers'")


@case("replica frozen for 8 s under load", 60, load={"pauseMs": 20})
def replica_frozen(stack):
    stack.replicas[2].freeze()
    time.sleep(8)
    stack.replicas[2].thaw()
    stack.progress(40, 40)


def all_told(stack):
    stack.progress(20, 90)
    until("all subscribers told", lambda: not stack.load.ask("status")["untold"], 30)


@case("streams deleted by an operator", 120, told="all")
def streams_deleted(stack):
    operator = Operator(stack.cluster.servers[0])
    for name in stack.log_streams():
        operator.delete(name)
    operator.close()
    all_told(stack)


def behind_the_replicas_backs(stack, act):
    """What an operator does to each stream while no replica can make a new one in its place."""
    operator = Operator(stack.cluster.servers[0])
    names = list(stack.log_streams())
    for replica in stack.replicas:
        replica.freeze()
    try:
        for name in names:
            act(operator, name)
    finally:
        for replica in stack.replicas:
            replica.thaw()
        operator.close()


@case("streams deleted and recreated by an operator under their names", 120, told="all")
def streams_recreated(stack):
    behind_the_replicas_backs(stack, Operator.recreate)
    all_told(stack)


@case("streams restored by an operator from an older backup", 120, told="all")
def streams_restored(stack):
    operator = Operator(stack.cluster.servers[0])
    backups = {name: operator.backup(name) for name in stack.log_streams()}
    operator.close()
    stack.progress(60, 90)
    behind_the_replicas_backs(stack, lambda operator, name: operator.restore(name, backups[name]))
    all_told(stack)


@case("disks of all NATS servers restored from an older backup", 180, told="all")
def backup_restored(stack):
    servers = stack.cluster.servers

    def down():
        for server in servers:
            stack.kill_nats(server)

    def up():
        for server in servers:
            server.start()
        stack.nats_ready()

    down()
    for server in servers:
        shutil.copytree(server.folder / "store", server.folder / "backup")
    up()
    stack.progress(60, 90)
    down()
    for server in servers:
        shutil.rmtree(server.folder / "store")
        (server.folder / "backup").rename(server.folder / "store")
    up()
    all_told(stack)


@case(
    "max_bytes reached: the front is trimmed", 120,
    options={"nats": {"max_bytes": 1 << 20, "shards": 2}}, load={"bytes": 4000},
)
def front_trimmed(stack):
    stack.progress(150, 100)


@case(
    "storage of the NATS servers full", 120, told="maybe",
    options={"nats": {"max_bytes": 0}, "max_file": "16M"}, load={"bytes": 8000, "stopWhenRefused": True, "attemptMs": 40_000},
)
def storage_full(stack):
    # A publisher that is refused stops; before that each publication that was acknowledged is stored.
    try:
        until("every publisher refused", lambda: stack.load.ask("status")["refused"] == 12, 110)
    except Failure as failure:
        raise Failure(f"{failure}; {stack.load.ask('status')['refused']} were") from None
