"""What must hold between k8s/ and the program. In: the rendered objects by overlay, the tree, the built programs. Out: what is wrong, one
line each. Each assertion is proved by a change that it must notice (`MUTATIONS`). Caller: k8s_check.py."""

import copy
import os
import pathlib
import re
import subprocess
import tempfile
import tomllib
import urllib.parse

WORKLOADS = ("Deployment", "CronJob", "Job")
# Between the end of the drain (server.drain_timeout_ms) and the end of the process.
AFTER_DRAIN_S = 5


def run(root, overlays, programs):
    """All assertions on all overlays, then the proofs that each can fail."""
    facts = Facts(root, programs)
    wrong = facts.scripts()
    for name, objects in overlays.items():
        wrong += [f"{name}: {line}" for line in judge(facts, objects)]
    if not wrong:
        wrong = unnoticed(facts, overlays)
        count = sum(len(objects) for objects in overlays.values())
        print(f"k8s-check: {count} objects in {len(overlays)} overlays, {len(MUTATIONS)} wrong changes noticed")
    return wrong


def judge(facts, objects):
    overlay = Overlay(objects)
    checks = (images, resources, contexts, probes, grace, references, ports, policies, scaling, monitoring)
    return [line for check in checks for line in check(overlay, facts)] + settings(overlay, facts) + flags(overlay, facts)


class Facts:
    """The program's side: settings, flags, metrics, routes."""

    def __init__(self, root, programs):
        self.root, self.programs = root, programs
        self.defaults = tomllib.loads((root / "src/config/default.toml").read_text())
        self.version = tomllib.loads((root / "Cargo.toml").read_text())["workspace"]["package"]["version"]
        table = (root / "src/telemetry/metrics.rs").read_text()
        self.metrics = {
            name: (kind, set(re.findall(r'"(\w+)"', labels)))
            for kind, labels, name in re.findall(r'\w+: (\w+) \[([^]]*)\] "(taiji_\w+)"', table)
        }
        self.routes = set(re.findall(r'\.route\("(/\w+)"', (root / "src/admin/mod.rs").read_text()))
        self.secret = set(re.findall(r"^  ([a-z-]+): ", (root / "k8s/secret.example.yaml").read_text(), re.M)) - {"name", "namespace"}
        self.helps, self.verdicts = {}, {}

    def help(self, *command):
        if command not in self.helps:
            done = subprocess.run([self.programs / command[0], *command[1:], "--help"], capture_output=True, text=True)
            self.helps[command] = done.stdout if done.returncode == 0 else ""
        return self.helps[command]

    def accepts(self, settings_text, environment):
        """What `taiji check-config` says against a pod's settings; empty = nothing."""
        key = (settings_text, tuple(sorted(environment.items())))
        if key not in self.verdicts:
            with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
                file.write(settings_text)
                file.flush()
                command = [self.programs / "taiji", "check-config", "--config", file.name]
                plain = {name: value for name, value in os.environ.items() if not name.startswith("TAIJI__")}
                done = subprocess.run(command, env=plain | environment, capture_output=True, text=True)
            self.verdicts[key] = "" if done.returncode == 0 else done.stderr.strip()
        return self.verdicts[key]

    def scripts(self):
        """The trainer's script: its commands' flags are known, and it gives the recipe the number after the newest."""
        folder = self.root / "k8s/components/trainer"
        script = folder / "train.sh"
        wrong = []
        for command, rest in re.findall(r"^(?:exec )?taiji-trainer (\w+) (.*)$", script.read_text(), re.M):
            text = self.help("taiji-trainer", command)
            wrong += [f"train.sh: taiji-trainer {command} has no {flag}" for flag in re.findall(r"--[a-z-]+", rest) if flag not in text]
        for there, expected in (((), 1), (("1",), 2), (("1", "9", "10", ".11.new", "old"), 11)):
            with tempfile.TemporaryDirectory() as temporary:
                wrong += self.epoch(folder, pathlib.Path(temporary), there, expected)
        return wrong

    def epoch(self, folder, temporary, there, expected):
        models, work, path = temporary / "models", temporary / "work", temporary / "bin"
        for one in there:
            (models / "demo" / one).mkdir(parents=True)
        path.mkdir()
        # The program itself, which judges the recipe, but trains nothing: `run` becomes `plan`, which knows no --out.
        trainer = path / "taiji-trainer"
        real = (self.programs / "taiji-trainer").resolve()
        trainer.write_text(f'#!/bin/sh\n[ "$1" = fetch ] && exit 0\nexec "{real}" plan "$2" "$3" "$4" "$5" "$6" "$7"\n')
        trainer.chmod(0o755)
        environment = os.environ | {"PATH": f"{path}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(temporary / "cache")}
        command = ["sh", folder / "train.sh", folder / "recipe.toml", models, work]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            return [f"train.sh ended with {done.returncode}: {done.stderr.strip()[-300:]}"]
        got = tomllib.loads((work / "recipe.toml").read_text())["epoch"]
        return [] if got == expected else [f"train.sh makes epoch {got} beside {there}, not {expected}"]


class Overlay:
    """One overlay's objects, and where the pods are in them."""

    def __init__(self, objects):
        self.objects = objects
        self.pods = []  # (name of the workload, labels, pod spec)
        for one in objects:
            if one["kind"] in WORKLOADS:
                spec = one["spec"] if one["kind"] != "CronJob" else one["spec"]["jobTemplate"]["spec"]
                template = spec["template"]
                self.pods.append((f"{one['kind']} {one['metadata']['name']}", template["metadata"]["labels"], template["spec"]))

    def of(self, *kinds):
        return [one for one in self.objects if one["kind"] in kinds]

    def containers(self):
        for name, _, pod in self.pods:
            for container in pod.get("initContainers", []) + pod["containers"]:
                yield f"{name}: container {container['name']}", pod, container

    def serving(self):
        """Pods that run `taiji serve`, with their container."""
        for name, labels, pod in self.pods:
            for container in pod["containers"]:
                if container.get("args", [""])[0] == "serve":
                    yield name, labels, pod, container

    def selected(self, selector):
        """Pods that a label selector takes."""
        def takes(labels):
            return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
                labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", [])
            )

        return [(name, pod) for name, labels, pod in self.pods if takes(labels)]

    def data(self, kind, name):
        found = [one for one in self.of(kind) if one["metadata"]["name"] == name]
        return found[0].get("data", {}) if found else None

    def settings_text(self, pod):
        volumes = [volume["configMap"]["name"] for volume in pod.get("volumes", []) if volume["name"] == "settings"]
        return (self.data("ConfigMap", volumes[0]) or {}).get("taiji.toml", "") if volumes else ""


