"""Runs unittest cases with one line each and the closing line that e2e/run counts."""

import signal
import sys
import time
import traceback
import unittest


CASE_SECONDS = 240  # a case that hangs is named, and the others run


class Ended(Exception):
    """A case must end now. It is none of the errors that a case expects and goes on after."""


def _too_long(*_):
    raise Ended(f"the case took longer than {CASE_SECONDS} s")


class _Lines(unittest.TestResult):
    """Prints a line as each case ends; a failed sub-case fails its case."""

    def __init__(self):
        super().__init__()
        self.counts = {"ok": 0, "FAIL": 0, "skip": 0}
        self.begin, self.problem = time.monotonic(), None

    def startTest(self, test):
        super().startTest(test)
        self.begin, self.problem = time.monotonic(), None
        signal.alarm(CASE_SECONDS)

    def addFailure(self, test, error):
        self._failed(error)

    def addError(self, test, error):
        self._failed(error)
        if not isinstance(test, unittest.TestCase):  # setUpClass and its like have no start and no end
            self._line("FAIL", str(test))

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self._failed(error)

    def addSkip(self, test, reason):
        self.problem = reason
        self._line("skip", test)

    def addUnexpectedSuccess(self, test):
        self.problem = "succeeded, though it is expected to fail"

    def _failed(self, error):
        text = "".join(traceback.format_exception(*error)).rstrip()
        self.problem = f"{self.problem or ''}\n{text}".replace("\n", "\n      ")

    def _line(self, mark, test):
        self.counts[mark] += 1
        name = getattr(test, "_testMethodName", str(test)).removeprefix("test_").replace("_", " ")
        print(f"{mark:<5} {name} ({time.monotonic() - self.begin:.1f} s){self.problem or ''}", flush=True)

    def stopTest(self, test):
        super().stopTest(test)
        signal.alarm(0)
        if not self.problem:
            self._line("ok", test)
        elif "Traceback" in self.problem or "expected to fail" in self.problem:
            self._line("FAIL", test)


def run(module):
    """Runs the cases of a module whose names contain the words after the program's name; the exit code says whether all passed."""
    signal.signal(signal.SIGALRM, _too_long)
    only = "_".join(sys.argv[1:]).replace(" ", "_")
    suite = unittest.TestSuite()
    for group in unittest.defaultTestLoader.loadTestsFromModule(module):
        cases = [case for case in group if only in case._testMethodName]
        suite.addTests(cases)
    result = _Lines()

    def told_to_end(*_):  # what was started is stopped, and no other case begins
        result.shouldStop = True
        raise Ended("told to end")

    signal.signal(signal.SIGTERM, told_to_end)
    suite.run(result)
    print("{ok} passed, {FAIL} failed, {skip} skipped".format(**result.counts), flush=True)
    sys.exit(1 if result.counts["FAIL"] else 0)
