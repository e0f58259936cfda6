#!/usr/bin/env python3
"""e2e/run itself: what it counts, which failed cases it runs again, and when it must still end with a failure."""

import contextlib
import importlib.machinery
import importlib.util
import io
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "e2e"))
import again  # noqa: E402
import cases  # noqa: E402
import static  # noqa: E402
from again import RUST_LINE, SUITE_LINE  # noqa: E402

ONE, TWO = "target/debug/deps/plenum_api-1f", "target/debug/deps/doctor-2e"
RUST = f"""
     Running unittests src/lib.rs ({ONE})

running 2 tests
test limits::ours ... FAILED
test limits::theirs ... ok

failures:

---- limits::ours stdout ----
failures:
    a word of the test itself

failures:
    limits::ours

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s

     Running tests/doctor.rs ({TWO})

running 3 tests

failures:
    a
    b::c

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s

   Doc-tests plenum_api

running 0 tests

test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

"""
SUITE = """ok    one (0.1 s)
FAIL  two: after a reload (11.3 s)
      Traceback (most recent call last):
FAIL  7.1.3: UNCLEAN, closing OK: it was late
1 passed, 2 failed, 0 skipped
"""
# A suite of which the cases named by its first word fail; those with `once` in their name only until they were run once.
FAKE = """
import pathlib, sys
words, only = sys.argv[1].split(), " ".join(sys.argv[2:])
passed = failed = 0
for name in ["steady", *words]:
    if only in name:
        seen = pathlib.Path(name)
        bad = name != "steady" and not ("once" in name and seen.exists())
        seen.touch()
        print(f"FAIL  {name} (0.1 s)" if bad else f"ok    {name} (0.1 s)")
        passed, failed = passed + (not bad), failed + bad
print(f"{passed} passed, {failed} failed, 0 skipped")
sys.exit(%s)
"""
# A case that needs what `setUpClass` makes; it cannot the first time.
FOUNDED = """
import pathlib, sys, unittest
sys.path.insert(0, sys.argv.pop(1))
import cases

class Founded(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        seen = pathlib.Path("seen")
        first = not seen.exists()
        seen.touch()
        assert not first

    def test_one(self): pass
    def test_two(self): pass

cases.run(sys.modules[__name__])
"""
# Cases of which the first waits for good, having started a process that a signal to its group would not reach.
WAITING = """
import subprocess, sys, time, unittest
sys.path.insert(0, sys.argv.pop(1))
import cases

class Waiting(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.started = subprocess.Popen(["sleep", "300"], start_new_session=True)
        cls.addClassCleanup(lambda: (cls.started.kill(), cls.started.wait()))
        print(cls.started.pid, flush=True)

    def test_1(self):
        while True:
            try:
                print("waits", flush=True)
                time.sleep(300)
            except OSError:
                pass

    def test_2(self): self.test_1()

cases.run(sys.modules[__name__])
"""
CRATE = """
#[cfg(test)]
mod tests {
    #[test]
    fn steady() {}

    #[test]
    fn once() {
        let seen = std::path::Path::new("src/seen");
        let first = !seen.exists();
        std::fs::write(seen, "").unwrap();
        assert!(!first);
    }

    #[test]
    fn broken() {
        panic!("always");
    }
}
"""