def port_names(pod):
    return {port["name"]: port["containerPort"] for container in pod["containers"] for port in container.get("ports", [])}


def is_ours(container):
    return re.match(r"(.*/)?taiji(-cuda)?(:|$)", container["image"])


def environment(container, secrets):
    """The TAIJI__ variables of a container; those of the Secret by what stands for them."""
    values = {}
    for entry in container.get("env", []):
        reference = entry.get("valueFrom", {}).get("secretKeyRef")
        values[entry["name"]] = secrets.get(reference["key"], "a-key-of-sixteen-characters") if reference else entry.get("value", "")
    return {name: value for name, value in values.items() if name.startswith("TAIJI__")}


STORE = {"store-url": "redis://taiji:password@redis:6379"}


def setting(overlay, facts, pod, container, section, key):
    """A setting as the pod sees it: environment, file, default."""
    name = f"TAIJI__{section}__{key}".upper()
    env = environment(container, STORE)
    text = overlay.settings_text(pod)
    return env[name] if name in env else tomllib.loads(text).get(section, {}).get(key, facts.defaults[section][key])


def images(overlay, facts):
    for where, _, container in overlay.containers():
        tag = container["image"].rpartition("/")[2].partition(":")[2]
        if tag in ("", "latest"):
            yield f"{where}: {container['image']} names no version"
        elif is_ours(container) and tag != facts.version:
            yield f"{where}: {container['image']} is not of version {facts.version}"


def resources(overlay, facts):
    for where, _, container in overlay.containers():
        given = container.get("resources", {})
        for kind, what in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
            if what not in given.get(kind, {}):
                yield f"{where}: resources.{kind}.{what} is missing"


def contexts(overlay, facts):
    for where, pod, container in overlay.containers():
        context = container.get("securityContext", {})
        if not context.get("readOnlyRootFilesystem") or context.get("allowPrivilegeEscalation") is not False:
            yield f"{where}: the root file system is to be read-only, privileges are not to grow"
        if not pod.get("securityContext", {}).get("runAsNonRoot") or pod.get("automountServiceAccountToken") is not False:
            yield f"{where}: the pod is to run as another user than root, without a token"


