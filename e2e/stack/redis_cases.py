#!/usr/bin/env python3
"""The Redis Cluster of deploy/stack/redis.py: what Plenum's user may do, and what a failover takes."""

import pathlib
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "deploy/stack"), str(ROOT / "e2e"), str(ROOT / "e2e/nginx")]
import cases  # noqa: E402
from peers import until  # noqa: E402
from redis import RedisCluster, RedisError  # noqa: E402

FORBIDDEN = [
    "GET other:key", "SET other:key 1", "KEYS *", "FLUSHALL", "FLUSHDB", "CONFIG GET maxmemory", "CONFIG SET maxmemory 0",
    "SHUTDOWN NOSAVE", "CLUSTER RESET", "CLUSTER FAILOVER TAKEOVER", "CLUSTER FORGET x", "ACL LIST", "MONITOR", "DEBUG SLEEP 1",
    "REPLICAOF NO ONE", "MIGRATE 127.0.0.1 1 k 0 1", "CLIENT KILL TYPE normal", "SCRIPT FLUSH", "PUBLISH plenum:x 1",
    "SAVE", "MODULE LIST", "PSYNC ? -1",
]


class Redis(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="plenum-redis-")
        cls.cluster = RedisCluster(cls.folder.name)
        try:
            cls.cluster.start()
        except BaseException:
            cls.cluster.stop()
            raise

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()
        cls.folder.cleanup()

    def setUp(self):
        self.cluster.wait()

    def holder(self, key):
        """The primary that serves a key's slot, and a connection to it as Plenum."""
        for node in self.cluster.nodes:
            if node.process.poll() is None and node.role() == "master":
                connection = node.connect("plenum")
                try:
                    connection.ask("GET", key)
                    return node, connection
                except RedisError as error:
                    self.assertIn("MOVED", str(error))
                    connection.__exit__()
        self.fail(f"no primary serves {key}")

    def test_plenum_reads_writes_and_runs_scripts_on_keys_with_its_prefix(self):
        _, connection = self.holder("plenum:{a}")
        with connection:
            self.assertEqual(connection.ask("SET", "plenum:{a}", "1", "PX", "60000"), "OK")
            digest = connection.ask("SCRIPT", "LOAD", "return redis.call('HINCRBY', KEYS[1], 'n', ARGV[1])")
            self.assertEqual(connection.ask("EVALSHA", digest, 1, "plenum:{a}:h", 3), 3)
            self.assertEqual(connection.ask("PEXPIRE", "plenum:{a}:h", 60000), 1)
            self.assertEqual(len(connection.ask("CLUSTER", "SLOTS")), 3)

    def test_plenum_may_do_nothing_else(self):
        _, connection = self.holder("plenum:{a}")
        with connection:
            for command in FORBIDDEN:
                with self.subTest(command=command):
                    with self.assertRaisesRegex(RedisError, "NOPERM|not allowed"):
                        connection.ask(*command.split())
            with self.assertRaisesRegex(RedisError, "can.t access|NOPERM"):
                connection.ask("EVAL", "return redis.call('GET', 'other:key')", 0)

    def test_nobody_comes_in_without_a_name(self):
        node = self.cluster.nodes[0]
        with self.assertRaisesRegex(RedisError, "WRONGPASS|invalid"):
            type(node.connect())(node.port, "default", "")
        with self.assertRaisesRegex(RedisError, "WRONGPASS"):
            type(node.connect())(node.port, "plenum", "wrong")

    def test_healthy_slots_are_served_while_a_primary_is_away_and_its_replica_takes_over(self):
        victim, connection = self.holder("plenum:{a}")
        with connection:
            connection.ask("SET", "plenum:{a}", "kept")
            self.assertGreaterEqual(connection.ask("WAIT", 1, 4_000), 1)
        others = [node for node in self.cluster.nodes if node is not victim and node.role() == "master"]
        kept = self.key_of(others[0])
        victim.kill()
        begin = time.monotonic()
        with others[0].connect("plenum") as connection:
            while sum(node.role() == "master" for node in self.cluster.nodes if node is not victim) < 3:
                self.assertEqual(connection.ask("SET", kept, "1"), "OK")
                self.assertLess(time.monotonic() - begin, 60, "no replica took over")
                time.sleep(0.02)
        took = time.monotonic() - begin
        end = time.monotonic() + 30
        while True:
            try:
                _, connection = self.holder("plenum:{a}")
                break
            except (AssertionError, RedisError, OSError):
                self.assertLess(time.monotonic(), end, "the new primary does not serve the slot")
                time.sleep(0.05)
        with connection:
            self.assertEqual(connection.ask("GET", "plenum:{a}"), "kept")
        print(f"      a replica took over after {took:.1f} s")
        victim.start()
        until("it follows the new primary", lambda: victim.role() == "slave")
        self.cluster.wait()

    def key_of(self, node):
        with node.connect("plenum") as connection:
            for number in range(1000):
                try:
                    connection.ask("GET", f"plenum:{number}")
                    return f"plenum:{number}"
                except RedisError:
                    continue
        self.fail(f"{node.name} serves none of a thousand keys")

    def test_a_cluster_that_was_killed_comes_back_with_its_data(self):
        _, connection = self.holder("plenum:{b}")
        with connection:
            connection.ask("SET", "plenum:{b}", "on disk")
            # Two writes of one script stand in the file as a transaction.
            both = "redis.call('SET', KEYS[1], ARGV[1]); redis.call('SET', KEYS[2], ARGV[1])"
            connection.ask("EVAL", both, 2, "plenum:{b}:1", "plenum:{b}:2", "by a script")
            until("the replica has them", lambda: connection.ask("WAIT", 1, 1_000) >= 1)
        # What the setting promises: the last second may be lost, and more where the disk is slow.
        time.sleep(1.2)
        until("the files have them", lambda: all(map(self.written, self.cluster.nodes)))
        for node in self.cluster.nodes:
            node.kill()
        self.cluster.start()
        _, connection = self.holder("plenum:{b}")
        with connection:
            self.assertEqual(connection.ask("GET", "plenum:{b}"), "on disk")
            self.assertEqual([connection.ask("GET", f"plenum:{{b}}:{number}") for number in (1, 2)], ["by a script"] * 2)

    def written(self, node):
        """Whether nothing waits to be written to the node's append-only file."""
        lines = node.ask("INFO", "persistence").splitlines()
        return {"aof_pending_bio_fsync:0", "aof_buffer_length:0"} <= set(lines)

    def test_a_frozen_node_can_be_stopped(self):
        node = self.cluster.nodes[0]
        node.freeze()
        node.stop()
        self.assertIsNotNone(node.process.poll())
        node.start()
        self.cluster.wait()


if __name__ == "__main__":
    cases.run(sys.modules[__name__])
