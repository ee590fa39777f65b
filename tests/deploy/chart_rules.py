"""The chart rendered by Helm's own library, and what its objects are held to: schemas of every Kubernetes version and of the CRDs, and our rules.

Every function gives problems as lines of text; none is none. No cluster is needed.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import yaml
from kubernetes_validate import utils as kubernetes_schemas

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "lading"
OLDEST = (1, 29)
CRDS = {
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}
BEYOND_GRACE_S = 30  # cli/worker.py: after its grace a worker's process has so long to end

Object = dict[str, Any]

# Reading the schemas takes most of the time, and the same few are wanted again and again.
kubernetes_schemas.schema_contents = functools.cache(kubernetes_schemas.schema_contents)


# -- rendering


def merged(*values: Mapping[str, Any]) -> dict[str, Any]:
    """As helm does with several -f: mappings join, anything else is replaced."""
    found: dict[str, Any] = {}
    for one in values:
        for key, value in one.items():
            both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
            found[key] = merged(found[key], value) if both else value
    return found


def preset(*names: str, chart: Path = CHART) -> dict[str, Any]:
    return merged(*(yaml.safe_load((chart / f"values-{name}.yaml").read_text()) for name in names))


def render(values: Mapping[str, Any], chart: Path = CHART, name: str = "lading") -> list[Object]:
    """Every object of the chart. Raises helm_python.HelmError."""
    with helm_python.Chart.load(chart) as loaded:
        files = loaded.render(dict(values), name=name, namespace="work")
    texts = [text for path, text in sorted(files.items()) if path.endswith(".yaml")]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def lint(values: Mapping[str, Any], kube: str, chart: Path = CHART) -> list[str]:
    found = helm_python.lint(chart, dict(values), strict=True, kube_version=f"v{kube}.0", namespace="work")
    return [*found["errors"], *(one["error"] for one in found["messages"] if one["severity"] > 1)]


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    return next(one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name))


def lengths(scaled: Object) -> dict[str, int]:
    """listLength by listName."""
    return {one["metadata"]["listName"]: int(one["metadata"]["listLength"]) for one in scaled["triggers"]}


def environment(objects: list[Object], pool: str) -> dict[str, str]:
    """What the workers of a live pool have in their environment."""
    found = named(objects, "Deployment", f"lading-worker-{pool}")["spec"]["template"]["spec"]["containers"][0]["env"]
    return {one["name"]: one["value"] for one in found if "value" in one}


# -- schemas


def versions() -> list[str]:
    """From the oldest that we promise to the newest that there is a schema for."""
    found = {tuple(map(int, one.split(".")[:2])) for one in kubernetes_schemas.all_versions()}
    return [f"{major}.{minor}" for major, minor in sorted(found) if (major, minor) >= OLDEST]


def schema_problems(objects: Sequence[Object], kube: str) -> list[str]:
    """What the API server of this version would refuse, unknown fields included."""
    return [f"{_title(one)}: {problem}" for one in objects for problem in _schema_problems(one, kube)]


def _schema_problems(one: Object, kube: str) -> Iterator[str]:
    if one["apiVersion"] in CRDS:
        for error in _crd(one["apiVersion"], one["kind"]).iter_errors(one):
            yield f"{error.json_path}: {error.message[:200]}"
        if one["kind"] == "ScaledJob":  # its jobs are made later, by KEDA: too late to hear of it
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
            yield from _schema_problems({**job, "spec": one["spec"]["jobTargetRef"]}, kube)
        return
    try:
        kubernetes_validate.validate(one, kube, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        yield error.message
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message[:200]}"


@functools.cache
def _crd(api: str, kind: str) -> jsonschema.Draft202012Validator:
    model = getattr(importlib.import_module(CRDS[api]), kind)
    return jsonschema.Draft202012Validator(_closed(model.model_json_schema(by_alias=True)))


def _closed(schema: Any) -> Any:
    """The generated models let unknown fields pass; an API server drops them, which is worse than refusing."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) for key, value in schema.items()}
    if "properties" in found and found.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


# -- our rules


def policy_problems(objects: Sequence[Object]) -> list[str]:
    pods = list(pods_of(objects))
    found = [f"{title}: {problem}" for title, kind, pod in pods for problem in _pod_problems(kind, pod, objects)]
    for rule in (_names, _scaling, _networks, _budgets, _selectors, _accounts, _monitors):
        found += rule(objects)
    return found


def pods_of(objects: Sequence[Object]) -> Iterator[tuple[str, str, Object]]:
    """(title, kind, template) of everything that makes pods."""
    for one in objects:
        match one["kind"]:
            case "Deployment" | "StatefulSet" | "DaemonSet" | "Job":
                yield _title(one), one["kind"], one["spec"]["template"]
            case "CronJob":
                yield _title(one), one["kind"], one["spec"]["jobTemplate"]["spec"]["template"]
            case "ScaledJob":
                yield _title(one), one["kind"], one["spec"]["jobTargetRef"]["template"]
            case _:
                pass


