"""schemathesis against the served OpenAPI document: fixed seed, bounded number of examples, named checks.

Runs twice: with errors told by the HTTP status, where wrong input must be refused by it, and with errors told in the
body, the default. Each operation of the document counts as one case of each run.
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
    "unsupported_method",
    "ignored_auth",
]

# How errors are told, what that leaves out, and the check that it adds. A batch and a broadcast tell the error of one
# item in its own reply, whatever the mode.
RUNS = {
    "status": (
        ["--header", "X-Centrifugo-Error-Mode: transport"], ["/api/batch", "/api/broadcast"], "negative_data_rejection",
    ),
    "body": ([], [], "positive_data_acceptance"),
}
DOCUMENT = "/api/openapi.json"
URL = os.environ["PLENUM_URL"]


def operations(without):
    """What the document names, but for these paths and the document itself, which schemathesis leaves out."""
    with urllib.request.urlopen(URL + DOCUMENT, timeout=10) as response:
        document = json.loads(response.read())
    methods = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
    paths = document["paths"].items()
    return {f"{m.upper()} {p}" for p, item in paths if p not in (DOCUMENT, *without) for m in item if m in methods}


def run(folder, arguments, check):
    """One run; gives its status, and the names of the operations that failed and of all that were tried."""
    report = pathlib.Path(folder) / "report.ndjson"
    command = [
        os.environ["PLENUM_TOOLS"] + "/python/bin/schemathesis", "run", URL + DOCUMENT,
        "--header", f"X-API-Key: {os.environ['PLENUM_API_KEY']}", *arguments,
        "--seed", SEED, "--max-examples", EXAMPLES, "--checks", ",".join([*CHECKS, check]),
        "--phases", "examples,coverage,fuzzing", "--generation-database", "none", "--workers", "1",
        "--request-timeout", "10", "--no-shrink", "--continue-on-failure",
        "--report", "ndjson", "--report-ndjson-path", str(report),
    ]
    status = subprocess.run(command, cwd=folder, check=False).returncode
    failed, tried = set(), set()
    for line in report.read_text().splitlines() if report.exists() else []:
        scenario = json.loads(line).get("ScenarioFinished")
        if scenario:
            label = (scenario.get("recorder") or {}).get("label") or scenario.get("label")
            tried.add(label)
            if scenario["status"] in ("failure", "error"):
                failed.add(label)
    return status, failed, tried


def main():
    passed = wrong = 0
    for name, (arguments, without, check) in RUNS.items():
        wanted = operations(without)
        excluded = [word for path in without for word in ("--exclude-path", path)]
        with tempfile.TemporaryDirectory() as folder:
            status, failed, tried = run(folder, arguments + excluded, check)
        failed |= wanted - tried
        if status and not failed:
            failed.add("the run as a whole")
        for operation in sorted(failed | wanted):
            print(f"{'FAIL' if operation in failed else 'ok  '}  errors by {name}: {operation}", flush=True)
        passed += len(wanted - failed)
        wrong += len(failed)
    print(f"{passed} passed, {wrong} failed, 0 skipped")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
