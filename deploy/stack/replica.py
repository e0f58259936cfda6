"""One process of Plenum, in one of its roles."""

import json
import pathlib
import signal

from cluster import free_port
from process import Process, clean_environment


class Replica(Process):
    """`plenum ROLE` with the settings in a file of its own: `port` for clients, `internal_port` for everything else."""

    def __init__(self, role, name, folder, binary, settings, ports=None, address="127.0.0.1", log_folder=None):
        self.port, self.internal_port = ports or (free_port(), free_port())
        self.address = address
        self.settings = dict(settings)
        self.settings["http_server"] = {
            "address": address, "port": self.port, "internal_port": str(self.internal_port),
        }
        self.settings["node"] = {"name": name}
        self.config = pathlib.Path(folder) / f"{name}.json"
        self.write()
        super().__init__(
            name, [binary, role, "--config", self.config], pathlib.Path(log_folder or folder) / f"{name}.log",
            clean_environment(), f"http://{address}:{self.internal_port}/readyz",
        )

    def write(self):
        # Secrets are in it.
        self.config.touch(mode=0o600)
        self.config.write_text(json.dumps(self.settings, indent=2))

    def reload(self, **sections):
        """Writes the settings again, with these sections merged in, and tells the process."""
        for name, values in sections.items():
            self.settings[name] = {**self.settings.get(name, {}), **values}
        self.write()
        self.signal(signal.SIGHUP)
