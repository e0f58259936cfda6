"""deploy/compose.yaml without an engine: read and checked as `docker compose` does, and each program asked what it says to its
settings.

    e2e/compose/compose_cases.py [words of a case]
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "e2e"))
import cases  # noqa: E402

TOOLS = ROOT / ".tools"
READER = TOOLS / "compose/reader"  # e2e/compose, built by deploy/tools/install
FILE = ROOT / "deploy/compose.yaml"
BINARY = ROOT / "target/debug/plenum"
SERVER = ("websocket", "api", "worker")


def output(words, **more):
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)
    if done.returncode:
        raise AssertionError(f"{words}: {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout


class Compose(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="plenum-compose-")
        cls.folder = pathlib.Path(cls.temporary.name)
        # The secrets as the script makes them, beside the project's own.
        (cls.folder / "compose").mkdir()
        shutil.copy(ROOT / "deploy/compose/secrets", cls.folder / "compose/secrets")
        output([cls.folder / "compose/secrets"])
        cls.secrets = dict(line.split("=", 1) for line in (cls.folder / ".env").read_text().splitlines())
        done = subprocess.run([READER, FILE], capture_output=True, text=True, env=os.environ | cls.secrets)
        assert done.returncode == 0, done.stderr
        cls.project = json.loads(done.stdout)
        cls.services = cls.project["services"]

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def test_secrets_are_made_once_and_needed(self):
        file = self.folder / ".env"
        before = file.read_text()
        output([self.folder / "compose/secrets"])
        self.assertEqual(file.read_text(), before)
        self.assertEqual(file.stat().st_mode & 0o777, 0o600)
        # A file of before some secret was needed gets that one.
        lines = before.splitlines(keepends=True)
        file.write_text("".join(lines[:-1]))
        output([self.folder / "compose/secrets"])
        self.assertTrue(file.read_text().startswith("".join(lines[:-1]) + lines[-1].split("=")[0]))
        file.write_text(before)
        self.assertTrue(all(len(value) == 40 for value in self.secrets.values()))
        done = subprocess.run([READER, FILE], capture_output=True, text=True)
        self.assertIn("run deploy/compose/secrets", done.stderr)

    def test_all_parts_are_there(self):
        self.assertEqual(self.services["websocket"]["deploy"]["replicas"], 3)
        for count, kind in ((3, "nats"), (6, "redis")):
            self.assertEqual(len([name for name in self.services if re.fullmatch(f"{kind}-[0-9]", name)]), count)
        self.assertLessEqual({"nginx", "api", "worker", "prometheus", "grafana", "traces"}, set(self.services))

    def test_images_are_named_by_version_and_those_of_the_chart(self):
        chart, version = {}, re.search(r'appVersion: "?([^"\s]+)', (ROOT / "helm/plenum/Chart.yaml").read_text())[1]
        for file in (ROOT / "helm/plenum").rglob("values.yaml"):
            chart |= dict(re.findall(r"repository: (\S+)\n(?:\s+#.*\n)*\s+tag: (\S+)", file.read_text()))
        for name, service in self.services.items():
            repository, _, tag = service["image"].rpartition(":")
            self.assertRegex(tag, r"\d+\.\d+\.\d+", name)
            short = repository.removeprefix("docker.io/library/")
            if short in chart:
                # Images of our own have the version of the chart.
                self.assertEqual(tag, chart[short].strip('"') or version, name)

    def test_only_this_machine_reaches_a_port(self):
        for name, service in self.services.items():
            for port in service.get("ports", []):
                self.assertEqual(port["host_ip"], "127.0.0.1", name)

    def test_what_is_mounted_is_there(self):
        for name, service in self.services.items():
            for volume in service.get("volumes", []):
                if volume["type"] == "bind":
                    self.assertTrue(pathlib.Path(volume["source"]).exists(), f"{name}: {volume['source']}")
        for name in ("websocket", "nginx"):
            build = self.services[name]["build"]
            file = pathlib.Path(build["context"]) / build["dockerfile"]
            self.assertRegex(file.read_text(), rf"(?m)^FROM \S+ AS {build['target']}$")

    def test_servers_may_not_write_and_have_no_rights(self):
        for name, service in self.services.items():
            if name in ("prometheus", "grafana", "traces"):
                continue
            self.assertTrue(service.get("read_only"), name)
            self.assertEqual(service.get("cap_drop"), ["ALL"], name)
            self.assertEqual(service.get("security_opt"), ["no-new-privileges:true"], name)

    def test_the_server_takes_its_settings(self):
        for role in SERVER:
            service = self.services[role]
            mount = next(each for each in service["volumes"] if each["target"] == service["environment"]["PLENUM_CONFIG"])
            environment = {key: value for key, value in service["environment"].items() if key != "PLENUM_CONFIG"}
            output([BINARY, "config", "check", "--config", mount["source"]], env=environment)
            # A replica that comes back empty must not get all clients in one moment.
            client = json.loads(pathlib.Path(mount["source"]).read_text())["client"]
            self.assertGreater(client.get("connection_rate_limit", 0), 0)

    def test_nginx_takes_its_settings(self):
        script = self.services["nginx"]["command"][2]
        render = re.search(r"render (.*?) >/tmp/nginx.conf", script)[1].split()
        configuration = self.folder / "nginx.conf"
        configuration.write_text(output([ROOT / "nginx/render", *render, f"RUN={self.folder}", "OPEN_FILES=4096", "CONNECTIONS=1024",
                                         f"ACCESS_LOG={self.folder}/access.log"]))
        output([TOOLS / "nginx/bin/nginx", "-t", "-c", configuration])
        root = re.search(r"root (\S+);", configuration.read_text())[1]
        self.assertIn(f" {root}/\n", (ROOT / "deploy/images/Dockerfile").read_text(), "the files of the web image")

    def test_NATS_takes_its_settings(self):
        for number in range(3):
            environment = self.services[f"nats-{number}"]["environment"]
            output([TOOLS / "nats/nats-server", "-t", "-c", ROOT / "deploy/nats/compose.conf"], env=environment)
            self.assertEqual(environment["SERVER"], f"nats-{number}")

    def test_prometheus_takes_its_settings(self):
        output([TOOLS / "prometheus/bin/promtool", "check", "config", ROOT / "deploy/compose/prometheus.yml"])

    def test_Redis_nodes_have_the_names_that_their_scripts_use(self):
        for number in range(6):
            service = self.services[f"redis-{number}"]
            name = f"{service['environment']['BASE']}-{number}.{service['environment']['HEADLESS']}"
            self.assertIn(name, service["networks"]["default"]["aliases"])
            self.assertEqual(service["environment"]["POD_NAME"], f"redis-{number}")
        scripts = "".join((ROOT / f"helm/plenum/charts/redis-cluster/files/{name}").read_text() for name in ("start", "bootstrap"))
        for variable in set(re.findall(r"\$\{?([A-Z_]{4,})", scripts)) - {"POD_IP"}:
            self.assertIn(variable, self.services["redis-0"]["environment"])


if __name__ == "__main__":
    cases.run(sys.modules[__name__])
