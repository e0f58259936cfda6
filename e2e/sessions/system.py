"""The system under test: three NATS servers, six Redis nodes, three replicas, and a process with clients and publishers."""

import http.client
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "deploy/stack"), str(ROOT / "e2e/faults")]
from cluster import Cluster  # noqa: E402
from failure import Failure  # noqa: E402
from redis import RedisCluster  # noqa: E402
from stack import LOGS, START_SECONDS, Load, Replica, until  # noqa: E402

PASSWORD = "a-password-of-the-test-suites-only"
CHANNELS = [f"room:{number}" for number in range(4)]
# The replica that is neither killed nor paused: what it says is what those see who stay.
STAYS = 2
SAMPLE_SECONDS = 0.15
RELOADED = b"configuration reloaded"
REFUSED = 3500  # a connection token that is not valid
ROOM = {
    "name": "room", "presence": True, "join_leave": True, "force_push_join_leave": True, "history_size": 20000,
    "history_ttl": "600s", "force_recovery": True, "allow_subscribe_for_client": True, "allow_presence_for_subscriber": True,
}


class Refused(Exception):
    """The server API answered with an error; its text holds code and message."""

    def __init__(self, error):
        super().__init__(f"{error.get('code')} {error.get('message')}")
        self.code = error.get("code")


