"""What the acceptance test asks of a Kubernetes cluster: kubectl, helm, images, clients inside its network, and faults.

Environment:
  PLENUM_CLUSTER_EXEC   words put before kubectl, helm and clients, so that they reach the cluster's network and names (default: none)
  PLENUM_CLUSTER_LOAD   command that takes the archive of an image as its last argument (default: found by deploy/cluster/load)
  PLENUM_CLUSTER_HELM   the helm that is used (default: helm 3 of .tools)
  PLENUM_CLUSTER_NODE   words put before iptables, so that it runs on the node (default: PLENUM_CLUSTER_EXEC; none: no partitions)
"""

import json
import os
import pathlib
import shlex
import queue
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
HELM = os.environ.get("PLENUM_CLUSTER_HELM") or str(ROOT / ".tools/helm/helm3")
INSIDE = shlex.split(os.environ.get("PLENUM_CLUSTER_EXEC", ""))
NODE = shlex.split(os.environ.get("PLENUM_CLUSTER_NODE", os.environ.get("PLENUM_CLUSTER_EXEC", "")))
LOAD = shlex.split(os.environ.get("PLENUM_CLUSTER_LOAD", str(ROOT / "deploy/cluster/load")))
# What a namespace has by itself, or keeps for a while after its things are gone.
ALWAYS = ("configmap/kube-root-ca.crt", "serviceaccount/default", "event", "lease", "endpointslice", "endpoints", "pods.metrics")


class CommandFailed(Exception):
    """A command ended with another status than 0; says which, and what it printed."""


def run(command, seconds=60, check=True, given=None):
    """Output of a command, which must end within `seconds`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, input=given)
    except subprocess.TimeoutExpired as late:
        raise CommandFailed(f"{shlex.join(command)}: not done after {seconds} s") from late
    if check and done.returncode:
        # Helm tells of every link of the chart, each time.
        said = "\n".join(line for line in (done.stdout + done.stderr).splitlines() if "found symbolic link" not in line)
        raise CommandFailed(f"{shlex.join(command)}: status {done.returncode}\n{said[-3000:]}")
    return done.stdout if check else done


def load_image(archive):
    run([*LOAD, str(archive)], 300)


def until(what, holds, seconds=60, pause=0.5):
    """Waits until `holds()` is true; gives what it gave. A failed command counts as not yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            got, problem = holds(), None
        except CommandFailed as failed:
            got, problem = False, failed
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"gave up after {seconds} s waiting for {what() if callable(what) else what}; {problem or ''}")
        time.sleep(pause)


