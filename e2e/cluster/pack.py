"""Packs programs of this machine, with the libraries that they load, into images: for clusters that reach no registry.

What comes out stands in for the public images of nginx, NATS and Redis that the chart names: the same programs, a shell, and
the few commands that the chart's scripts call.
"""

import hashlib
import io
import json
import pathlib
import re
import shutil
import subprocess
import tarfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TOOLS = ROOT / ".tools"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# What the chart's scripts for nginx, NATS and Redis call; public images bring them too.
SHELL = ["sh", "awk", "cat", "cut", "dirname", "flock", "getent", "grep", "head", "readlink", "sed", "sha256sum", "sleep", "timeout", "tr",
         "wc"]
USERS = "root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\nplenum:x:65532:65532::/:/sbin/nologin\n"
GROUPS = "root:x:0:\nnogroup:x:65534:\nplenum:x:65532:\n"
PATH = "/opt/bin:/usr/local/bin:/usr/bin:/bin"


def libraries(program):
    """Libraries and loader of a program; none of a static one."""
    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True).stdout
    return sorted(set(re.findall(r"(/\S+\.so\S*)", listed)))


class Image:
    """Files of an image with one layer."""

    def __init__(self):
        self.files = {}
        self.text("/etc/passwd", USERS)
        self.text("/etc/group", GROUPS)
        # Where a name is looked up: without this file the dynamic loader's defaults differ between systems.
        self.text("/etc/nsswitch.conf", "hosts: files dns\n")

    def text(self, target, text):
        self.files[target] = text.encode()

    def program(self, source, target):
        source = pathlib.Path(source).resolve()
        self.files[target] = source
        for library in libraries(source):
            self.files[library] = pathlib.Path(library).resolve()

    def folder(self, source, target):
        source = pathlib.Path(source)
        for path in source.rglob("*"):
            if path.is_file():
                self.files[f"{target}/{path.relative_to(source)}"] = path.resolve()

    def shell(self):
        for name in SHELL:
            found = shutil.which(name)
            if not found:
                raise FileNotFoundError(f"{name} is not on this machine")
            self.program(found, f"/bin/{name}")

    def _layer(self):
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            folders = {"tmp"}
            for target in self.files:
                folders.update(str(parent).lstrip("/") for parent in pathlib.PurePosixPath(target).parents)
            for name in sorted(folders - {"", "."}):
                info = tarfile.TarInfo(name)
                info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
                tar.addfile(info)
            for target, content in sorted(self.files.items()):
                data = content if isinstance(content, bytes) else content.read_bytes()
                info = tarfile.TarInfo(target.lstrip("/"))
                info.size = len(data)
                info.mode = 0o755 if not isinstance(content, bytes) and content.stat().st_mode & 0o111 else 0o644
                tar.addfile(info, io.BytesIO(data))
        return layer.getvalue()

    def write(self, reference, archive, entrypoint=()):
        """Writes a docker archive that every container engine loads."""
        layer = self._layer()
        config = json.dumps({
            "architecture": ARCHITECTURES[subprocess.run(["uname", "-m"], capture_output=True, text=True).stdout.strip()],
            "os": "linux",
            "config": {"Env": [f"PATH={PATH}"], "User": "65532:65532", "Entrypoint": list(entrypoint) or None},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }).encode()
        manifest = json.dumps([{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]).encode()
        with tarfile.open(archive, "w") as tar:
            for name, data in (("manifest.json", manifest), ("config.json", config), ("layer.tar", layer)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def installed(image, group, programs):
    """Programs of a group of deploy/tools/install: the system's own, or unpacked with libraries of their own."""
    for program in programs:
        path = TOOLS / group / "bin" / program
        if path.is_symlink():
            image.program(path, f"/usr/local/bin/{program}")
        else:
            image.folder(TOOLS / group, "/opt")


def nginx(archive, reference):
    image = Image()
    image.shell()
    installed(image, "nginx", ["nginx"])
    image.write(reference, archive)


def redis(archive, reference):
    image = Image()
    image.shell()
    installed(image, "redis", ["redis-server", "redis-cli"])
    image.write(reference, archive)


def nats(archive, reference):
    image = Image()
    image.shell()
    image.program(TOOLS / "nats/nats-server", "/usr/local/bin/nats-server")
    image.write(reference, archive)


def server(binary, archive, reference):
    """The server's image without a builder: only for quick turns; the Dockerfile says what is in the real one."""
    image = Image()
    image.program(binary, "/plenum")
    image.files["/etc/ssl/certs/ca-certificates.crt"] = pathlib.Path("/etc/ssl/certs/ca-certificates.crt").resolve()
    image.write(reference, archive, ["/plenum"])
