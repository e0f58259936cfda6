"""What the chart's pods must keep: the level `restricted` of Pod Security, rules of our own, and who may talk to whom."""

import re

# https://kubernetes.io/docs/concepts/security/pod-security-standards/, level restricted.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
PROFILES = {"RuntimeDefault", "Localhost"}
# A version of three numbers, or a digest; never a name that somebody moves.
FIXED_IMAGE = re.compile(r"^[^:@\s]+(:\d+/[^:@\s]+)?(:v?\d+\.\d+\.\d+([.-][\w.-]+)?|@sha256:[0-9a-f]{64})$")


def containers(spec):
    return [*spec.get("initContainers", []), *spec["containers"], *spec.get("ephemeralContainers", [])]


def restricted(spec):
    """Sentences that say where a pod breaks the level `restricted`."""
    pod = spec.get("securityContext", {})
    for word in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(word):
            yield f"{word} is set"
    if pod.get("sysctls"):
        yield "sysctls are set"
    for volume in spec.get("volumes", []):
        if kinds := set(volume) - {"name"} - VOLUMES:
            yield f"volume {volume['name']} is a {' '.join(kinds)}"
    for container in containers(spec):
        name, security = container["name"], container.get("securityContext", {})
        if security.get("privileged"):
            yield f"{name} is privileged"
        if security.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may get more privileges"
        if "ALL" not in security.get("capabilities", {}).get("drop", []):
            yield f"{name} keeps capabilities"
        if added := set(security.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"{name} adds {' '.join(added)}"
        if security.get("procMount", "Default") != "Default":
            yield f"{name} sees /proc unmasked"
        if security.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
            yield f"{name} may run as root"
        if security.get("runAsUser", pod.get("runAsUser")) == 0:
            yield f"{name} runs as root"
        if security.get("seccompProfile", pod.get("seccompProfile", {})).get("type") not in PROFILES:
            yield f"{name} has no seccomp profile"
        if any(port.get("hostPort") for port in container.get("ports", [])):
            yield f"{name} takes a port of the node"


def ours(owner, spec):
    """The same for what we ask beyond that."""
    if spec.get("automountServiceAccountToken") is not False:
        yield "gets a token of the cluster's API"
    if spec.get("enableServiceLinks") is not False:
        yield "gets variables for every service of the namespace"
    serves = owner.split()[0] in ("Deployment", "StatefulSet")
    if serves and not spec.get("topologySpreadConstraints"):
        yield "is not spread over nodes"
    for container in containers(spec):
        name, resources = container["name"], container.get("resources", {})
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{name} may write to its image"
        if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
            yield f"{name} has no bounds of CPU and memory"
        if not FIXED_IMAGE.match(container["image"]):
            yield f"{name} runs {container['image']}, which is no fixed version"
        probes = {"startupProbe", "livenessProbe", "readinessProbe"}
        if serves and not probes <= set(container):
            yield f"{name} has no {' '.join(sorted(probes - set(container)))}"
        names = [variable["name"] for variable in container.get("env", [])]
        if len(names) != len(set(names)):
            yield f"{name} has a variable twice"
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in probes & set(container):
            port = next(iter(set(container[probe]) & {"httpGet", "tcpSocket"}), None)
            if port and container[probe][port]["port"] not in ports:
                yield f"{name}'s {probe} asks a port that it does not name"


# --- Who may talk to whom


def matches(selector, labels):
    """Whether a label selector takes these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        there, values = labels.get(rule["key"]), rule.get("values", [])
        if {"In": there not in values, "NotIn": there in values, "Exists": there is None,
                "DoesNotExist": there is not None}[rule["operator"]]:
            return False
    return True


def _peer_matches(peer, other):
    """Whether a peer of a policy takes a pod of the release's own namespace, or `None`: any address outside of the cluster."""
    if "ipBlock" in peer:
        return other is None or peer["ipBlock"]["cidr"] == "0.0.0.0/0"
    if other is None:
        return False
    if "namespaceSelector" in peer and not matches(peer["namespaceSelector"], other["namespace"]):
        return False
    if "namespaceSelector" not in peer and other["namespace"] != OWN:
        return False
    return matches(peer.get("podSelector", {}), other["labels"])


OWN = {"kubernetes.io/metadata.name": "own"}


def _allowed(policies, way, pod, other, port):
    mine = [policy["spec"] for policy in policies
            if way.capitalize() in policy["spec"]["policyTypes"] and matches(policy["spec"]["podSelector"], pod["labels"])]
    if not mine or pod["namespace"] != OWN:
        return True
    side = "from" if way == "ingress" else "to"
    return any(
        (not rule.get(side) or any(_peer_matches(peer, other) for peer in rule[side]))
        and (not rule.get("ports") or any(each["port"] == port for each in rule["ports"]))
        for policy in mine for rule in policy.get(way, [])
    )


def may_talk(policies, one, other, port):
    """Whether the policies let pod `one` open a connection to that port of pod `other`; None stands for an address outside."""
    return (one is None or _allowed(policies, "egress", one, other, port)) and (
        other is None or _allowed(policies, "ingress", other, one, port))