class Namespace:
    """A namespace of the cluster, and a release of the chart in it."""

    def __init__(self, name, release, values):
        self.name, self.release, self.values = name, release, values

    def kubectl(self, *words, seconds=60, check=True, given=None):
        return run([*INSIDE, "kubectl", "--namespace", self.name, *words], seconds, check, given)

    def items(self, *words):
        return json.loads(self.kubectl("get", *words, "-o", "json"))["items"]

    def helm(self, *words, seconds=300, check=True):
        return run([*INSIDE, HELM, "--namespace", self.name, *words], seconds, check)

    def deploy(self, how, settings=(), seconds=480):
        """Installs or upgrades, with further settings as of --set, and waits until everything is ready."""
        extra = [word for setting in settings for word in ("--set", setting)]
        values = [word for file in self.values for word in ("--values", str(file))]
        return self.helm(how, self.release, str(ROOT / "helm/plenum"), *values, *extra, "--wait", "--timeout", f"{seconds}s",
                         seconds=seconds + 30)

    # --- Pods

    def pods(self, component=None):
        """The pods of the release that are not finished, by name."""
        selector = f"app.kubernetes.io/instance={self.release}"
        if component:
            selector += f",app.kubernetes.io/component={component}"
        return {pod["metadata"]["name"]: pod for pod in self.items("pods", "-l", selector)
                if pod["status"].get("phase") not in ("Succeeded", "Failed")}

    def born(self, kinds):
        """The pods of these kinds by what no other pod will ever be: their uid, with their names."""
        return {pod["metadata"]["uid"]: name for kind in kinds for name, pod in self.pods(kind).items()}

    def restarts(self):
        """Containers that were started again, as text."""
        return [f"{name}/{status['name']}: {status['restartCount']} restarts, last {status.get('lastState')}"
                for name, pod in self.pods().items() for status in pod["status"].get("containerStatuses", [])
                if status["restartCount"]]

    def settled(self):
        """True when every workload has just the pods it wants, of the newest revision, ready, and none is ending."""
        wanted = 0
        for workload in self.items("deployments,statefulsets", "-l", f"app.kubernetes.io/instance={self.release}"):
            status, count = workload["status"], workload["spec"]["replicas"]
            wanted += count
            if status.get("observedGeneration") != workload["metadata"]["generation"] or status.get("readyReplicas", 0) != count:
                return False
            if status.get("updatedReplicas", count) != count:
                return False
        pods = [pod for pod in self.pods().values() if pod["metadata"]["labels"].get("app.kubernetes.io/component") != "bootstrap"]
        return len(pods) == wanted and not any("deletionTimestamp" in pod["metadata"] for pod in pods)

    def redis_whole(self):
        """True when three primaries with all slots and three replicas see each other."""
        ask = ("exec", f"{self.release}-redis-0", "--", "sh", "-c")
        call = "REDISCLI_AUTH=$OPERATOR_PASSWORD redis-cli --user operator cluster "
        info = self.kubectl(*ask, call + "info")
        nodes = self.kubectl(*ask, call + "nodes").splitlines()
        sound = [line for line in nodes if " connected" in line and "fail" not in line]
        return "cluster_state:ok" in info and "cluster_slots_ok:16384" in info and len(nodes) == len(sound) == 6 and (
            sum("slave" in line.split()[2].split(",") for line in sound) == 3)

    def nats_whole(self):
        """True when every server says that all of its streams are current."""
        pods = self.pods("nats")
        return len(pods) == 3 and all(
            '"ok"' in self.kubectl("get", "--raw", f"/api/v1/namespaces/{self.name}/pods/{pod}:8222/proxy/healthz") for pod in pods)

    def wait_whole(self, seconds=180):
        until(lambda: f"all to be ready: {self.kubectl('get', 'pods')}", self.settled, seconds)
        until("Redis Cluster to be whole", self.redis_whole, seconds)
        until("NATS to be current", self.nats_whole, seconds)

    def job(self, name, source, seconds=120):
        """Makes a job from a CronJob, as operators do; gives what it printed when it has ended well."""
        self.kubectl("create", "job", f"--from=cronjob/{self.release}-{source}", name)

        def ended():
            status = json.loads(self.kubectl("get", "job", name, "-o", "json"))["status"]
            return {each["type"] for each in status.get("conditions", []) if each["status"] == "True"} & {"Complete", "Failed"}

        how = until(f"job {name} to end", ended, seconds)
        said = self.kubectl("logs", f"job/{name}")
        assert how == {"Complete"}, f"job {name}: {said}"
        return said

    def address(self, pod):
        return self.pods()[pod]["status"]["podIP"]

    # --- What is left

    def everything(self):
        """Names of all things in the namespace, as kind/name."""
        kinds = self.kubectl("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
        kinds = [kind for kind in kinds if not kind.startswith(ALWAYS)]
        found = self.kubectl("get", ",".join(kinds), "-o", "name", "--ignore-not-found", seconds=120).split()
        return sorted(name for name in found if not name.startswith(ALWAYS))


class Cut:
    """No packet passes between two sets of addresses, in either direction, while this is entered."""

    def __init__(self, some, others):
        self.pairs = [pair for one in some for other in others for pair in ((one, other), (other, one))]

    def _rules(self, action):
        for source, target in self.pairs:
            run([*NODE, "iptables", action, "FORWARD", "-s", source, "-d", target, "-j", "DROP"])

    def __enter__(self):
        self._rules("-I")
        return self

    def __exit__(self, *_):
        self._rules("-D")


class Rates:
    """Connects per second on all replicas together, as their metrics count them, while this is entered."""

    def __init__(self, space):
        self.space, self.connects, self.ending = space, [], threading.Event()
        self.thread = threading.Thread(target=self._count, daemon=True)

    def _total(self):
        total = 0
        for pod in self.space.pods("websocket"):
            text = self.space.kubectl("get", "--raw", f"/api/v1/namespaces/{self.space.name}/pods/{pod}:9000/proxy/metrics")
            total += sum(int(float(line.rsplit(" ", 1)[1])) for line in text.splitlines() if line.startswith("plenum_connects_total{"))
        return total

    def _count(self):
        before, at = self._total(), time.monotonic()
        while not self.ending.wait(max(0.0, at + 1 - time.monotonic())):
            try:
                now, at = self._total(), time.monotonic()
            except CommandFailed:
                continue
            self.connects.append(now - before)
            before = now

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.thread.join(60)


class Client:
    """A client of the JavaScript SDK that stays, whatever becomes of the release."""

    def __init__(self, url, token, channel):
        self.process = subprocess.Popen(
            [*INSIDE, "env", f"PLENUM_TOOLS={ROOT / '.tools'}", "node", str(ROOT / "e2e/cluster/client.mjs"), url, token, channel],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.lines, self.seen = queue.Queue(), []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))

    def wait(self, event, seconds=60):
        """The next event of this name; those before it are passed over."""
        end = time.monotonic() + seconds
        while True:
            try:
                got = self.lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {event} of the client within {seconds} s, but {self.seen[-10:]}") from None
            self.seen.append(got)
            if got["event"] == event:
                return got
            assert got["event"] != "failed", got

    def ask(self, event, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.wait(event)

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
        self.process.wait()


class Load:
    """`plenum bench session` through nginx, from inside the network, until `end()`."""

    def __init__(self, binary, url, folder, name, secret, users=48, sessions=4, rate=2):
        settings = folder / "client.json"
        settings.touch(0o600)
        settings.write_text(json.dumps({"client": {"token": {"hmac_secret_key": secret}}}))
        self.errors = folder / f"load-{name}.log"
        self.process = subprocess.Popen(
            [*INSIDE, str(binary), "bench", "session", "--config", str(settings), "--url", url, "--users", str(users),
             "--sessions", str(sessions), "--rate", str(rate), "--duration", "30m", "--patience", "60s", "--max-p99", "100s",
             "--min-connect", "0", "--json"],
            stdout=subprocess.PIPE, stderr=self.errors.open("w"), text=True, start_new_session=True)
        try:
            until("the load to begin", lambda: f"{users}/{users} connected" in self.errors.read_text() or self.process.poll() is not None, 90)
            if self.process.poll() is not None:
                raise CommandFailed(f"the load ended at once: {self.errors.read_text()[-2000:]}")
        except BaseException:
            self.kill()
            raise

    def end(self):
        """Ends publishing, waits for what is on its way, and gives the report."""
        os.killpg(self.process.pid, 2)
        try:
            printed, _ = self.process.communicate(timeout=150)
        finally:
            self.kill()
        if not printed.strip():
            raise CommandFailed(f"the load gave no report: {self.errors.read_text()[-2000:]}")
        return json.loads(printed)

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