def loaded():
    """e2e/run as a module of its own."""
    loader = importlib.machinery.SourceFileLoader("run_under_test", str(ROOT / "e2e/run"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("run_under_test", loader))
    sys.modules["run_under_test"] = module
    loader.exec_module(module)
    return module


class Parsing(unittest.TestCase):
    def test_failed_tests_of_rust_are_known_with_their_program(self):
        self.assertEqual(again.sums(RUST_LINE, RUST), [2, 3, 0])
        self.assertEqual(again.candidates(RUST_LINE, 101, RUST), [(ONE, "limits::ours"), (TWO, "a"), (TWO, "b::c")])

    def test_a_test_program_that_died_gets_no_second_run(self):
        dead = RUST.replace("test result: ok. 0 passed", "error: test failed")
        self.assertEqual(again.candidates(RUST_LINE, 101, dead), [])

    def test_a_failed_example_in_a_document_gets_no_second_run(self):
        head, tail = RUST.split("   Doc-tests")
        tail = tail.replace("test result: ok. 0 passed; 0 failed", "failures:\n    src/lib.rs\n\ntest result: FAILED. 0 passed; 1 failed")
        head = head.replace("2 failed", "1 failed").replace("    b::c\n", "")
        self.assertEqual(again.candidates(RUST_LINE, 101, f"{head}   Doc-tests{tail}"), [])

    def test_failed_cases_of_a_suite_are_known_by_name(self):
        self.assertEqual(again.candidates(SUITE_LINE, 1, SUITE), ["two: after a reload", "7.1.3"])

    def test_no_second_run_after_a_deadline_another_status_or_too_many_failures(self):
        many = "".join(f"FAIL  {number} (1 s)\n" for number in range(7)) + "0 passed, 7 failed, 0 skipped\n"
        unnamed = SUITE.replace("2 failed", "3 failed")
        for status, output in [(None, SUITE), (70, SUITE), (-9, SUITE), (0, SUITE), (1, many), (1, unnamed), (70, ""), (-9, ""),
                               (0, "0 passed, 0 failed, 0 skipped\n")]:
            with self.subTest(status=status, output=output[-40:]):
                self.assertEqual(again.candidates(SUITE_LINE, status, output), [])
        self.assertEqual(again.candidates(SUITE_LINE, 1, SUITE, without=("7.1.3",)), [])

    def test_all_of_a_suite_runs_again_where_its_foundation_failed(self):
        founded = "FAIL  setUpClass (  main  .Whole) (0.1 s)\n1 passed, 1 failed, 0 skipped\n"
        started = "FAIL  start: not ready\n0 passed, 1 failed, 0 skipped\n"
        for status, output in [(1, founded), (1, started), (71, "1 passed, 0 failed, 0 skipped\n"), (71, ""), (1, "Traceback\n")]:
            with self.subTest(status=status, output=output):
                self.assertTrue(again.whole(again.candidates(SUITE_LINE, status, output)))
        self.assertFalse(again.whole(again.candidates(SUITE_LINE, 71, SUITE)), "its cases tell it alone")
        self.assertFalse(again.whole(["a start", "start again"]))

    def test_a_second_run_in_which_nothing_ran_is_no_success(self):
        self.assertFalse(again.passed(SUITE_LINE, 0, "0 passed, 0 failed, 0 skipped\n"))
        self.assertFalse(again.passed(SUITE_LINE, 1, "1 passed, 0 failed, 0 skipped\n"))
        self.assertTrue(again.passed(SUITE_LINE, 0, "1 passed, 0 failed, 0 skipped\n"))


class Whole(unittest.TestCase):
    def outcome(self, *suites, status="1 if failed else 0", filtered=True):
        """Exit status and lines of a run with suites whose given cases fail."""
        with tempfile.TemporaryDirectory() as folder:
            module = loaded()
            module.ROOT, module.BUILD = pathlib.Path(folder), ["true"]
            script = pathlib.Path(folder) / "fake.py"
            script.write_text(FAKE % status)
            module.SUITES = {
                f"fake-{at}": module.Suite([], [sys.executable, str(script), words], 1, served=False, filtered=filtered)
                for at, words in enumerate(suites)
            }
            return self.run_of(module)

    def run_of(self, module):
        printed, arguments, sys.argv = io.StringIO(), sys.argv, ["run"]
        try:
            with contextlib.redirect_stdout(printed), self.assertRaises(SystemExit) as ended:
                module.main()
        finally:
            sys.argv = arguments
        return ended.exception.code, printed.getvalue().splitlines()

    def test_a_test_of_rust_runs_again_in_the_folder_of_its_crate(self):
        with tempfile.TemporaryDirectory() as folder:
            crate = pathlib.Path(folder).resolve() / "inner"
            (crate / "src").mkdir(parents=True)
            (crate.parent / "Cargo.toml").write_text('[workspace]\nmembers = ["inner"]\nresolver = "3"\n')
            (crate / "Cargo.toml").write_text('[package]\nname = "inner"\nversion = "0.1.0"\nedition = "2024"\n')
            (crate / "src/lib.rs").write_text(CRATE)
            shutil.copy(ROOT / "rust-toolchain.toml", crate.parent)
            module = loaded()
            module.ROOT, module.BUILD = crate.parent, ["cargo", "generate-lockfile", "--offline"]
            command = ["cargo", "test", "--workspace", "--no-fail-fast", "--locked"]
            module.SUITES = {"rust": module.Suite([], command, 5, RUST_LINE, served=False)}
            status, lines = self.run_of(module)
        self.assertEqual((status, lines[-1]), (1, "total: 2 passed, 1 failed, 0 skipped"), "\n".join(lines))
        self.assertRegex(lines[-3], r"^unstable: rust: inner-\w+ tests::once passed at its second run$")
        self.assertEqual(lines[-2], "FAILED rust: tests::broken")
        self.assertTrue([line for line in lines if "tests::broken ... FAILED" in line])
        self.assertFalse([line for line in lines if line.startswith("test tests::steady")])

    def test_without_a_failure_nothing_runs_twice(self):
        status, lines = self.outcome("")
        self.assertEqual((status, lines[-1]), (0, "total: 1 passed, 0 failed, 0 skipped"))
        self.assertFalse([line for line in lines if "second run" in line])

    def test_a_case_that_passes_alone_is_named_as_unstable(self):
        status, lines = self.outcome("", "fails-once")
        self.assertEqual((status, lines[-1]), (0, "total: 3 passed, 0 failed, 0 skipped"))
        self.assertEqual(lines[-2], "unstable: fake-1: fails-once passed at its second run")

    def test_a_case_that_fails_twice_fails_everything(self):
        status, lines = self.outcome("broken other-once", "third-once")
        self.assertEqual((status, lines[-1]), (1, "total: 4 passed, 1 failed, 0 skipped"))
        self.assertEqual([line.split()[2] for line in lines if line.startswith("unstable")], ["other-once", "third-once"])
        self.assertEqual(lines[-2], "FAILED fake-0: broken")

    def test_too_many_failures_and_a_suite_that_died_fail_at_once(self):
        for words, status in [("a-once b-once c-once d-once e-once f-once g-once", "1 if failed else 0"), ("a-once", "70"), ("", "9")]:
            with self.subTest(words=words, status=status):
                code, lines = self.outcome(words, status=status)
                self.assertEqual(code, 1)
                self.assertTrue(lines[-2].startswith("FAILED fake-0: "), lines[-2])
                self.assertFalse([line for line in lines if "second run" in line])

    def test_a_suite_without_a_filter_runs_again_as_a_whole_and_once(self):
        status, lines = self.outcome("fails-once other-once", filtered=False)
        self.assertEqual((status, lines[-1]), (0, "total: 3 passed, 0 failed, 0 skipped"))
        self.assertEqual(len([line for line in lines if line.startswith("=== second run")]), 1)
        self.assertEqual([line.split()[2] for line in lines if line.startswith("unstable")], ["fails-once", "other-once"])

    def test_where_only_the_servers_of_a_suite_were_late_all_of_it_runs_again(self):
        status, lines = self.outcome("", status="0 if pathlib.Path('late').exists() else pathlib.Path('late').touch() or 71")
        self.assertEqual((status, lines[-1]), (0, "total: 1 passed, 0 failed, 0 skipped"), "\n".join(lines))
        self.assertEqual(lines[-2], "unstable: fake-0: the suite passed at its second run")
        status, lines = self.outcome("", status="71")
        self.assertEqual((status, lines[-1]), (1, "total: 1 passed, 1 failed, 0 skipped"))

    def test_where_setUpClass_failed_all_of_the_suite_runs_again(self):
        with tempfile.TemporaryDirectory() as folder:
            module = loaded()
            module.ROOT, module.BUILD = pathlib.Path(folder), ["true"]
            (pathlib.Path(folder) / "founded.py").write_text(FOUNDED)
            module.SUITES = {"founded": module.Suite([], [sys.executable, "founded.py", str(ROOT / "e2e")], 1, served=False)}
            status, lines = self.run_of(module)
        self.assertEqual((status, lines[-1]), (0, "total: 2 passed, 0 failed, 0 skipped"), "\n".join(lines))

    def test_what_outlives_a_suite_does_not_hold_up_the_runner(self):
        begin = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            status, output = loaded().run(["sh", "-c", "sleep 300 & echo done"], 10)
        self.assertEqual((status, output), (0, "done\n"))
        self.assertLess(time.monotonic() - begin, 200)

    def test_tools_whose_installation_fails_are_tried_again(self):
        for script, attempts, wanted in (("test -e twice", 3, 0), ("exit 3", 1, 3), ("exit 1", 3, 1)):
            with self.subTest(script=script), tempfile.TemporaryDirectory() as path:
                folder, module = pathlib.Path(path), loaded()
                module.ROOT, module.INSTALL_PAUSE = folder, 0
                program = folder / "deploy/tools/install"
                program.parent.mkdir(parents=True)
                program.write_text(f"#!/bin/sh\necho >>tried\n[ ! -e once ] || touch twice\ntouch once\n{script}\n")
                program.chmod(0o755)
                with contextlib.redirect_stdout(io.StringIO()):
                    status, _ = module.install(["any"])
                tried = len((folder / "tried").read_text())
            self.assertEqual((status, tried), (wanted, attempts if wanted else 2))

    def test_a_suite_that_is_told_to_end_begins_no_other_case_and_ends_what_it_started(self):
        with tempfile.TemporaryDirectory() as folder:
            script = pathlib.Path(folder) / "waiting.py"
            script.write_text(WAITING)
            suite = subprocess.Popen([sys.executable, script, ROOT / "e2e"], stdout=subprocess.PIPE, text=True)
            started = int(suite.stdout.readline())
            self.assertEqual(suite.stdout.readline(), "waits\n")
            suite.send_signal(signal.SIGTERM)
            rest, _ = suite.communicate(timeout=60)
        self.assertNotIn("waits", rest)
        self.assertEqual((suite.returncode, rest.splitlines()[-1]), (1, "0 passed, 1 failed, 0 skipped"))
        with self.assertRaises(ProcessLookupError):
            os.kill(started, 0)

    def test_a_program_that_is_older_than_a_source_is_not_packed(self):
        with tempfile.TemporaryDirectory() as path:
            root = pathlib.Path(path)
            program, sources = root / "plenum", [root / "Cargo.lock", root / "crates/a/src/lib.rs", root / "deploy/images/compile"]
            self.assertFalse(static.current(program, root), "there is none")
            for number, file in enumerate((*sources, root / "docs/a.md", program)):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
                os.utime(file, (number, number))
            self.assertTrue(static.current(program, root))
            os.utime(root / "docs/a.md", (99, 99))
            self.assertTrue(static.current(program, root), "it is not made from that")
            for source in sources:
                os.utime(source, (99, 99))
                self.assertFalse(static.current(program, root), source)
                os.utime(source, (0, 0))

    def test_when_the_time_for_second_runs_is_over_the_failure_stays(self):
        minutes, again.MINUTES = again.MINUTES, 0
        try:
            status, lines = self.outcome("fails-once")
        finally:
            again.MINUTES = minutes
        self.assertEqual((status, lines[-1]), (1, "total: 1 passed, 1 failed, 0 skipped"))


if __name__ == "__main__":
    cases.run(sys.modules[__name__])
