"""schemathesis against the served OpenAPI document: fixed seed, bounded number of examples, named checks.

Each operation of the document counts as one case.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

SEED = "20"
EXAMPLES = "40"
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "unsupported_method",
    "ignored_auth",
]

URL = os.environ["PLENUM_URL"]


def operations():
    with urllib.request.urlopen(f"{URL}/api/openapi.json", timeout=10) as response:
        document = json.loads(response.read())
    methods = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
    return [f"{m.upper()} {path}" for path, item in document["paths"].items() for m in item if m in methods]


def main():
    wanted = operations()
    schemathesis = pathlib.Path(os.environ["PLENUM_TOOLS"]) / "python/bin/schemathesis"
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.ndjson"
        command = [
            str(schemathesis), "run", f"{URL}/api/openapi.json",
            "--header", f"X-API-Key: {os.environ['PLENUM_API_KEY']}",
            "--seed", SEED, "--max-examples", EXAMPLES, "--checks", ",".join(CHECKS), "--generation-database", "none",
            "--phases", "examples,coverage,fuzzing", "--workers", "1", "--request-timeout", "10", "--no-shrink",
            "--continue-on-failure", "--report", "ndjson", "--report-ndjson-path", str(report),
        ]
        status = subprocess.run(command, cwd=folder, check=False).returncode
        failed, seen = results(report)
    for operation in sorted(failed.union(wanted)):
        print(f"{'FAIL' if operation in failed else 'ok  '}  {operation}")
    missing = [operation for operation in wanted if operation not in seen]
    for operation in missing:
        print(f"FAIL  {operation}: schemathesis did not run it")
    failures = len(failed) + len(missing)
    if status and not failures:
        print(f"FAIL  schemathesis ended with status {status}")
        failures = 1
    print(f"{len(set(wanted) & seen - failed)} passed, {failures} failed, 0 skipped")
    sys.exit(1 if failures else 0)


def results(report):
    """Names of the operations with a failure, and of all that ran, from the report's events."""
    failed, seen = set(), set()
    for line in report.read_text().splitlines() if report.exists() else []:
        scenario = json.loads(line).get("ScenarioFinished")
        if not scenario:
            continue
        label = (scenario.get("recorder") or {}).get("label") or scenario.get("label")
        seen.add(label)
        if scenario["status"] in ("failure", "error"):
            failed.add(label)
    return failed, seen


if __name__ == "__main__":
    main()
