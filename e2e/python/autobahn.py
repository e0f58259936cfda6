"""Autobahn's WebSocket cases 1-7, 9 and 10 against the echo example of services/websocket.

    autobahn.py [case ...]        for example 1.1.1 or 9.*; default: all of these groups

Runs without e2e/serve: it starts the example itself. Each case of the report counts as one; 12 and 13 are about
permessage-deflate, which the server does not offer, and 8 does not exist. Autobahn gives most cases one second, so those that
failed run once more; a line says so of each that passed then.
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
sys.path.insert(0, str(ROOT / "deploy/stack"))
from cluster import free_port  # noqa: E402

CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
GOOD = {"OK", "INFORMATIONAL", "NON-STRICT"}
FEWEST = 300  # a report with fewer cases than these groups hold did not run them all
SECONDS = 240
MOST_AGAIN = 20  # where more failed it was no stall of the machine


def wait_for(port, process):
    deadline = time.monotonic() + 60
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


def order(name):
    return [int(part) for part in name.split(".")]


def fuzz(port, cases, seconds):
    """What became of each case, by name: None where it is good, else why not. Nothing when it was not done in time."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        spec = {
            "outdir": str(folder / "report"),
            "servers": [{"agent": "plenum", "url": f"ws://127.0.0.1:{port}"}],
            "cases": cases,
            "exclude-cases": [],
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        command = [str(ROOT / ".tools/autobahn/bin/wstest"), "--mode", "fuzzingclient", "--spec", str(folder / "spec.json")]
        with open(folder / "log", "w+") as log:
            try:
                subprocess.run(command, stdout=log, stderr=log, timeout=seconds, check=False, cwd=folder)
            except subprocess.TimeoutExpired:
                print(f"FAIL  Autobahn: not done within {seconds:.0f} s")
                return {}
            index = folder / "report/index.json"
            if not index.exists():
                log.seek(0)
                sys.exit("Autobahn made no report:\n" + log.read()[-2000:])
        found = {}
        for name, result in json.loads(index.read_text())["plenum"].items():
            good = result["behavior"] in GOOD and result["behaviorClose"] in GOOD
            found[name] = None if good else f"{result['behavior']}, closing {result['behaviorClose']}: {why(folder, result)}"
        return found


def repeated(port, results, seconds):
    """Runs what failed once more; `results` then hold what came of that."""
    failed = sorted((name for name, problem in results.items() if problem), key=order)
    if not failed or len(failed) > MOST_AGAIN or seconds < 30:
        return
    for name, problem in fuzz(port, failed, seconds).items():
        if not problem:
            print(f"again {name}: passed at its second run; before: {results[name]}")
        results[name] = problem


def main():
    cases = sys.argv[1:] or CASES
    echo = os.environ.get("PLENUM_ECHO", str(ROOT / "target/debug/examples/echo"))
    port, end = free_port(), time.monotonic() + SECONDS
    server = subprocess.Popen([echo, f"127.0.0.1:{port}"], stdin=subprocess.DEVNULL)
    try:
        wait_for(port, server)
        results = fuzz(port, cases, SECONDS)
        repeated(port, results, end - time.monotonic())
    finally:
        server.terminate()
        server.wait(10)
    failed = sorted((name for name, problem in results.items() if problem), key=order)
    for name in failed:
        print(f"FAIL  {name}: {results[name]}")
    wrong = len(failed) + (not results)
    if cases is CASES and 0 < len(results) < FEWEST:
        wrong += 1
        print(f"FAIL  only {len(results)} cases ran")
    print(f"{max(len(results) - wrong, 0)} passed, {wrong} failed, 0 skipped")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
