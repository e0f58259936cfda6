"""The images, built by the file that users build them with, started by runc from their OCI archives without any network but
their own: the server serves messages, finds names, and knows certificates; nginx serves the web files and leads to it.

    e2e/images/images_cases.py [--or-skip] [words of a case]       needs root, buildah and runc

PLENUM_IMAGE_BINARY is a static plenum to put in; without it target/image/plenum is used, and compiled (profile fast, or PROFILE) where it
is missing or older than a source. With --or-skip a machine that cannot run the cases skips them and says why.
"""

import hashlib
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import unittest
import urllib.request
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "e2e"))
sys.path.insert(0, str(ROOT / "e2e/cluster"))
import cases  # noqa: E402
import pack  # noqa: E402
import static  # noqa: E402

NAME = "plenum.test"
TAG = "localhost/plenum-image-test:1"
WEB_TAG, BASE = "localhost/plenum-web-test:1", "localhost/plenum-image-test-nginx:1"
PAGE = ROOT / "services/api/src/page"
# A whole answer of the load test may take this long on a busy machine.
SECONDS = 80
MOST_BYTES = 48 * 1024 * 1024
SETTINGS = {
    "http_server": {"address": "127.0.0.1", "port": 8000, "internal_port": "9000"},
    "client": {"allow_anonymous_connect_without_token": True, "allowed_origins": ["*"]},
    "channel": {"namespaces": [{
        "name": "chat", "allow_subscribe_for_client": True, "allow_subscribe_for_anonymous": True, "history_size": 100,
        "history_ttl": "1m", "force_recovery": True, "allow_publish_for_subscriber": True, "allow_publish_for_anonymous": True,
    }]},
}


def sections(elf):
    """Offset and size of each section of a 64-bit little-endian ELF file, by name, and the types of its segments."""
    offset, = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    heads = [struct.unpack_from("<IIQQQQ", elf, offset + number * size) for number in range(count)]
    text = heads[names][4]
    found = {}
    for name, _, _, _, start, length in heads:
        end = elf.index(b"\0", text + name)
        found[elf[text + name : end].decode()] = (start, length)
    segments, = struct.unpack_from("<Q", elf, 32)
    segment_size, segment_count = struct.unpack_from("<HH", elf, 54)
    return found, [struct.unpack_from("<I", elf, segments + number * segment_size)[0] for number in range(segment_count)]


