#!/usr/bin/env python3
"""Alerts fire on what they are for, dashboards are well-formed, and both are what their generator writes."""

import json
import pathlib
import re
import subprocess
import sys
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "e2e")]
import cases  # noqa: E402

PROMTOOL = ROOT / ".tools/prometheus/bin/promtool"
RULES = sorted((ROOT / "grafana/alerts").glob("*.yaml"))
TESTS = sorted((ROOT / "grafana/tests").glob("*.yaml"))
BOARDS = sorted((ROOT / "grafana/dashboards").glob("*.json"))


class Grafana(unittest.TestCase):
    def succeeds(self, *arguments):
        done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_files_are_what_the_generator_writes(self):
        self.succeeds(sys.executable, ROOT / "grafana/generate", "--check")

    def test_rules_are_valid_and_fire_on_what_they_are_for(self):
        self.assertTrue(RULES and TESTS)
        self.succeeds(PROMTOOL, "check", "rules", "--lint=all", "--lint-fatal", *RULES)
        self.succeeds(PROMTOOL, "test", "rules", *TESTS)

    def test_every_alert_is_tested_and_described(self):
        rules = [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]
        alerts = {rule["alert"] for rule in rules if "alert" in rule}
        fired = {each["alertname"] for path in TESTS for test in yaml.safe_load(path.read_text())["tests"]
                 for each in test["alert_rule_test"] if each["exp_alerts"]}
        self.assertEqual(alerts, fired)
        manual = (ROOT / "docs/dashboards.md").read_text()
        for alert in alerts:
            self.assertIn(alert, manual)

    def test_boards_have_titles_ids_and_sources_of_their_own(self):
        boards = [json.loads(path.read_text()) for path in BOARDS]
        self.assertTrue(boards)
        self.assertEqual(len({board["uid"] for board in boards}), len(boards))
        for board in boards:
            with self.subTest(board=board["title"]):
                ids = [panel["id"] for panel in board["panels"]]
                self.assertEqual(len(ids), len(set(ids)))
                variables = {variable["name"] for variable in board["templating"]["list"]}
                for panel in board["panels"]:
                    for target in panel.get("targets", []):
                        self.assertEqual(target["datasource"]["uid"], "${datasource}")
                        used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval", "__range"}
                        self.assertLessEqual(used, variables, panel["title"])

    def test_panels_do_not_overlap(self):
        for path in BOARDS:
            taken = {}
            for panel in json.loads(path.read_text())["panels"]:
                at = panel["gridPos"]
                self.assertLessEqual(at["x"] + at["w"], 24, panel["title"])
                for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
                    self.assertNotIn(cell, taken, f"{panel['title']} lies over {taken.get(cell)}")
                    taken[cell] = panel["title"]


if __name__ == "__main__":
    cases.run(sys.modules[__name__])