def probes(overlay, facts):
    for name, _, pod in overlay.pods:
        if not name.startswith("Deployment"):
            continue
        for container in pod["containers"]:
            for kind, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
                probe = container.get(kind)
                if probe is None:
                    yield f"{name}: {kind} is missing"
                elif is_ours(container) and probe.get("httpGet") != probe.get("httpGet", {}) | {"path": path, "port": "admin"}:
                    yield f"{name}: {kind} is to ask {path} at the port admin"
                elif is_ours(container) and path not in facts.routes:
                    yield f"{name}: the operators' port has no {path}"


def grace(overlay, facts):
    for name, _, pod, container in overlay.serving():
        drain = int(setting(overlay, facts, pod, container, "server", "drain_timeout_ms")) / 1000
        if pod.get("terminationGracePeriodSeconds", 30) <= drain + AFTER_DRAIN_S:
            yield f"{name}: terminationGracePeriodSeconds must be above the drain's {drain:g} s and {AFTER_DRAIN_S} s"


def references(overlay, facts):
    claims = {one["metadata"]["name"] for one in overlay.of("PersistentVolumeClaim")}
    accounts = {one["metadata"]["name"] for one in overlay.of("ServiceAccount")}
    generated = {one["metadata"]["name"]: set(one.get("data", {})) for one in overlay.of("Secret")}
    secrets = generated or {"taiji": facts.secret}
    for where, pod, container in overlay.containers():
        for entry in container.get("env", []):
            reference = entry.get("valueFrom", {}).get("secretKeyRef")
            if reference and reference["key"] not in secrets.get(reference["name"], ()):
                yield f"{where}: no Secret {reference['name']} with {reference['key']}"
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        for unknown in mounted - {volume["name"] for volume in pod.get("volumes", [])}:
            yield f"{where}: no volume {unknown}"
    for name, _, pod in overlay.pods:
        if pod.get("serviceAccountName", "default") not in accounts | {"default"}:
            yield f"{name}: no ServiceAccount {pod['serviceAccountName']}"
        for volume in pod.get("volumes", []):
            if "configMap" in volume and overlay.data("ConfigMap", volume["configMap"]["name"]) is None:
                yield f"{name}: no ConfigMap {volume['configMap']['name']}"
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in claims:
                yield f"{name}: no PersistentVolumeClaim {claim}"


def ports(overlay, facts):
    """Ports of containers are those of the settings; those of Services those of containers."""
    for name, labels, pod, container in overlay.serving():
        names = port_names(pod)
        wanted = {"admin": "admin_listen"} | ({"http": "listen"} if labels["app.kubernetes.io/component"] == "api" else {})
        for port, key in wanted.items():
            address = setting(overlay, facts, pod, container, "server", key)
            if address != f"0.0.0.0:{names.get(port)}":
                yield f"{name}: port {port} is {names.get(port)}, server.{key} is {address}"
    for service in overlay.of("Service"):
        pods = overlay.selected({"matchLabels": service["spec"]["selector"]})
        for port in service["spec"]["ports"]:
            if not pods or any(port["targetPort"] not in port_names(pod) for _, pod in pods):
                yield f"Service {service['metadata']['name']}: no pods with a port {port['targetPort']}"


def policies(overlay, facts):
    """NetworkPolicies open the ports that are listened on, and the way to store and brokers."""
    outgoing = {}
    for policy in overlay.of("NetworkPolicy"):
        pods, name = overlay.selected(policy["spec"]["podSelector"]), policy["metadata"]["name"]
        if not pods:
            yield f"NetworkPolicy {name} selects no pod"
        for rule in policy["spec"].get("ingress", []):
            for port in rule["ports"]:
                if not any(port["port"] in port_names(pod).values() for _, pod in pods):
                    yield f"NetworkPolicy {name}: nothing listens on {port['port']}"
        for pod, _ in pods:
            outgoing.setdefault(pod, set()).update(port["port"] for rule in policy["spec"].get("egress", []) for port in rule["ports"])
    for name, _, pod, container in overlay.serving():
        brokers = str(setting(overlay, facts, pod, container, "kafka", "brokers")).split(",")
        wanted = {urllib.parse.urlsplit(environment(container, STORE)["TAIJI__STORE__URL"]).port, 53}
        wanted |= {int(broker.rpartition(":")[2]) for broker in brokers if broker}
        for port in sorted(wanted - outgoing.get(name, set())):
            yield f"{name}: no NetworkPolicy lets it out to port {port}"