class Names(threading.Thread):
    """A DNS server on 127.0.0.1:53 that knows one name."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 53))
        self.asked = []

    def run(self):
        while True:
            packet, sender = self.socket.recvfrom(512)
            labels, at = [], 12
            while packet[at]:
                labels.append(packet[at + 1 : at + 1 + packet[at]].decode().lower())
                at += 1 + packet[at]
            kind, = struct.unpack_from("!H", packet, at + 1)
            name = ".".join(labels)
            self.asked.append(name)
            answers = int(name == NAME and kind == 1)
            code = 0 if name == NAME else 3
            answer = struct.pack("!HHHHHH", *struct.unpack_from("!H", packet), 0x8180 | code, 1, answers, 0, 0) + packet[12 : at + 5]
            if answers:
                answer += struct.pack("!HHHIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton("127.0.0.1")
            self.socket.sendto(answer, sender)


class Archive:
    """An OCI archive: its configuration, and its layers unpacked into a folder."""

    def __init__(self, file, folder, name="root"):
        with tarfile.open(file) as tar:
            blob = lambda digest: tar.extractfile("blobs/" + digest.replace(":", "/")).read()  # noqa: E731
            index = json.load(tar.extractfile("index.json"))
            manifest = json.loads(blob(index["manifests"][0]["digest"]))
            self.config = json.loads(blob(manifest["config"]["digest"]))
            self.layers = [layer["size"] for layer in manifest["layers"]]
            self.packed = sum(self.layers)
            self.root = folder / name
            self.root.mkdir()
            for layer in manifest["layers"]:
                data = blob(layer["digest"])
                assert hashlib.sha256(data).hexdigest() == layer["digest"].partition(":")[2]
                part = folder / "layer.tar"
                part.write_bytes(data)
                with tarfile.open(part) as inner:
                    inner.extractall(self.root)
        # As built: what containers mount leaves empty files.
        self.files = {str(path.relative_to(self.root)): path.stat() for path in self.root.rglob("*") if path.is_file()}


class Container:
    """A process of the image: no capability, a root that cannot be written, the user that the image names."""

    def __init__(self, archive, folder, name, arguments, mounts=()):
        self.folder, self.name = folder / name, f"plenum-image-{os.getpid()}-{name}"
        self.folder.mkdir()
        subprocess.run(["runc", "spec"], cwd=self.folder, check=True)
        spec = json.loads((self.folder / "config.json").read_text())
        user, group = map(int, archive.config["config"]["User"].split(":"))
        spec["process"] |= {
            "terminal": False, "user": {"uid": user, "gid": group},
            "args": (archive.config["config"].get("Entrypoint") or []) + arguments,
            "env": archive.config["config"].get("Env", []), "cwd": "/", "noNewPrivileges": True,
            "capabilities": {kind: [] for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")},
        }
        spec["root"] = {"path": str(archive.root), "readonly": True}
        # The test's own network, which has only 127.0.0.1.
        spec["linux"]["namespaces"] = [each for each in spec["linux"]["namespaces"] if each["type"] != "network"]
        spec["mounts"].append({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]})
        spec["mounts"] += [{"destination": target, "type": "bind", "source": str(source), "options": ["bind", "ro"]}
                           for source, target in mounts]
        (self.folder / "config.json").write_text(json.dumps(spec))
        self.process = subprocess.Popen(["runc", "run", "--bundle", str(self.folder), self.name], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait(self):
        try:
            out, errors = self.process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            self.stop()
            raise
        return self.process.returncode, out, errors

    def stop(self, name="KILL"):
        subprocess.run(["runc", "kill", self.name, name], capture_output=True)
        out, errors = self.process.communicate(timeout=SECONDS)
        subprocess.run(["runc", "delete", "--force", self.name], capture_output=True)
        return self.process.returncode, out + errors


class Built(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="plenum-image-")
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.folder.chmod(0o755)
        archive = cls.folder / "oci.tar"
        subprocess.run([ROOT / "deploy/images/build", "--prebuilt", static.binary(), "--tag", TAG, "--oci", archive], check=True,
                       capture_output=True, env=os.environ | {"PLENUM_IMAGE_ENGINE": "buildah"})
        cls.archive = Archive(archive, cls.folder)
        # The public nginx cannot be pulled here: this machine's own is the base.
        base, archive = cls.folder / "nginx.tar", cls.folder / "web.tar"
        pack.nginx(base, BASE)
        subprocess.run([ROOT / "deploy/images/build", "--web", "--nginx", f"{BASE}={base}", "--tag", WEB_TAG, "--oci", archive],
                       check=True, capture_output=True, env=os.environ | {"PLENUM_IMAGE_ENGINE": "buildah"})
        cls.web = Archive(archive, cls.folder, "web-root")
        cls.names = Names()
        cls.names.start()
        cls.resolv = cls.folder / "resolv.conf"
        cls.resolv.write_text("nameserver 127.0.0.1\noptions timeout:2\n")
        cls._certificates()

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    @classmethod
    def _certificates(cls):
        """An authority that nobody knows, and a certificate of NAME by it."""
        make = lambda *words: subprocess.run(["openssl", *words], cwd=cls.folder, check=True, capture_output=True)  # noqa: E731
        make("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key", "-out", "ca.crt",
             "-days", "2", "-subj", "/CN=test authority")
        make("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "tls.key", "-out", "tls.csr",
             "-subj", f"/CN={NAME}")
        (cls.folder / "names").write_text(f"subjectAltName=DNS:{NAME}\nbasicConstraints=CA:FALSE\n")
        make("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names",
             "-out", "tls.crt")
        (cls.folder / "tls.key").chmod(0o644)

    def serve(self, name, tls=False):
        settings = json.loads(json.dumps(SETTINGS))
        if tls:
            settings["http_server"]["tls"] = {"enabled": True, "cert_pem": "/tls.crt", "key_pem": "/tls.key"}
            settings["http_server"]["tls_external"] = True
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(settings))
        container = Container(self.archive, self.folder, name, ["serve", "--config", "/plenum.json"], [
            (file, "/plenum.json"), (self.folder / "tls.crt", "/tls.crt"), (self.folder / "tls.key", "/tls.key")])
        self.addCleanup(container.stop)
        return self.listening(container, 8000)

    def listening(self, container, port):
        end = time.monotonic() + SECONDS / 2
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return container
            except OSError:
                self.assertIsNone(container.process.poll(), "the server ended")
                self.assertLess(time.monotonic(), end, "the server does not listen")
                time.sleep(0.1)

    def load(self, name, url, *mounts):
        client = Container(self.archive, self.folder, name, [
            "bench", "session", "--anonymous", "--url", url, "--users", "3", "--sessions", "1", "--rate", "5", "--duration", "1s",
            "--patience", "3s", "--max-p99", "20s", "--json"], [(self.resolv, "/etc/resolv.conf"), *mounts])
        return client.wait()

    def test_only_the_files_that_it_needs(self):
        self.assertEqual(set(self.archive.files), {"plenum", "etc/passwd", "etc/group", "etc/nsswitch.conf",
                                                   "etc/ssl/certs/ca-certificates.crt"})
        for name, state in self.archive.files.items():
            self.assertEqual(state.st_mode & 0o022, 0, f"{name} can be written by others")
        whole = sum(state.st_size for state in self.archive.files.values())
        print(f"      {self.archive.packed / 1e6:.1f} MB packed, {whole / 1e6:.1f} MB unpacked")
        self.assertLess(whole, MOST_BYTES)

    def test_says_what_it_is_and_runs_as_nobody_in_particular(self):
        config = self.archive.config["config"]
        self.assertEqual(config["User"], "65532:65532")
        self.assertEqual(config["Entrypoint"], ["/plenum"])
        self.assertEqual(sorted(config["ExposedPorts"]), ["8000/tcp", "9000/tcp"])
        labels = config["Labels"]
        self.assertEqual(labels["org.opencontainers.image.version"], "1")
        self.assertEqual(labels["org.opencontainers.image.licenses"], "Apache-2.0")
        for name in ("title", "description", "revision", "created"):
            self.assertTrue(labels[f"org.opencontainers.image.{name}"], name)

    def test_is_static_and_lists_its_crates(self):
        elf = (self.archive.root / "plenum").read_bytes()
        found, segments = sections(elf)
        self.assertNotIn(3, segments, "it asks for a loader of libraries")
        start, length = found[".dep-v0"]
        listed = {each["name"] for each in json.loads(zlib.decompress(elf[start : start + length]))["packages"]}
        self.assertLessEqual({"plenum", "tokio", "rustls", "async-nats", "fred"}, listed)

    def test_serves_messages_under_a_name_that_DNS_knows(self):
        server = self.serve("server")
        status, out, errors = self.load("client", f"ws://{NAME}:8000/connection/websocket")
        self.assertEqual(status, 0, errors)
        report = json.loads(out)
        self.assertGreater(report["received"], 0)
        self.assertEqual((report["lost"], report["doubled"]), (0, 0))
        self.assertIn(NAME, self.names.asked)
        status, _, errors = self.load("client-hosts", "ws://somewhere.else:8000/connection/websocket", (self._hosts(), "/etc/hosts"))
        self.assertEqual(status, 0, errors)
        status, said = server.stop("TERM")
        self.assertEqual(status, 0, said)

    def test_nginx_serves_the_web_files_and_leads_to_the_server(self):
        self.serve("server-behind")
        config = self.web.config["config"]
        self.assertEqual((config["User"], config["Labels"]["org.opencontainers.image.version"]), ("65532:65532", "1"))
        # The first layer is the base; what is ours is small.
        print(f"      {sum(self.web.layers[1:]) / 1e3:.0f} kB packed on top of nginx")
        nginx = Container(self.web, self.folder, "nginx", config["Cmd"])
        self.addCleanup(nginx.stop)
        self.listening(nginx, 8080)
        for file in PAGE.iterdir():
            request = urllib.request.Request(f"http://127.0.0.1:8080/{file.name}", headers={"Accept-Encoding": "identity"})
            with urllib.request.urlopen(request, timeout=10) as answer:
                self.assertEqual(answer.read(), file.read_bytes(), file.name)
                self.assertIn("default-src 'none'", answer.headers["Content-Security-Policy"])
        with urllib.request.urlopen("http://127.0.0.1:8080/", timeout=10) as answer:
            self.assertEqual(answer.read(), (PAGE / "index.html").read_bytes())
        status, out, errors = self.load("client-nginx", f"ws://{NAME}:8080/connection/websocket")
        self.assertEqual(status, 0, errors)
        self.assertGreater(json.loads(out)["received"], 0)
        self.assertEqual(nginx.stop("QUIT")[0], 0)

    def _hosts(self):
        file = self.folder / "hosts"
        file.write_text("127.0.0.1 somewhere.else\n")
        return file

    def test_believes_the_authorities_of_its_file_and_no_others(self):
        self.serve("server-tls", tls=True)
        url = f"wss://{NAME}:8000/connection/websocket"
        status, out, errors = self.load("client-stranger", url)
        self.assertEqual(status, 1)
        self.assertIn("UnknownIssuer", json.loads(out)["trouble"], errors)
        bundle = self.folder / "bundle.crt"
        own = self.archive.root / "etc/ssl/certs/ca-certificates.crt"
        self.assertGreater(own.read_text().count("BEGIN CERTIFICATE"), 100)
        bundle.write_text(own.read_text() + (self.folder / "ca.crt").read_text())
        status, out, errors = self.load("client-tls", url, (bundle, "/etc/ssl/certs/ca-certificates.crt"))
        self.assertEqual(status, 0, errors)
        self.assertGreater(json.loads(out)["received"], 0)


def missing():
    """Why the cases cannot run here; None if they can."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--net", "--", "true"], capture_output=True).returncode != 0:
        return "needs root, and the right to have a network of its own"
    for program in ("buildah", "runc"):
        if not shutil.which(program):
            return f"{program} is missing"
    return static.missing()


def alone():
    """Goes on in a network of its own that has only 127.0.0.1, so that ports and names are free."""
    if os.environ.get("PLENUM_ALONE"):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    # Compiled here, where there is a network still.
    os.environ |= {"PLENUM_ALONE": "1", "PLENUM_IMAGE_BINARY": str(static.binary())}
    os.execvp("unshare", ["unshare", "--net", "--", sys.executable, os.path.abspath(__file__), *sys.argv[1:]])


if __name__ == "__main__":
    if "--or-skip" in sys.argv:
        sys.argv.remove("--or-skip")
        if reason := missing():
            print(f"skip  images: {reason}\n0 passed, 0 failed, 1 skipped")
            sys.exit()
    alone()
    cases.run(sys.modules[__name__])
