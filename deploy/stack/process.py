"""A process of the local stack: its output in a log file, whether it is ready, how it ends."""

import os
import pathlib
import signal
import subprocess
import time
import urllib.error
import urllib.request


class Process:
    """Arguments, environment and log of one process; `ready_url` answers 200 once it serves."""

    def __init__(self, name, arguments, log_path, environment=None, ready_url=None, stop_seconds=35):
        self.name = name
        self.arguments = [str(argument) for argument in arguments]
        self.log_path = pathlib.Path(log_path)
        self.environment = environment
        self.ready_url = ready_url
        self.stop_seconds = stop_seconds
        self.stop_signal = signal.SIGTERM
        self.process = None
        self.asked = False

    def start(self):
        self.asked = False
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment,
                start_new_session=True,
            )

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def ready(self):
        if not self.running:
            raise RuntimeError(f"{self.name} ended with status {self.process.returncode}; see {self.log_path}")
        try:
            with urllib.request.urlopen(self.ready_url, timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, seconds=30):
        wait_ready([self], seconds)

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def ask_to_stop(self):
        """Sends the signal, once: a second one would hurry it."""
        if self.running and not self.asked:
            self.asked = True
            self.process.send_signal(self.stop_signal)

    def stop(self):
        """Ends it, at last by force; gives its status."""
        self.ask_to_stop()
        if self.process is None:
            return None
        try:
            return self.process.wait(self.stop_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.returncode


def wait_ready(processes, seconds=30):
    """Polls until all of them serve."""
    end = time.monotonic() + seconds
    waiting = list(processes)
    while waiting := [process for process in waiting if not process.ready()]:
        if time.monotonic() > end:
            names = ", ".join(process.name for process in waiting)
            raise RuntimeError(f"not ready within {seconds} s: {names}; see {waiting[0].log_path}")
        time.sleep(0.05)


def clean_environment(**settings):
    """The environment without settings of Plenum that happen to be in it, and with these."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PLENUM_")}
    environment.update(settings)
    return environment
