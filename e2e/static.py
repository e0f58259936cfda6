"""The static plenum that suites put into images: target/image/plenum while it is newer than every source, else compiled anew."""

import os
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ("crates", "services", "Cargo.toml", "Cargo.lock", "rust-toolchain.toml", "deploy/images/compile")


def current(program, root=ROOT):
    """Whether the program was made after the last change of what it is made from."""
    if not program.exists():
        return False
    made = program.stat().st_mtime
    files = (file for name in SOURCES for file in ([root / name] if (root / name).is_file() else (root / name).rglob("*")))
    return all(file.stat().st_mtime < made for file in files if file.is_file())


def missing():
    """Why nothing can be compiled here; None if it can, or need not."""
    if os.environ.get("PLENUM_IMAGE_BINARY") or current(ROOT / "target/image/plenum") or shutil.which("cargo"):
        return None
    return "there is no cargo to compile a static program with"


def binary(given=None):
    """The program, compiled where it must be, which takes minutes: with the profile fast unless PROFILE names another."""
    given = given or os.environ.get("PLENUM_IMAGE_BINARY")
    if given:
        return pathlib.Path(given).resolve()
    program = ROOT / "target/image/plenum"
    if not current(program):
        print(f"compiling {program.relative_to(ROOT)}: it is missing, or older than a source", flush=True)
        subprocess.run([str(ROOT / "deploy/tools/install"), "auditable"], check=True)
        subprocess.run([str(ROOT / "deploy/images/compile")], check=True, env={"PROFILE": "fast"} | os.environ)
    return program
