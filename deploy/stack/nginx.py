"""nginx on loopback with the template that is shipped."""

import os
import pathlib
import resource
import signal
import subprocess
import time

from cluster import ROOT, free_port
from process import Process, clean_environment

BINARY = ROOT / ".tools/nginx/bin/nginx"
RENDER = ROOT / "nginx/render"
RELOAD_SECONDS = 30


def rendered(settings):
    """The configuration with these settings; raises where nginx/render refuses them."""
    words = [f"{name}={value}" for name, value in settings.items()]
    done = subprocess.run([str(RENDER), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return done.stdout


class Nginx(Process):
    """One nginx; configuration, temporary files and logs are in its folder. Settings are those of nginx/defaults.env."""

    def __init__(self, folder, settings, port=None, status_port=None, log_folder=None):
        if not BINARY.exists():
            raise RuntimeError(f"{BINARY} is missing: deploy/tools/install nginx")
        self.folder = pathlib.Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        logs = pathlib.Path(log_folder or folder).resolve()
        self.port, self.status_port = port or free_port(), status_port or free_port()
        self.access_log = logs / "nginx-access.log"
        self.settings = {
            "HTTP": f"127.0.0.1:{self.port}",
            "STATUS": f"127.0.0.1:{self.status_port}",
            "RUN": self.folder,
            "ACCESS_LOG": self.access_log,
            "WORKERS": 2,
            "OPEN_FILES": min(65_536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
            "CONNECTIONS": 16_384,
            # Started by root, the workers stay root: the folder may lie where nobody else may look.
            "USER": "root" if os.geteuid() == 0 else "",
            **settings,
        }
        self.config = self.folder / "nginx.conf"
        self.write()
        super().__init__(
            "nginx", [BINARY, "-c", self.config, "-g", "daemon off;"], logs / "nginx-error.log", clean_environment(),
            f"http://127.0.0.1:{self.status_port}/healthz", stop_seconds=10,
        )

    def write(self):
        self.config.write_text(rendered(self.settings))

    def check(self):
        """What nginx says to its configuration, or None when it takes it."""
        done = subprocess.run(
            [str(BINARY), "-t", "-c", str(self.config)], capture_output=True, text=True, check=False
        )
        return done.stderr if done.returncode else None

    def kill(self):
        """The master and its workers, which would go on by themselves."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def reload(self, **settings):
        """New settings: new workers have them, old ones keep their connections and, when this returns, take no more.

        Each set of workers counts connections of its own, so what comes while both take some is not spread evenly."""
        self.settings.update(settings)
        self.write()
        old = self.workers()
        self.signal(signal.SIGHUP)
        end = time.monotonic() + RELOAD_SECONDS
        while not self.workers() - old or any(self.listens(pid) for pid in old):
            if time.monotonic() > end:
                raise RuntimeError(f"nginx did not reload within {RELOAD_SECONDS} s; see {self.log_path}")
            time.sleep(0.01)

    def workers(self):
        """Process ids of the workers, also of those that only keep old connections."""
        pid = self.process.pid
        return set(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    def listens(self, pid):
        """Whether this worker still takes connections: it holds a socket that listens on the port."""
        lines = [line.split() for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]]
        listening = {f"socket:[{line[9]}]" for line in lines if line[3] == "0A" and line[1].endswith(f":{self.port:04X}")}
        try:
            return any(os.readlink(each) in listening for each in pathlib.Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            return pathlib.Path(f"/proc/{pid}").exists()  # a file was closed meanwhile: look again; or it has ended
