"""What the modules with cases of the chart share."""

import os
import pathlib
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("e2e", "e2e/chart", "e2e/nginx", "deploy/stack")]
from rendering import resources, scenarios  # noqa: E402

BINARY = os.environ.get("PLENUM_BIN", str(ROOT / "target/debug/plenum"))
NGINX = ROOT / ".tools/nginx/bin/nginx"
NATS = ROOT / ".tools/nats/nats-server"
REDIS = ROOT / ".tools/redis/bin"
PROMTOOL = ROOT / ".tools/prometheus/bin/promtool"


def done(*arguments, environment=None):
    ended = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=False, env=environment)
    return ended.returncode, ended.stdout + ended.stderr


class Rendered(unittest.TestCase):
    def each(self, nginx=None):
        """Every scenario with its resources; `nginx`: those that have it."""
        for name, values in scenarios().items():
            found = resources("helm3", values)
            if nginx is None or (("ConfigMap", "plenum-nginx") in found) == nginx:
                yield name, values, found

    def succeeds(self, *arguments, environment=None):
        status, output = done(*arguments, environment=environment)
        self.assertEqual(status, 0, output)
        return output
