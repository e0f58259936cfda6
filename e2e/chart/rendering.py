"""The chart as Helm renders it, scenario by scenario, and the shape in which it is kept beside the tests."""

import copy
import difflib
import functools
import pathlib
import re
import subprocess

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm/plenum"
TOOLS = ROOT / ".tools/helm"
SNAPSHOTS = ROOT / "e2e/chart/snapshots"
HELMS = ("helm3", "helm4")
RELEASE, NAMESPACE = "plenum", "chat"


class _Dumper(yaml.SafeDumper):
    """Without anchors, and texts of several lines as such."""

    def ignore_aliases(self, data):
        return True


def _text(dumper, value):
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


class RenderFailed(Exception):
    """Helm refused to render; holds what it said."""


def scenarios():
    """Name of each scenario and the values file that makes it."""
    found = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}
    return found | {"ha": CHART / "values-ha.yaml", "dev": CHART / "values-dev.yaml"}


def helm(program, *arguments):
    done = subprocess.run([str(TOOLS / program), *map(str, arguments)], capture_output=True, text=True, check=False)
    # Helm tells of every symbolic link in the chart.
    said = "\n".join(line for line in done.stderr.splitlines() if "symbolic link" not in line)
    if done.returncode:
        raise RenderFailed(said + done.stdout)
    return done.stdout


@functools.cache
def text(program, values=None, *more):
    """The manifests of the chart with a values file and further arguments of `helm template`."""
    chosen = ["--values", values] if values else []
    return helm(program, "template", RELEASE, CHART, "--namespace", NAMESPACE, *chosen, *more)


def resources(program, values=None, *more):
    """The same as {(kind, name): resource}; a name that stands twice is an error."""
    return copy.deepcopy(_resources(program, values, *more))


@functools.cache
def _resources(program, values, *more):
    found = {}
    for resource in yaml.load_all(text(program, values, *more), getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if not resource:
            continue
        key = resource["kind"], resource["metadata"]["name"]
        if key in found:
            raise RenderFailed(f"{key} is rendered twice")
        found[key] = resource
    return found


def pod_templates(found):
    """(owner, pod spec, labels of the pod) of everything that starts pods."""
    for (kind, name), resource in found.items():
        if kind == "Pod":
            yield f"{kind} {name}", resource["spec"], resource["metadata"]["labels"]
        elif kind in ("Deployment", "StatefulSet", "Job", "DaemonSet"):
            template = resource["spec"]["template"]
            yield f"{kind} {name}", template["spec"], template["metadata"]["labels"]
        elif kind == "CronJob":
            template = resource["spec"]["jobTemplate"]["spec"]["template"]
            yield f"{kind} {name}", template["spec"], template["metadata"].get("labels", {})


@functools.cache
def _files():
    """Text and name of the files that the chart copies as they are; they have suites of their own."""
    paths = [path for pattern in ("files/**/*", "charts/*/files/**/*") for path in CHART.glob(pattern)]
    paths += [path for folder in CHART.glob("files/*") for path in folder.rglob("*")]
    texts = {path.read_text().strip(): path.name for path in paths if path.is_file() and path.suffix not in (".py", ".pyc")}
    return {text: name for text, name in texts.items() if text}


def _without_files(text):
    for file, name in _files().items():
        text = text.replace(file, f"(the file {name})")
    return text


def _masked(resource):
    """Without what chance or a file's text makes of it."""
    kind, spec = resource["kind"], resource.get("spec", {})
    if kind == "Secret":
        resource["data"] |= {key: "(made at the first install)" for key in resource["data"] if key != "user"}
    if kind == "ConfigMap":
        resource["data"] = {key: _without_files(value.strip()) for key, value in resource["data"].items()}
    if kind == "PrometheusRule":
        resource["spec"] = "(the file plenum.yaml)"
        return resource
    annotations = spec.get("template", {}).get("metadata", {}).get("annotations", {})
    annotations |= {key: "(checksum)" for key in annotations if key.startswith("checksum/")}
    return resource


def _shaped(found):
    return {f"{kind} {name}": yaml.dump(_masked(resource), Dumper=_Dumper, sort_keys=False, width=120)
            for (kind, name), resource in found.items()}


def snapshots():
    """File name and text of each snapshot: all resources of `default`, and what the other scenarios change in them."""
    base = _shaped(resources("helm3"))
    yield "default.yaml", "---\n".join(base[key] for key in sorted(base))
    for name, values in scenarios().items():
        if name == "default":
            continue
        mine, parts = _shaped(resources("helm3", values)), []
        for key in sorted(base | mine):
            sides = base.get(key, "").splitlines(), mine.get(key, "").splitlines()
            if not sides[1]:
                parts.append(f"=== {key}: not there")
            elif sides[0] != sides[1]:
                difference = list(difflib.unified_diff(*sides, n=2, lineterm=""))[2:]
                parts += [f"=== {key}", *(re.sub(r"^@@.*@@$", "@@", line) for line in difference)]
        yield f"{name}.diff", "\n".join(parts) + "\n"


def written(values):
    """The values of a file with the chart's own below them."""
    def merged(below, above):
        if isinstance(below, dict) and isinstance(above, dict):
            return below | {key: merged(below.get(key), value) for key, value in above.items()}
        return above

    base = yaml.safe_load((CHART / "values.yaml").read_text())
    for name, folder in (("nats", "nats"), ("redis", "redis-cluster")):
        base[name] = merged(yaml.safe_load((CHART / "charts" / folder / "values.yaml").read_text()), base[name])
    return merged(base, yaml.safe_load(pathlib.Path(values).read_text()) or {}) if values else base
