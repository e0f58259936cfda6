#!/usr/bin/env python3
"""The chart without a cluster: what it renders to is valid, secure, connected as drawn, and taken by nginx, NATS and Plenum."""

import json
import pathlib
import re
import shutil
import sys
import tempfile

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from base import ROOT, Rendered, done  # noqa: E402
import cases  # noqa: E402
import policy  # noqa: E402
import rendering  # noqa: E402
from readers import Readers  # noqa: E402, F401
from rendering import CHART, HELMS, NAMESPACE, TOOLS, RenderFailed, pod_templates, resources, scenarios  # noqa: E402

LARGEST_RELEASE = 700_000  # bytes; Helm keeps a release in a Secret of at most 1 MiB


def without_chance(found):
    """Resources without the secrets that each rendering makes anew."""
    return {key: {**each, "data": sorted(each["data"])} if key[0] == "Secret" else each for key, each in found.items()}


class Chart(Rendered):
    def test_helm_3_and_helm_4_render_the_same(self):
        self.assertGreaterEqual(len(scenarios()), 10)
        for name, values, found in self.each():
            with self.subTest(scenario=name):
                self.assertEqual(without_chance(found), without_chance(resources("helm4", values)))

    def test_every_resource_is_valid_for_the_oldest_kubernetes(self):
        self.valid(0)

    def test_every_resource_is_valid_for_a_current_kubernetes(self):
        self.valid(1)

    def test_every_resource_is_valid_for_the_newest_kubernetes(self):
        self.valid(2)

    def valid(self, number):
        versions = sorted((path.name.removeprefix("v").split("-")[0] for path in (TOOLS / "schemas").glob("v*-standalone-strict")),
                          key=lambda version: [int(part) for part in version.split(".")])
        self.assertEqual(len(versions), 3)
        manifests = {name: rendering.text("helm3", values, "--kube-version", versions[number])
                     for name, values in scenarios().items()}
        self.assertEqual("", self.conform(versions[number], manifests))

    def conform(self, version, manifests):
        """What kubeconform has to say against the manifests, which are all valid when it says nothing."""
        schemas = TOOLS / "schemas"
        with tempfile.TemporaryDirectory() as folder:
            for name, text in manifests.items():
                (pathlib.Path(folder) / f"{name}.yaml").write_text(text)
            _, said = done(
                TOOLS / "kubeconform", "-strict", "-kubernetes-version", version,
                "-schema-location", schemas / "{{.NormalizedKubernetesVersion}}-standalone{{.StrictSuffix}}"
                                              "/{{.ResourceKind}}{{.KindSuffix}}.json",
                "-schema-location", schemas / "custom/{{.ResourceKind}}-{{.Group}}-{{.ResourceAPIVersion}}.json", folder)
        return said

    def test_the_validation_finds_a_wrong_field(self):
        text = rendering.text("helm3", scenarios()["no-redis"])
        spoiled = {"spoiled": text.replace("minReadySeconds:", "minReadySecond:")}
        self.assertIn("minReadySecond", self.conform("1.34.0", spoiled))

    def test_an_older_kubernetes_than_the_chart_needs_is_refused(self):
        with self.assertRaisesRegex(RenderFailed, "1.29"):
            rendering.text("helm3", None, "--kube-version", "1.29.0")

    def test_helm_lint_has_nothing_to_say(self):
        for program in HELMS:
            for name, values in scenarios().items():
                with self.subTest(helm=program, scenario=name):
                    said = rendering.helm(program, "lint", "--strict", CHART, "--values", values)
                    self.assertIn("0 chart(s) failed", said)

    def test_values_that_do_not_exist_or_have_a_wrong_type_are_refused(self):
        for setting in ("websocket.replica=3", "nats.replicas=2", "redis.nodes=5", "redis.nodes=7", "nginx.service.type=Public",
                        "drain.seconds=-1", "websocket.replicas=many", "nats.syncInterval=never", "spread=Always",
                        "imageTag=latest", "nats.storageClass=fast", "externalNats.streamReplicas=2",
                        "nginx.settings.CONNECTION_PER_ADDRESS=1", "nginx.settings.PROXY_PROTOCOL=off",
                        "nginx.settings.RESOLVER_IPV6=false", "websocket.autoscaling.scaleDownSeconds=3601", "nats.storage=20GB", "redis.storage=much", "nats.maxFileStore=18G"):
            for program in HELMS:
                with self.subTest(setting=setting, helm=program):
                    with self.assertRaisesRegex(RenderFailed, r"(?i)schema"):
                        rendering.text(program, None, "--set", setting)

    def test_values_that_contradict_each_other_are_refused(self):
        for settings, said in (
            (("nats.enabled=false",), "externalNats.servers"),
            (("nginx.enabled=false", "ingress.enabled=true"), "nginx.enabled"),
            (("nats.enabled=false", "externalNats.servers={nats://a}", "backup.enabled=true"), "backup.existingSecret"),
            (("nginx.enabled=false", "httpRoute.enabled=true"), "nginx.enabled"),
            (("nginx.tls.existingSecret=tls", "ingress.enabled=true"), "end TLS at the ingress"),
            (("nginx.tls.existingSecret=tls", "httpRoute.enabled=true", "httpRoute.parentRefs[0].name=a"), "end TLS at the ingress"),
            (("httpRoute.enabled=true",), "parentRefs"),
            (("config.shutdown.drain_time=5m",), "drain.seconds"),
        ):
            with self.subTest(settings=settings):
                with self.assertRaisesRegex(RenderFailed, said):
                    rendering.text("helm3", None, *[word for setting in settings for word in ("--set", setting)])

    def test_what_is_written_from_something_else_is_current(self):
        for script in ("schema", "readme", "snapshot"):
            with self.subTest(script=script):
                self.succeeds(sys.executable, ROOT / "helm" / script, "--check")

    def test_a_packed_chart_renders_the_same_and_fits_into_a_release(self):
        with tempfile.TemporaryDirectory() as folder:
            rendering.helm("helm3", "package", CHART, "--destination", folder)
            packed = next(pathlib.Path(folder).glob("*.tgz"))
            values = scenarios()["full"]
            text = rendering.helm("helm3", "template", rendering.RELEASE, packed, "--namespace", NAMESPACE, "--values", values)
            found = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text) if each}
            self.assertEqual(without_chance(found), without_chance(resources("helm3", values)))
            # Templates and files stand in it as base64 once more, compressed.
            self.assertLess(packed.stat().st_size * 2 + len(text) // 4, LARGEST_RELEASE)

    # --- Pods

    def test_every_pod_keeps_the_level_restricted_and_our_own_rules(self):
        for name, _, found in self.each():
            with self.subTest(scenario=name):
                pods = list(pod_templates(found))
                self.assertGreaterEqual(len(pods), 4)
                for owner, spec, _ in pods:
                    self.assertEqual([], [*policy.restricted(spec), *policy.ours(owner, spec)], owner)

    def test_the_rules_find_what_they_forbid(self):
        spoiled = [
            lambda spec: spec.update(hostNetwork=True),
            lambda spec: spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
            lambda spec: spec["securityContext"].pop("seccompProfile"),
            lambda spec: spec["securityContext"].update(runAsNonRoot=False),
            lambda spec: spec["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
            lambda spec: spec["containers"][0]["securityContext"].update(capabilities={"drop": ["NET_RAW"]}),
            lambda spec: spec["containers"][0]["securityContext"].update(privileged=True),
            lambda spec: spec["containers"][0].update(image="plenum"),
            lambda spec: spec["containers"][0].update(image="plenum:latest"),
            lambda spec: spec["containers"][0].update(image="nginx:1.30-alpine"),
            lambda spec: spec["containers"][0].pop("resources"),
            lambda spec: spec.pop("automountServiceAccountToken"),
        ]
        for number, spoil in enumerate(spoiled):
            with self.subTest(number=number):
                owner, spec, _ = next(each for each in pod_templates(resources("helm3")) if each[0].startswith("Deployment"))
                spoil(spec)
                self.assertTrue([*policy.restricted(spec), *policy.ours(owner, spec)])

    def test_a_pod_has_the_time_that_its_end_takes(self):
        for name, values, found in self.each():
            with self.subTest(scenario=name):
                drain = rendering.written(values)["drain"]
                before = drain["preStopSeconds"]
                needed = before + drain["seconds"] + drain["restSeconds"]
                settings = json.loads(found["ConfigMap", "plenum-config"]["data"]["plenum.json"])["shutdown"]
                for owner, spec, labels in pod_templates(found):
                    role = labels.get("app.kubernetes.io/component")
                    if role not in ("websocket", "api", "worker"):
                        continue
                    grace = spec["terminationGracePeriodSeconds"]
                    self.assertGreater(grace, needed, owner)
                    # What the process believes it has is what is left after preStop, with something to spare.
                    self.assertLess(int(settings["grace_period"].rstrip("s")), grace - before)
                    self.assertGreaterEqual(int(settings["grace_period"].rstrip("s")), needed - before)
                    self.assertEqual(spec["containers"][0]["lifecycle"]["preStop"], {"sleep": {"seconds": before}})

    def test_liveness_looks_at_no_dependency_and_an_update_takes_no_pod_away_first(self):
        for name, _, found in self.each():
            with self.subTest(scenario=name):
                for (kind, name), each in found.items():
                    if kind != "Deployment":
                        continue
                    self.assertEqual(each["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0, name)
                    self.assertGreater(each["spec"]["minReadySeconds"], 0, name)
                    container = each["spec"]["template"]["spec"]["containers"][0]
                    self.assertIn(container["livenessProbe"]["httpGet"]["path"], ("/livez", "/healthz"))

    # --- What belongs together

    def test_names_that_resources_use_of_one_another_exist(self):
        for name, values, found in self.each():
            with self.subTest(scenario=name):
                own = {value for key, value in self.leaves(rendering.written(values))
                       if key.endswith(("existingSecret", "tlsSecret", "caSecret", "existingClaim"))}
                for owner, spec, _ in pod_templates(found):
                    for kind, used in self.used(spec):
                        if kind in ("Secret", "PersistentVolumeClaim") and used in own:
                            continue
                        self.assertIn((kind, used), found, f"{owner} of {name}")
                    account = spec.get("serviceAccountName", "default")
                    self.assertTrue(account == "default" or ("ServiceAccount", account) in found, owner)

    def leaves(self, values, path=""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from self.leaves(value, f"{path}{key}.")
            else:
                yield f"{path}{key}", value

    def used(self, spec):
        for volume in spec.get("volumes", []):
            if "configMap" in volume:
                yield "ConfigMap", volume["configMap"]["name"]
            if "secret" in volume:
                yield "Secret", volume["secret"]["secretName"]
            if "persistentVolumeClaim" in volume:
                yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        for container in policy.containers(spec):
            for variable in container.get("env", []):
                if "secretKeyRef" in variable.get("valueFrom", {}):
                    yield "Secret", variable["valueFrom"]["secretKeyRef"]["name"]

    def test_services_budgets_and_policies_select_pods_and_services_name_their_ports(self):
        for name, _, found in self.each():
            with self.subTest(scenario=name):
                pods = list(pod_templates(found))
                for (kind, title), each in found.items():
                    spec = each.get("spec", {})
                    selector = {"Service": {"matchLabels": spec.get("selector")}, "NetworkPolicy": spec.get("podSelector"),
                                "PodDisruptionBudget": spec.get("selector"), "PodMonitor": spec.get("selector")}.get(kind)
                    if selector is None:
                        continue
                    chosen = [pod for _, pod, labels in pods if policy.matches(selector, labels)]
                    self.assertTrue(chosen, f"{kind} {title} of {name} selects nothing")
                    if kind == "Service":
                        named = {port["name"]: port["containerPort"] for pod in chosen for each in pod["containers"]
                                 for port in each.get("ports", [])}
                        for port in spec["ports"]:
                            target = port.get("targetPort", port["port"])
                            self.assertIn(target, {**named, **{number: number for number in named.values()}}, title)
                    if kind == "PodDisruptionBudget":
                        self.assertEqual(len(chosen), 1, f"{title} of {name} must count pods of one kind")

    def test_names_and_labels_can_be_changed(self):
        found = resources("helm3", None, "--set", "nameOverride=talk", "--set", "commonLabels.team=a")
        self.assertIn(("Deployment", "plenum-talk-websocket"), found)
        self.assertEqual(found["Deployment", "plenum-talk-websocket"]["metadata"]["labels"]["team"], "a")
        long = resources("helm3", None, "--set", f"fullnameOverride={'x' * 60}")
        self.assertTrue(all(len(name) <= 63 for _, name in long))

    def test_a_changed_configuration_restarts_the_roles_and_only_them(self):
        def sums(*more):
            return {key: each["spec"]["template"]["metadata"].get("annotations", {}).get("checksum/config")
                    for key, each in resources("helm3", None, *more).items() if key[0] in ("Deployment", "StatefulSet")}

        before, changed = sums(), sums("--set", "config.client.ping_interval=20s")
        self.assertEqual({key[1].rsplit("-", 1)[1] for key in before if before[key] != changed[key]},
                         {"websocket", "api", "worker"})
        changed = sums("--set", "nginx.settings.CONNECTIONS=1000")
        self.assertEqual([key[1] for key in before if before[key] != changed[key]], ["plenum-nginx"])

    def test_changed_scripts_of_nginx_restart_it(self):
        def checksum(chart):
            text = rendering.helm("helm3", "template", rendering.RELEASE, chart, "--show-only", "templates/nginx.yaml")
            deployment = next(each for each in yaml.safe_load_all(text) if each["kind"] == "Deployment")
            return deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

        with tempfile.TemporaryDirectory() as path:
            chart = shutil.copytree(CHART, pathlib.Path(path) / "plenum")
            seen = [checksum(chart)]
            for file in ("files/nginx/render", "templates/nginx.yaml"):
                text = (chart / file).read_text()
                (chart / file).write_text(text.replace("#!/bin/sh", "#!/bin/sh -f"))
                seen.append(checksum(chart))
            self.assertEqual(len(set(seen)), 3)

    def test_an_autoscaled_role_always_has_a_count(self):
        found = resources("helm3", None, "--set", "websocket.autoscaling.enabled=true", "--set", "websocket.autoscaling.minReplicas=4")
        self.assertEqual(found["Deployment", "plenum-websocket"]["spec"]["replicas"], 4)

    def test_an_autoscaler_has_no_longer_period_than_kubernetes_takes(self):
        def period(*more):
            found = resources("helm3", None, "--set", "websocket.autoscaling.enabled=true", *more)
            return found["HorizontalPodAutoscaler", "plenum-websocket"]["spec"]["behavior"]["scaleDown"]["policies"][0]["periodSeconds"]

        self.assertEqual(period(), 60 + 60 + 15 + 5 + 5)
        self.assertEqual(period("--set", "drain.seconds=3600"), 1800)

    def test_an_ingress_without_a_host_names_none(self):
        spec = resources("helm3", None, "--set", "ingress.enabled=true", "--set", "ingress.tlsSecret=tls")["Ingress", "plenum"]["spec"]
        self.assertEqual(spec["tls"], [{"secretName": "tls"}])
        self.assertNotIn("host", spec["rules"][0])

    def test_the_redirect_to_https_names_a_port_that_is_not_443(self):
        def start(*more):
            return resources("helm3", None, *[word for setting in more for word in ("--set", setting)])["ConfigMap", "plenum-nginx"]["data"]["start"]

        tls = "nginx.tls.existingSecret=tls"
        self.assertIn("'HTTPS_SUFFIX=' ", start(tls))
        self.assertIn("'HTTPS_SUFFIX=:8443' ", start(tls, "nginx.service.httpsPort=8443"))

    def test_browsers_may_connect_from_where_the_chart_is_exposed_or_the_values_say(self):
        def origins(*more):
            found = resources("helm3", None, *[word for setting in more for word in ("--set", setting)])
            return json.loads(found["ConfigMap", "plenum-config"]["data"]["plenum.json"])["client"]["allowed_origins"]

        ingress = ("ingress.enabled=true", "ingress.host=a.example")
        self.assertEqual(origins(), [])
        self.assertEqual(origins(*ingress), ["https://a.example", "http://a.example"])
        self.assertEqual(origins(*ingress, "ingress.tlsSecret=tls"), ["https://a.example"])
        self.assertEqual(origins("ingress.host=a.example"), [], "there is no such ingress")
        self.assertEqual(origins("httpRoute.enabled=true", "httpRoute.parentRefs[0].name=a", "httpRoute.hostnames={b.example}"),
                         ["https://b.example", "http://b.example"])
        self.assertEqual(origins(*ingress, "allowedOrigins={https://c.example}"), ["https://c.example"])
        self.assertEqual(origins("allowedOrigins={https://c.example}", "config.client.allowed_origins={https://d.example}"),
                         ["https://d.example"])

    def test_replicas_believe_the_addresses_that_their_proxy_names(self):
        def trusted(*more):
            found = resources("helm3", None, *more)
            return json.loads(found["ConfigMap", "plenum-config"]["data"]["plenum.json"])["http_server"]["trusted_proxies"]

        self.assertIn("10.0.0.0/8", trusted())
        self.assertEqual(trusted("--set", "websocket.trustedProxies={10.1.0.0/16}"), ["10.1.0.0/16"])
        self.assertEqual(trusted("--set", "nginx.enabled=false"), [], "nobody is in front but strangers")
        self.assertEqual(trusted("--set", "nginx.enabled=false", "--set", "nginx.trustedProxies={10.2.0.0/16}"), ["10.2.0.0/16"])

    def test_helm_test_connects_where_it_can_succeed_and_is_not_there_otherwise(self):
        def way(*more):
            found = resources("helm3", None, *[word for setting in more for word in ("--set", setting)])
            pod = found.get(("Pod", "plenum-test-session"))
            self.assertEqual(pod is None, ("NetworkPolicy", "plenum-test") not in found)
            return pod and " ".join(word for word in pod["spec"]["containers"][0]["args"] if "://" in word or "--ca=" in word)

        tls, ca = "nginx.tls.existingSecret=tls", "tests.caSecret=ca"
        self.assertEqual(way(), "ws://plenum:80/connection/websocket")
        self.assertEqual(way("nginx.enabled=false"), "ws://plenum-websocket:8000/connection/websocket")
        self.assertIsNone(way(tls), "whom the certificate names is not known")
        self.assertIsNone(way("nginx.settings.PROXY_PROTOCOL=on"))
        self.assertIsNone(way("nginx.settings.PROXY_PROTOCOL=true"), "as `on` without quotes in a values file")
        self.assertEqual(way(tls, ca), "wss://plenum:443/connection/websocket --ca=/etc/plenum-ca/ca.crt")
        self.assertEqual(way(tls, "tests.host=a.example"), "wss://a.example/connection/websocket")
        self.assertEqual(way("tests.host=a.example:8080"), "ws://a.example:8080/connection/websocket")

    def test_operators_jobs_do_nothing_by_themselves_unless_they_have_a_schedule(self):
        def jobs(*more):
            found = resources("helm3", None, *[word for setting in more for word in ("--set", setting)])
            return {name: each["spec"] for (kind, name), each in found.items() if kind == "CronJob"}

        def arguments(job):
            return job["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"]

        default = jobs()
        self.assertEqual({name: job["suspend"] for name, job in default.items()}, {"plenum-doctor": True})
        self.assertIn("--min-replicas=2", arguments(default["plenum-doctor"]))
        self.assertEqual(sum("--nats-monitoring" in word for word in arguments(default["plenum-doctor"])), 3)
        self.assertEqual(jobs("doctor.enabled=false"), {})
        backup = jobs("backup.enabled=true", "doctor.schedule=0 * * * *", "websocket.autoscaling.enabled=true",
                      "websocket.autoscaling.minReplicas=4")
        self.assertEqual({name: job.get("suspend", False) for name, job in backup.items()},
                         {"plenum-doctor": False, "plenum-backup": False, "plenum-restore": True})
        self.assertEqual(arguments(backup["plenum-backup"]), ["backup", "--to=/backups", "--dated", "--keep=7"])
        self.assertEqual(arguments(backup["plenum-restore"]), ["restore", "--from=/backups", "--newest"])
        self.assertIn("--min-replicas=4", arguments(backup["plenum-doctor"]))
        chosen = jobs("backup.enabled=true", "backup.schedule=", "backup.restore=2026-11-21T03-15-00.000Z")
        self.assertTrue(chosen["plenum-backup"]["suspend"])
        self.assertEqual(arguments(chosen["plenum-restore"]), ["restore", "--from=/backups/2026-11-21T03-15-00.000Z"])

    def test_nginx_holds_all_connections_of_the_replicas_when_one_pod_is_gone(self):
        for name in ("default", "ha"):
            with self.subTest(scenario=name):
                found = resources("helm3", scenarios()[name])
                values, nginx = rendering.written(scenarios()[name]), found["Deployment", "plenum-nginx"]["spec"]
                start = found["ConfigMap", "plenum-nginx"]["data"]["start"]
                workers, connections = (int(re.search(rf"'{name}=(\d+)'", start)[1]) for name in ("WORKERS", "CONNECTIONS"))
                scaled = values["websocket"]["autoscaling"]
                replicas = scaled["maxReplicas"] if scaled["enabled"] else values["websocket"]["replicas"]
                clients = replicas * values["websocket"]["maxConnections"] / (nginx["replicas"] - 1)
                limit = nginx["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
                # README.md, "Sizes of nginx": two connections for each client; memory of a client, of the tables of a worker, and the kernel's.
                self.assertLessEqual(2 * clients, workers * connections)
                needed = clients * 22 * 1024 + workers * connections / 16384 * 9e6
                self.assertLess(needed, int(limit[:-2]) * {"Mi": 2**20, "Gi": 2**30}[limit[-2:]] * 2 / 3)

    def test_the_domain_of_the_cluster_stands_nowhere_but_in_its_value(self):
        self.assertNotIn("cluster.local", rendering.text("helm3", None, "--set", "global.clusterDomain=k8s.example"))

    # --- Who may talk to whom

    def test_policies_allow_what_the_drawing_shows_and_nothing_else(self):
        for name, _, found in self.each():
            with self.subTest(scenario=name):
                self.check_connections(name, found)

    def check_connections(self, name, found):
        policies = [each for (kind, _), each in found.items() if kind == "NetworkPolicy"]
        pods = {labels["app.kubernetes.io/component"]: {"namespace": policy.OWN, "labels": labels}
                for _, _, labels in pod_templates(found)}
        other = {"kubernetes.io/metadata.name": "other"}
        pods |= {
            "stranger": {"namespace": policy.OWN, "labels": {}}, "foreigner": {"namespace": other, "labels": {}},
            "prometheus": {"namespace": policy.OWN, "labels": {"plenum/metrics": "true"}},
            "monitoring": {"namespace": {"kubernetes.io/metadata.name": "monitoring"}, "labels": {"app.kubernetes.io/name": "prometheus"}},
            "backend": {"namespace": policy.OWN, "labels": {"plenum/api-client": "true"}},
            "dns": {"namespace": {"kubernetes.io/metadata.name": "kube-system"}, "labels": {"k8s-app": "kube-dns"}},
            "outside": None,
        }
        wanted = self.drawn(name, pods)
        ports = {"websocket": (8000, 9000), "api": (9000,), "worker": (9000,), "nginx": (8080, 8443, 8081),
                 "nats": (4222, 6222, 8222), "redis": (6379, 16379), "test": (8080,), "dns": (53, 80)}
        for one in pods:
            for end in pods:
                for port in ports.get(end, ()):
                    if one in ("stranger", "foreigner", "outside", "prometheus", "monitoring", "backend", "dns") and end == "dns":
                        continue
                    allowed = policy.may_talk(policies, pods[one], pods[end], port)
                    self.assertEqual(allowed, (one, end, port) in wanted, f"{one} → {end}:{port}")

    def drawn(self, name, pods):
        """The arrows of the architecture: (from, to, port)."""
        roles = {"websocket", "api", "worker"}
        arrows = {(role, store, port) for role in roles for store, port in (("nats", 4222), ("redis", 6379))}
        arrows |= {("nats", "nats", 6222), ("redis", "redis", 6379), ("redis", "redis", 16379)}
        # The job that makes the cluster counts as one of its nodes.
        arrows |= {("bootstrap", "redis", 6379), ("bootstrap", "redis", 16379)}
        arrows |= {(pod, "dns", 53) for pod in roles | {"nginx", "nats", "redis", "bootstrap", "test"}}
        arrows |= {("prometheus", end, port) for end, port in
                   (("websocket", 9000), ("api", 9000), ("worker", 9000), ("nginx", 8081), ("nats", 8222))}
        arrows |= {("backend", "api", 9000), ("nginx", "websocket", 8000)}
        arrows |= {("doctor", end, port) for end, port in
                   (("nats", 4222), ("nats", 8222), ("redis", 6379), ("websocket", 8000), ("api", 9000), ("nginx", 8080), ("nginx", 8443),
                    ("dns", 53))}
        arrows |= {("backup", "nats", 4222), ("backup", "dns", 53)}
        if name in ("ha", "full"):
            arrows |= {("monitoring", end, port) for end, port in (("websocket", 9000), ("api", 9000), ("worker", 9000), ("nginx", 8081))}
        anybody = {"stranger", "foreigner", "prometheus", "monitoring", "backend", "dns", "outside", "test"}
        if name == "ingress":
            arrows.add(("test", "nginx", 8080))
            arrows.add(("test", "nginx", 8443))
        else:
            arrows |= {(one, "nginx", port) for one in anybody for port in (8080, 8443)}
        if name == "loadbalancer":
            # `helm test` goes to a host whose address is not known here, on the ports of HTTP.
            arrows |= {("test", "dns", 80), ("doctor", "dns", 80)}
        if name in ("no-redis", "full"):
            arrows.add(("nginx", "api", 9000))
        if name == "no-nginx":
            arrows |= {(one, "websocket", 8000) for one in anybody}
        return {arrow for arrow in arrows if arrow[0] in pods and arrow[1] in pods}


if __name__ == "__main__":
    cases.CASE_SECONDS = 300  # helm renders every scenario in each case
    cases.run(sys.modules[__name__])