class Clients(Load):
    """The process with the clients (clients.mjs)."""

    def __init__(self, settings):
        environment = dict(os.environ, PLENUM_TOOLS=str(ROOT / ".tools"), NO_PROXY="127.0.0.1")
        self.process = subprocess.Popen(
            ["node", str(ROOT / "e2e/sessions/clients.mjs"), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        self.answers = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def run(self, command, wait=60, **settings):
        return self.ask(json.dumps({"run": command, **settings}), wait)


class Stalls(threading.Thread):
    """Notes for how long this process was not scheduled, from now on: what is measured by its clock, or on a machine that stood
    still, may be late by as much."""

    STEP, LEAST = 0.02, 0.1

    def __init__(self):
        super().__init__(daemon=True)
        self.noted = []
        self.start()

    def run(self):
        while True:
            before = time.monotonic()
            time.sleep(self.STEP)
            self.noted.append((time.time(), time.monotonic() - before - self.STEP))
            del self.noted[:-10_000]

    def between(self, begin, end):
        """Seconds of all stalls that ended between the two times; shorter ones than LEAST are how a busy machine is."""
        return sum(length for at, length in list(self.noted) if begin < at <= end and length > self.LEAST)

    def went_on(self, begin, end, longer):
        """When the last stall `longer` than that ended between the two times; the first time where there was none."""
        return max([begin, *(at for at, length in list(self.noted) if begin < at <= end and length > longer)])

    def longest(self, at):
        return max((length for end, length in list(self.noted) if end > at), default=0.0)


class Sampler:
    """Asks replicas again and again who is present in the channels; a sample is (when it was answered, replica, channel, clients or
    None, when it was asked)."""

    def __init__(self, system, replicas, channels=None):
        self.system, self.samples, self.errors = system, [], {}
        self.ended = threading.Event()
        self.threads = [
            threading.Thread(target=self._ask, args=(number, channel), daemon=True)
            for number in replicas for channel in channels or CHANNELS
        ]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def _ask(self, number, channel):
        while not self.ended.is_set():
            asked = time.time()
            try:
                clients = frozenset(self.system.present(channel, number))
            except (Refused, OSError) as error:
                clients = None
                # Addresses differ from one answer to the next: only what it says is counted.
                text = re.sub(r"\d+\.\d+\.\d+\.\d+:\d+.*", "…", str(error) or type(error).__name__)
                self.errors[text] = self.errors.get(text, 0) + 1
            self.samples.append((time.time(), number, channel, clients, asked))
            self.ended.wait(SAMPLE_SECONDS)

    def last_shown(self, clients):
        """When somebody last asked who was shown one of these: the answer itself may have been late."""
        return max((asked for _, _, _, there, asked in self.samples if there and there & clients), default=None)

    def hidden(self, expected):
        """Longest time for which answers lacked somebody who was there: from the first that did to the next that did not.
        `expected` is a set of clients by channel."""
        first, longest = {}, 0.0
        for at, number, channel, there, _ in self._sorted():
            if there is None:
                continue
            if not expected[channel] <= there:
                first.setdefault((number, channel), at)
            elif (begin := first.pop((number, channel), None)) is not None:
                longest = max(longest, at - begin)
        return max([longest, *(time.time() - begin for begin in first.values())])

    def stall(self):
        """Longest time between two answers about a channel, of one replica, that were no errors."""
        last, longest = {}, 0.0
        for at, number, channel, there, _ in self._sorted():
            if there is not None:
                longest = max(longest, at - last.get((number, channel), at))
                last[number, channel] = at
        return longest

    def _sorted(self):
        return sorted(self.samples, key=lambda sample: sample[0])


class System:
    def __init__(self, folder):
        LOGS.mkdir(parents=True, exist_ok=True)
        self.folder = pathlib.Path(folder)
        self.cluster = Cluster(3, folder, PASSWORD)
        self.redis = RedisCluster(self.folder / "redis")
        settings = json.loads((ROOT / "e2e/plenum.json").read_text())
        settings["channel"]["namespaces"].append(ROOM)
        settings["nats"] = {"servers": self.cluster.urls, "replicas": 3, "user": "plenum", "password": PASSWORD}
        settings["redis"] = {"servers": self.redis.servers, "user": self.redis.user, "password": self.redis.password}
        self.key, self.token_key = settings["http_api"]["key"], settings["client"]["token"]["hmac_secret_key"]
        self.replicas = []
        for number in range(3):
            log_path = LOGS / f"sessions-replica-{number}.log"
            log_path.write_bytes(b"")
            self.replicas.append(Replica(number, folder, settings, log_path))
        self.clients, self.stalls = None, Stalls()
        self.settings = {
            "endpoints": [replica.port for replica in self.replicas], "apiKey": self.key,
            "tokenKey": self.token_key, "channels": CHANNELS, "publishers": 8, "pauseMs": 100,
        }

    def start(self):
        self.redis.launch()
        self.cluster.start()
        self.redis.finish()
        for replica in self.replicas:
            replica.launch()
        self.ready()
        self.clients = Clients(self.settings)

    def ready(self):
        for replica in self.replicas:
            until(f"{replica.name} ready", replica.ready, START_SECONDS)

    def restart(self, number):
        self.replicas[number].launch()
        self.ready()

    def change_key(self, first=False):
        """Gives the replicas another key of connection tokens, or the first one again, as a reload does: tokens of the key before
        are refused by each from then on."""
        key = self.settings["tokenKey"] + ("" if first else "-and-another-one")
        if key == self.token_key:
            return
        self.token_key, reloading = key, []
        for replica in self.replicas:
            self.configure(replica, lambda settings: settings["client"]["token"].update(hmac_secret_key=key))
            if replica.process.poll() is None:
                reloading.append((replica, replica.log_path.stat().st_size))
                replica.process.send_signal(signal.SIGHUP)
        for replica, end in reloading:
            until(f"{replica.name} reloaded", lambda: RELOADED in replica.log_path.read_bytes()[end:], START_SECONDS)
        codes = self.clients.run("key", tokenKey=key, ports=[replica.port for replica, _ in reloading])["codes"]
        if codes != [REFUSED] * len(reloading):
            raise Failure(f"connects with a token of the key before ended with {codes}, not {REFUSED}")

    @staticmethod
    def configure(replica, change):
        """Writes a replica's configuration anew; it takes effect at its next start, or reload."""
        settings = json.loads(replica.config.read_text())
        change(settings)
        replica.config.write_text(json.dumps(settings))

    def heal(self):
        """After a case that failed half way: everything runs again."""
        for node in self.redis.nodes:
            if node.process.poll() is not None:
                node.start()
            node.thaw()
        self.redis.wait()
        for replica in self.replicas:
            if replica.process.poll() is not None:
                replica.launch()
            replica.thaw()
        self.ready()
        self.change_key(first=True)

    def stop(self):
        """Ends all of it; says what went wrong, or None."""
        problem = None
        try:
            if self.clients:
                self.clients.stop()
            for replica in self.replicas:
                problem = problem or replica.stop()
            for replica in self.replicas:
                problem = problem or replica.misbehaved()
        finally:
            self.redis.stop()
            self.cluster.stop()
            for node in [*self.cluster.servers, *self.redis.nodes]:
                if node.log_path.exists():
                    shutil.copy(node.log_path, LOGS / f"sessions-{node.name}.log")
        return problem

    def _ask(self, number, seconds, *request):
        connection = http.client.HTTPConnection("127.0.0.1", self.replicas[number].port, timeout=seconds)
        try:
            connection.request(*request, {"content-type": "application/json", "x-api-key": self.key})
            response = connection.getresponse()
            text = response.read()
            return json.loads(text)
        except http.client.HTTPException as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        except ValueError as error:
            raise ConnectionError(f"HTTP {response.status}: {text[:80]}") from error
        finally:
            connection.close()

    def api(self, method, number=STAYS, seconds=3, **body):
        """The result; `Refused` of an error that the API tells, `OSError` where it does not answer."""
        answer = self._ask(number, seconds, "POST", f"/api/{method}", json.dumps(body))
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["result"]

    def well(self, dependency, number=STAYS, seconds=3):
        """What each replica says of what it leans on, in the stats that one gives: True where all is well."""
        answer = self._ask(number, seconds, "GET", "/api/stats", None)
        return [each["ok"] for node in answer["nodes"] for each in node["dependencies"] if each["name"] == dependency]

    def present(self, channel, number=STAYS):
        """Client ids that a replica shows in a channel."""
        return set(self.api("presence", number, channel=channel)["presence"])

    def primaries(self):
        return [node for node in self.redis.nodes if node.process.poll() is None and node.role() == "master"]

    def progress(self, more, seconds):
        """Waits until each publisher has had `more` further publications acknowledged."""
        least = self.clients.run("now")["least"] + more
        until(f"{more} more of each publisher", lambda: self.clients.run("now")["least"] >= least, seconds)