def scaling(overlay, facts):
    """What scales, disrupts and balances names a Deployment, and one alone."""
    deployments = {one["metadata"]["name"]: one for one in overlay.of("Deployment")}
    taken = []
    for one in overlay.of("HorizontalPodAutoscaler", "ScaledObject"):
        target, name, spec = one["spec"]["scaleTargetRef"]["name"], one["metadata"]["name"], one["spec"]
        taken.append(target)
        if target not in deployments or "replicas" in deployments[target]["spec"]:
            yield f"{one['kind']} {name}: {target} is to be a Deployment without a number of replicas"
        least, most = (spec.get(key, spec.get(other)) for key, other in (("minReplicas", "minReplicaCount"), ("maxReplicas", "maxReplicaCount")))
        if not 2 <= least < most:
            yield f"{one['kind']} {name}: {least} to {most} replicas"
        if one["kind"] == "ScaledObject":
            yield from triggers(one, facts)
    for name in {name for name in taken if taken.count(name) > 1}:
        yield f"{name} is scaled by two"
    for budget in overlay.of("PodDisruptionBudget"):
        if not overlay.selected(budget["spec"]["selector"]):
            yield f"PodDisruptionBudget {budget['metadata']['name']} selects no pod"


def triggers(scaled, facts):
    name, namespace = scaled["metadata"]["name"], scaled["metadata"].get("namespace")
    if "fallback" not in scaled["spec"]:
        yield f"ScaledObject {name}: no fallback"
    for trigger in scaled["spec"]["triggers"]:
        metadata = trigger["metadata"]
        if metadata.get("ignoreNullValues") != "false":
            yield f"ScaledObject {name}: no series must not read as 0"
        yield from (f"ScaledObject {name}: {line}" for line in query(metadata["query"], namespace, facts))


def query(text, namespace, facts):
    """Metrics of a PromQL expression with the labels asked of them."""
    found = re.findall(r"\b(taiji_\w+)(?:\{([^}]*)\})?", text)
    if not found:
        yield f"{text} asks no metric of ours"
    for metric, matchers in found:
        base = re.sub(r"_(bucket|sum|count)$", "", metric)
        kind, labels = facts.metrics.get(metric) or facts.metrics.get(base, (None, set()))
        if kind is None or (metric != base and metric not in facts.metrics and not kind.startswith("Histogram")):
            yield f"no metric {metric}"
            continue
        asked = dict(re.findall(r'(\w+)[=!~]+"([^"]*)"', matchers))
        if asked.get("namespace") != namespace:
            yield f"{metric} is to be asked of the namespace {namespace}"
        for label in set(asked) - labels - {"namespace", "pod", "job", "instance"}:
            yield f"{metric} has no label {label}"


def monitoring(overlay, facts):
    for monitor in overlay.of("PodMonitor"):
        name, pods = monitor["metadata"]["name"], overlay.selected(monitor["spec"]["selector"])
        if {pod for pod, _ in pods} != {pod for pod, *_ in overlay.serving()}:
            yield f"PodMonitor {name} is to select the pods that serve, and no others"
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if endpoint["path"] not in facts.routes or any(endpoint["port"] not in port_names(pod) for _, pod in pods):
                yield f"PodMonitor {name}: no {endpoint['path']} at {endpoint['port']}"


def settings(overlay, facts):
    """The program takes the pod's settings, and knows each by name."""
    wrong = []
    for name, _, pod, container in overlay.serving():
        env = environment(container, STORE)
        for variable in env:
            section, _, key = variable.removeprefix("TAIJI__").lower().partition("__")
            if key not in facts.defaults.get(section, {}) and not key.startswith("properties__"):
                wrong.append(f"{name}: no setting {section}.{key}")
        args = container["args"]
        env["TAIJI__SERVER__ROLES"] = args[args.index("--roles") + 1]
        if not overlay.settings_text(pod):
            wrong.append(f"{name}: no taiji.toml")
        elif said := facts.accepts(overlay.settings_text(pod), env):
            wrong.append(f"{name}: {said}")
    return wrong


def flags(overlay, facts):
    wrong = []
    for where, pod, container in overlay.containers():
        args = container.get("args", [])
        if not is_ours(container) or not args:
            continue
        text = facts.help("taiji", args[0])
        if not text:
            wrong.append(f"{where}: no command taiji {args[0]}")
        wrong += [f"{where}: taiji {args[0]} has no {flag}" for flag in args if flag.startswith("--") and f"{flag} " not in text]
    return wrong


def unnoticed(facts, overlays):
    """Changes that the assertions must notice and did not."""
    wrong = []
    for what, overlay, change in MUTATIONS:
        objects = copy.deepcopy(overlays[overlay])
        change(Objects(objects))
        if not judge(facts, objects):
            wrong.append(f"not noticed: {what}")
    return wrong


