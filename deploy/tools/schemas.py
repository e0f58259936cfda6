"""Makes the schemas that kubeconform reads.

    schemas.py WHEEL TARGET VERSION...              API of Kubernetes, out of the wheel kubernetes-validate
    schemas.py --definitions TARGET FILE.yaml...    custom resources, out of their definitions
"""

import json
import pathlib
import sys
import zipfile


def relative(node):
    """References within the folder, and no names that a reader would look up elsewhere."""
    if isinstance(node, dict):
        node.pop("$id", None)
        if isinstance(node.get("$ref"), str):
            path, mark, rest = node["$ref"].partition("#")
            node["$ref"] = path.rsplit("/", 1)[-1] + mark + rest
        for value in node.values():
            relative(value)
    elif isinstance(node, list):
        for value in node:
            relative(value)
    return node


def kubernetes(wheel, target, versions):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for version in versions:
            part = f"/v{version}.0-local-strict/"
            folder = target / f"v{version}.0-standalone-strict"
            folder.mkdir(parents=True, exist_ok=True)
            found = [name for name in names if part in name and name.endswith(".json")]
            if not found:
                sys.exit(f"schemas: {wheel} knows no Kubernetes {version}")
            for name in found:
                schema = relative(json.loads(archive.read(name)))
                (folder / name.rsplit("/", 1)[-1]).write_text(json.dumps(schema))


def strict(node):
    """No field that the definition does not name."""
    if isinstance(node, dict):
        if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
        for value in node.values():
            strict(value)
    elif isinstance(node, list):
        for value in node:
            strict(value)
    return node


def definitions(target, files):
    import yaml

    # YAML 1.1 gives a lone equals sign a meaning of its own.
    yaml.SafeLoader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)

    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        for document in yaml.safe_load_all(pathlib.Path(file).read_text()):
            if not document or document.get("kind") != "CustomResourceDefinition":
                continue
            group, kind = document["spec"]["group"], document["spec"]["names"]["kind"].lower()
            for version in document["spec"]["versions"]:
                schema = version["schema"]["openAPIV3Schema"]
                metadata = schema["properties"].pop("metadata", {})
                schema = strict(schema)
                schema["properties"]["metadata"] = metadata
                (target / f"{kind}-{group}-{version['name']}.json").write_text(json.dumps(schema))


if sys.argv[1] == "--definitions":
    definitions(pathlib.Path(sys.argv[2]), sys.argv[3:])
else:
    kubernetes(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:])