def _pod_problems(kind: str, template: Object, objects: Sequence[Object]) -> Iterator[str]:
    pod = template["spec"]
    security = pod.get("securityContext") or {}
    volumes = {one["name"]: one for one in pod.get("volumes") or []}
    claims = {"data"} if kind == "StatefulSet" else set()
    there = {(one["kind"], one["metadata"]["name"]) for one in objects}
    if pod.get("automountServiceAccountToken") is not False:
        yield "a token for Kubernetes is mounted"
    if pod.get("enableServiceLinks") is not False:
        yield "services become environment variables"
    if ("ServiceAccount", pod.get("serviceAccountName")) not in there:
        yield "no service account of its own"
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser", 0) >= 10000:
        yield "may run as root, or as a user of the node"
    if (security.get("seccompProfile") or {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    yield from (f"{key} is shared with the node" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key))
    yield from (f"volume {name} is a folder of the node" for name, one in volumes.items() if "hostPath" in one)
    for name, volume in volumes.items():
        sources = (volume.get("projected") or {}).get("sources") or [volume]
        for wanted in (one["configMap"]["name"] for one in sources if "configMap" in one):
            if ("ConfigMap", wanted) not in there:
                yield f"volume {name}: no ConfigMap {wanted}"
    for container in [*pod["containers"], *(pod.get("initContainers") or [])]:
        for problem in _container_problems(kind, container, security):
            yield f"{container['name']}: {problem}"
        for mount in container.get("volumeMounts") or []:
            if mount["name"] not in volumes.keys() | claims:
                yield f"{container['name']}: no volume {mount['name']}"
    environment = _environment(pod["containers"][0])
    if "LADING_GRACE_S" in environment:
        patience = int(float(environment["LADING_GRACE_S"])) + BEYOND_GRACE_S
        if not pod.get("terminationGracePeriodSeconds", 30) > patience:
            yield f"is killed before its worker's {patience} s are over"


def _container_problems(kind: str, container: Object, pod: Object) -> Iterator[str]:
    security, resources = container.get("securityContext") or {}, container.get("resources") or {}
    if security.get("runAsUser", pod.get("runAsUser")) == 0 or security.get("runAsNonRoot") is False:
        yield "runs as root"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "its root file system can be written to"
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "may gain privileges"
    capabilities = security.get("capabilities") or {}
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield "keeps capabilities"
    name, _, digest = container["image"].partition("@sha256:")
    tag = name.rpartition("/")[2].partition(":")[2]
    if len(digest) != 64 and tag in ("", "latest"):
        yield f"image {container['image']} has neither a digest nor a tag of a version"
    lacking = {"cpu", "memory"} - (resources.get("requests") or {}).keys()
    if lacking or "memory" not in (resources.get("limits") or {}):
        yield "no requests or no limit of memory"
    if kind != "CronJob":
        yield from (
            f"no {probe}" for probe in ("startupProbe", "livenessProbe", "readinessProbe") if probe not in container
        )
    for variable, value in _environment(container).items():
        if "://" in value and "@" in value:
            yield f"{variable} shows a password"


def _environment(container: Object) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container.get("env") or [] if "value" in one}


def _names(objects: Sequence[Object]) -> Iterator[str]:
    """Names that become labels, or parts of others' names, are short enough, and there is no object twice."""
    seen: set[tuple[str, str]] = set()
    for one in objects:
        name = one["metadata"]["name"]
        if len(name) > (52 if one["kind"] == "CronJob" else 63):
            yield f"{_title(one)}: the name is too long"
        if (one["kind"], name) in seen:
            yield f"{_title(one)}: is there twice"
        seen.add((one["kind"], name))


def _scaling(objects: Sequence[Object]) -> Iterator[str]:
    """Every pool is scaled by what waits and by what is in flight, to its own number and by nobody else."""
    deployments = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Deployment"}
    authentications = {one["metadata"]["name"] for one in objects if one["kind"] == "TriggerAuthentication"}
    scaled: set[str] = set()
    for one in objects:
        if one["kind"] not in ("ScaledObject", "ScaledJob"):
            continue
        title, spec = _title(one), one["spec"]
        pool = one["metadata"]["labels"]["lading.dev/pool"]
        triggers = [trigger for trigger in spec["triggers"] if trigger["type"] == "redis"]
        lists = {trigger["metadata"]["listName"] for trigger in triggers}
        for key in (f"lading.{pool}.shards", f"lading.{pool}.requests"):
            if key not in lists:
                yield f"{title}: does not see what waits in {key}"
            if f"unacked:{key}" not in lists:
                yield f"{title}: does not see what is in flight of {key}"
        for trigger in spec["triggers"]:
            if (trigger.get("authenticationRef") or {}).get("name") not in authentications:
                yield f"{title}: trigger {trigger.get('name')} has no authentication that is there"
            if not int(trigger["metadata"].get("listLength", 0)) > 0:
                yield f"{title}: trigger {trigger.get('name')} has no listLength"
            if trigger["metadata"].get("activationListLength", "0") != "0":
                yield f"{title}: a single message does not wake the pool"
            if trigger["metadata"].get("unsafeSsl", "false") != "false":
                yield f"{title}: talks TLS to anybody"
        if "fallback" in spec:
            yield f"{title}: starts workers when Redis cannot be asked"
        if one["kind"] == "ScaledJob":
            continue
        target = spec["scaleTargetRef"]["name"]
        scaled.add(target)
        if target not in deployments:
            yield f"{title}: there is no Deployment {target}"
        elif "replicas" in deployments[target]["spec"]:
            yield f"Deployment {target}: has replicas, and every upgrade would set them anew"
    for name, one in deployments.items():
        if _component(one) == "worker" and name not in scaled:
            yield f"Deployment {name}: a pool that nobody scales"


