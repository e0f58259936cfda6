"""Which cases of a failed suite run once more, and whether that run passed; e2e/run asks.

A case that fails once on a busy machine and passes alone is named as unstable instead of failing everything. Where that failed on
which all cases stand (`setUpClass`, `start`, servers that did not start or end in time, a script that ended without its sum), all
of the suite runs once more. The rest keeps its failure: a suite that passed its deadline, was killed or ended with a status of its
own, as where a server panicked, or in which more than MOST cases (of Rust MOST_OF_RUST) failed."""

import json
import pathlib
import re
import subprocess

MOST = 6
MOST_OF_RUST = 8  # of about 800, a hundred of which start servers of their own
MINUTES = 15  # for all second runs together

RUST_LINE = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", re.MULTILINE)
SUITE_LINE = re.compile(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", re.MULTILINE)
# A suite's line of a failed case: `FAIL  name (1.2 s)`, or `FAIL  7.1.3: why`.
FAILED_CASE = re.compile(r"^FAIL  +(?:(.+) \(\d+(?:\.\d+)? s\)|([^:\n]+).*)$", re.MULTILINE)
# Cargo's line before the tests of a program, and before those of a crate's documentation, which have none.
RUST_PROGRAM = re.compile(r"^ +(?:Running .+ \((\S+)\)|Doc-tests \S+)$", re.MULTILINE)
RUST_FAILURES = re.compile(r"^failures:\n((?:    \S.*\n)+)\ntest result: FAILED", re.MULTILINE)
RUST_STATUS, SUITE_STATUS = 101, 1
LATE_STATUS = 71  # of e2e/serve: the servers did not start or end in time
# Names a failure that is of no case.
SUITE = "the suite"
FOUNDATION = re.compile(rf"(?:setUp|tearDown)(?:Class|Module) \(|(?:start|{SUITE})$")


def sums(line, output):
    """Passed, failed and skipped: of Rust over all programs, else as the last line says."""
    found = line.findall(output)
    if line is SUITE_LINE:
        found = found[-1:]
    return [sum(int(each[at]) for each in found) for at in range(3)]


def candidates(line, status, output, without=()):
    """The failed cases that may run again: names, of Rust (program, name); none where `without` names one of them."""
    failed = sums(line, output)[1]
    if line is RUST_LINE:
        cases = rust_failures(output) if 0 < failed <= MOST_OF_RUST and status == RUST_STATUS else []
    elif failed > MOST or status not in (SUITE_STATUS, LATE_STATUS):
        return []
    elif failed == 0:
        # Nothing but its servers failed, or the script died; not where it ran to its end and found nothing to run.
        return [SUITE] if status == LATE_STATUS or not line.search(output) else []
    else:
        cases = names(line, output)
    # Names that do not account for every failure: something else happened.
    return cases if len(cases) == failed and not set(cases) & set(without) else []


def whole(cases):
    """Whether to run all of the suite again for these."""
    return any(isinstance(case, str) and FOUNDATION.match(case) for case in cases)


def names(line, output):
    """The failed cases by name, as far as the output names them."""
    if line is RUST_LINE:
        return [name.strip() for section in RUST_FAILURES.findall(output) for name in section.splitlines()]
    return [a or b for a, b in FAILED_CASE.findall(output)]


def rust_failures(output):
    """(program, name) of each failed test; none when a program ended without its result."""
    starts = list(RUST_PROGRAM.finditer(output))
    ends = [start.start() for start in starts[1:]] + [len(output)]
    found = []
    for start, end in zip(starts, ends):
        section = output[start.end() : end]
        if not RUST_LINE.search(section):
            return []
        if names := RUST_FAILURES.search(section):
            found += [(start[1], name.strip()) for name in names[1].splitlines()]
    return [] if any(program is None for program, _ in found) else found


def passed(line, status, output):
    """Whether a second run is a success: something ran, and nothing failed."""
    ran, failed, _ = sums(line, output)
    return status == 0 and ran > 0 and failed == 0


def folder_of(program, root):
    """The folder of the crate that a test program belongs to, in which Cargo runs it; None where Cargo does not know it."""
    command = ["cargo", "test", "--workspace", "--locked", "--no-run", "--message-format", "json"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=MINUTES * 60, check=False)
    except subprocess.TimeoutExpired:
        return None
    for line in done.stdout.splitlines():
        if not line.startswith("{"):
            continue
        message = json.loads(line)
        if message.get("executable") == str(root / program):
            return pathlib.Path(message["manifest_path"]).parent
    return None
