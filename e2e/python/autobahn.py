"""Autobahn's WebSocket cases 1-7, 9 and 10 against the echo example of services/websocket.

    autobahn.py [case ...]        for example 1.1.1 or 9.*; default: all of these groups

Runs without e2e/serve: it starts the example itself. Each case of the report counts as one; 12 and 13 are about
permessage-deflate, which the server does not offer, and 8 does not exist.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
GOOD = {"OK", "INFORMATIONAL", "NON-STRICT"}
FEWEST = 300  # a report with fewer cases than these groups hold did not run them all
SECONDS = 240


def wait_for(port, process):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    sys.exit("the echo server did not start")


def why(folder, result):
    """The suite's own words on a case."""
    try:
        report = json.loads((folder / "report" / result["reportfile"]).read_text())
        return f"{report['result']}; {report['resultClose']}"
    except (OSError, KeyError, ValueError):
        return ""


def judge(folder, results):
    """Prints the cases that went wrong and gives their number."""
    wrong = 0
    for name, result in sorted(results.items(), key=lambda item: [int(part) for part in item[0].split(".")]):
        if result["behavior"] not in GOOD or result["behaviorClose"] not in GOOD:
            wrong += 1
            print(f"FAIL  {name}: {result['behavior']}, closing {result['behaviorClose']}: {why(folder, result)}")
    return wrong


def main():
    cases = sys.argv[1:] or CASES
    wstest = ROOT / ".tools/autobahn/bin/wstest"
    echo = os.environ.get("PLENUM_ECHO", str(ROOT / "target/debug/examples/echo"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([echo, f"127.0.0.1:{port}"], stdin=subprocess.DEVNULL)
    try:
        wait_for(port, server)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            spec = {
                "outdir": str(folder / "report"),
                "servers": [{"agent": "plenum", "url": f"ws://127.0.0.1:{port}"}],
                "cases": cases,
                "exclude-cases": [],
            }
            (folder / "spec.json").write_text(json.dumps(spec))
            log = open(folder / "log", "w+")
            subprocess.run(
                [str(wstest), "--mode", "fuzzingclient", "--spec", str(folder / "spec.json")],
                stdout=log, stderr=log, timeout=SECONDS, check=False, cwd=folder,
            )
            index = folder / "report/index.json"
            if not index.exists():
                log.seek(0)
                sys.exit("Autobahn made no report:\n" + log.read()[-2000:])
            results = json.loads(index.read_text())["plenum"]
            wrong = judge(folder, results)
    finally:
        server.terminate()
        server.wait(10)
    if cases is CASES and len(results) < FEWEST:
        wrong += 1
        print(f"FAIL  only {len(results)} cases ran")
    print(f"{max(len(results) - wrong, 0)} passed, {wrong} failed, 0 skipped")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
