"""NATS servers in network namespaces: one network to clients, another between the servers, which can be cut.

Each server has a link of its own to this machine (clients, monitoring), and one to a bridge in a namespace of its own (routes).
A server that is taken off that bridge keeps its links and addresses, and every packet to and from its peers vanishes: no reset,
no error, as with a switch that died.
"""

import os
import random
import shutil
import subprocess


def ip(*arguments):
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if result.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {result.stderr.strip() or result.stdout.strip()}")


def unavailable():
    """Why this machine cannot have such networks; empty when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "network namespaces need the program ip (package iproute2)"
    probe = Networks(1)
    try:
        probe.start()
    except OSError as error:
        return f"no network namespaces here: {error}"
    finally:
        probe.stop()
    return ""


class Networks:
    """`count` servers. Addresses are of 198.18.0.0/15, which is set aside for tests."""

    def __init__(self, count):
        self.tag = f"{os.getpid() % 10_000:04}{random.randrange(10_000):04}"
        self.subnet = f"198.18.{random.randrange(256)}"
        self.count = count
        self.peers = f"plenum-{self.tag}-peers"

    def namespace(self, number):
        return f"plenum-{self.tag}-{number}"

    def client_address(self, number):
        """Where clients on this machine reach the server."""
        return f"{self.subnet}.{4 * number + 2}"

    def peer_address(self, number):
        """Where its peers do."""
        return f"198.19.0.{number + 1}"

    def command(self, number):
        """What runs a program in the server's namespace, as the same process."""
        return ["ip", "netns", "exec", self.namespace(number)]

    def start(self):
        ip("netns", "add", self.peers)
        ip("-n", self.peers, "link", "add", "peers", "type", "bridge")
        ip("-n", self.peers, "link", "set", "peers", "up")
        for number in range(self.count):
            name, outside = self.namespace(number), f"pl{self.tag}{number}"
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("link", "add", outside, "type", "veth", "peer", "name", "clients", "netns", name)
            ip("address", "add", f"{self.subnet}.{4 * number + 1}/30", "dev", outside)
            ip("link", "set", outside, "up")
            ip("-n", name, "address", "add", f"{self.client_address(number)}/30", "dev", "clients")
            ip("-n", name, "link", "set", "clients", "up")
            ip("-n", name, "link", "add", "peers", "type", "veth", "peer", "name", f"peer{number}", "netns", self.peers)
            ip("-n", name, "address", "add", f"{self.peer_address(number)}/24", "dev", "peers")
            ip("-n", name, "link", "set", "peers", "up")
            ip("-n", self.peers, "link", "set", f"peer{number}", "master", "peers")
            ip("-n", self.peers, "link", "set", f"peer{number}", "up")

    def cut(self, number):
        """From now on nothing passes between this server and its peers."""
        ip("-n", self.peers, "link", "set", f"peer{number}", "nomaster")

    def restore(self, number):
        ip("-n", self.peers, "link", "set", f"peer{number}", "master", "peers")

    def stop(self):
        """Removes what there is; the links go with their namespaces."""
        for name in [self.peers, *map(self.namespace, range(self.count))]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