class Objects:
    """For MUTATIONS: objects by kind and name."""

    def __init__(self, objects):
        self.all = objects

    def get(self, kind, name):
        return next(one for one in self.all if (one["kind"], one["metadata"]["name"]) == (kind, name))

    def pod(self, name):
        return self.get("Deployment", name)["spec"]["template"]["spec"]

    def container(self, name):
        return self.pod(name)["containers"][0]

    def trigger(self, name):
        return self.get("ScaledObject", name)["spec"]["triggers"][0]["metadata"]

    def toml(self, old, new):
        for one in self.all:
            if one["kind"] == "ConfigMap" and "taiji.toml" in one["data"]:
                one["data"]["taiji.toml"] = one["data"]["taiji.toml"].replace(old, new)


def env(name, value):
    return lambda o: o.container("taiji-infer")["env"].append({"name": name, "value": value})


MUTATIONS = [
    ("latest", "cpu", lambda o: o.container("taiji-api").update(image="taiji:latest")),
    ("no tag", "dev", lambda o: o.container("redis").update(image="registry.example:5000/redis")),
    ("another version", "gpu", lambda o: o.container("taiji-infer").update(image="taiji-cuda:9.9.9")),
    ("no limit", "cpu", lambda o: o.container("taiji-ingest")["resources"].pop("limits")),
    ("a writable root", "cpu", lambda o: o.container("taiji-api")["securityContext"].pop("readOnlyRootFilesystem")),
    ("no probe", "base", lambda o: o.container("taiji-infer").pop("readinessProbe")),
    ("readiness as liveness", "base", lambda o: o.container("taiji-api")["livenessProbe"]["httpGet"].update(path="/readyz")),
    ("a short grace", "cpu", lambda o: o.pod("taiji-api").update(terminationGracePeriodSeconds=25)),
    ("a longer drain", "cpu", lambda o: o.toml("drain_timeout_ms = 20000", "drain_timeout_ms = 60000")),
    ("an unknown key of the Secret", "cpu", lambda o: o.container("taiji-api")["env"][1]["valueFrom"]["secretKeyRef"].update(key="url")),
    ("an unknown claim", "cpu", lambda o: o.all.remove(o.get("PersistentVolumeClaim", "taiji-models"))),
    ("another port", "cpu", lambda o: o.toml('listen = "0.0.0.0:8080"', 'listen = "0.0.0.0:8081"')),
    ("a port for itself alone", "cpu", lambda o: o.toml('admin_listen = "0.0.0.0:9090"', 'admin_listen = "127.0.0.1:9090"')),
    ("a Service of no port", "cpu", lambda o: o.get("Service", "taiji")["spec"]["ports"][0].update(targetPort="web")),
    ("brokers behind a closed port", "cpu", lambda o: o.toml("kafka:9092", "kafka:9093")),
    ("a policy for a port of nobody", "cpu", lambda o: o.get("NetworkPolicy", "taiji-api")["spec"]["ingress"][0]["ports"][0].update(port=81)),
    ("two that scale", "base", lambda o: o.all.append(o.get("HorizontalPodAutoscaler", "taiji-api"))),
    ("replicas beside KEDA", "cpu", lambda o: o.get("Deployment", "taiji-infer")["spec"].update(replicas=2)),
    ("no fallback", "cpu", lambda o: o.get("ScaledObject", "taiji-ingest")["spec"].pop("fallback")),
    ("an unknown metric", "cpu", lambda o: o.trigger("taiji-ingest").update(query='max(taiji_kafka_lag{namespace="taiji"})')),
    ("an unknown label", "cpu", lambda o: o.trigger("taiji-infer").update(query='max(taiji_ready{namespace="taiji",role="infer"})')),
    ("another namespace", "cpu", lambda o: o.trigger("taiji-api").update(query='sum(taiji_ready{namespace="other"})')),
    ("a monitor of no port", "cpu", lambda o: o.get("PodMonitor", "taiji")["spec"]["podMetricsEndpoints"][0].update(port="metrics")),
    ("an unknown setting", "cpu", env("TAIJI__ENGINE__PROVIDERS", "cuda")),
    ("a wrong value", "gpu", env("TAIJI__ENGINE__PROVIDER", "cdua")),
    ("an unknown flag", "cpu", lambda o: o.container("taiji-api")["args"].append("--role")),
    ("no such role", "cpu", lambda o: o.container("taiji-api")["args"].__setitem__(-1, "reader")),
]