def _networks(objects: Sequence[Object]) -> Iterator[str]:
    """Every pod is closed in both directions but for what is said, and nothing is open to all."""
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    for title, _, template in pods_of(objects):
        labels = template["metadata"]["labels"]
        for direction in ("Ingress", "Egress"):
            if not any(direction in one["policyTypes"] and selects(one["podSelector"], labels) for one in policies):
                yield f"{title}: no NetworkPolicy for its {direction.lower()}"
    for one in objects:
        if one["kind"] != "NetworkPolicy":
            continue
        for key in ("ingress", "egress"):
            if key in one["spec"] and key.title() not in one["spec"]["policyTypes"]:
                yield f"{_title(one)}: its rules for {key} count for nothing"
        rules = [(rule, rule.get("from")) for rule in one["spec"].get("ingress") or []]
        rules += [(rule, rule.get("to")) for rule in one["spec"].get("egress") or []]
        for rule, peers in rules:
            if not peers or not all("port" in port for port in rule.get("ports") or [{}]):
                yield f"{_title(one)}: a rule for everybody, or for every port"
            for block in (peer["ipBlock"] for peer in peers or [] if "ipBlock" in peer):
                if block["cidr"] == "0.0.0.0/0" and "169.254.0.0/16" not in block.get("except", []):
                    yield f"{_title(one)}: the nodes' metadata can be reached"


def _budgets(objects: Sequence[Object]) -> Iterator[str]:
    budgets = [one["spec"]["selector"] for one in objects if one["kind"] == "PodDisruptionBudget"]
    for one in objects:
        if one["kind"] == "Deployment" and (_component(one) == "worker" or one["spec"].get("replicas", 1) > 1):
            labels = one["spec"]["template"]["metadata"]["labels"]
            if sum(selects(budget, labels) for budget in budgets) != 1:
                yield f"{_title(one)}: needs one PodDisruptionBudget"


def _selectors(objects: Sequence[Object]) -> Iterator[str]:
    """A selector that misses its own pods is refused by the server; one that meets those of another takes them over."""
    workloads = [one for one in objects if one["kind"] in ("Deployment", "StatefulSet")]
    for one in workloads:
        for title, _, template in pods_of(objects):
            if selects(one["spec"]["selector"], template["metadata"]["labels"]) != (title == _title(one)):
                yield f"{_title(one)}: its selector and the pods of {title} do not go together"


def _accounts(objects: Sequence[Object]) -> Iterator[str]:
    for one in objects:
        if one["kind"] == "ServiceAccount" and one.get("automountServiceAccountToken") is not False:
            yield f"{_title(one)}: its token is mounted"
        if one["kind"] in ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
            yield f"{_title(one)}: nothing here speaks to Kubernetes"


def _monitors(objects: Sequence[Object]) -> Iterator[str]:
    """A monitor without pods, or of a port that they do not have, is silence."""
    for one in objects:
        if one["kind"] == "PodMonitor":
            pods = [
                pod for _, _, pod in pods_of(objects) if selects(one["spec"]["selector"], pod["metadata"]["labels"])
            ]
            ports = {port["name"] for pod in pods for port in pod["spec"]["containers"][0].get("ports") or []}
            for endpoint in one["spec"]["podMetricsEndpoints"]:
                if endpoint["port"] not in ports:
                    yield f"{_title(one)}: no pod has a port {endpoint['port']}"


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector means pods with these labels."""
    equal = all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    for rule in selector.get("matchExpressions") or []:
        assert rule["operator"] == "In", f"{json.dumps(rule)}: teach this test the operator"
        equal = equal and labels.get(rule["key"]) in rule["values"]
    return equal


def _component(one: Object) -> str:
    return one["metadata"]["labels"]["app.kubernetes.io/component"]


def _title(one: Object) -> str:
    return f"{one['kind']} {one['metadata'].get('name', '')}"
