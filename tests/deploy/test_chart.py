"""The Helm chart: rendered with every preset, held to the schemas and rules of chart_rules, and each rule shown to bite."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import redis
import yaml

from lading.cli.app import cli
from lading.config import settings
from lading.config.errors import BrokerError, UsageError
from lading.config.strict_yaml import load_mapping
from lading.pipelines import spec as job_spec
from lading.schedulers import pools, rendering
from lading.schedulers.admission import window
from lading.schedulers.connection import Broker
from tests.deploy.chart_rules import (
    CHART,
    Object,
    lint,
    merged,
    named,
    policy_problems,
    preset,
    render,
    schema_problems,
    selects,
    versions,
)
from tests.redis_server import RedisServer, executable

pytestmark = pytest.mark.deploy

DEPLOY = CHART.parents[1]
POOLS = ("cpu", "l4", "a100", "h100")
INSTALLATIONS = {
    "aws, every pool": ("aws", *POOLS),
    "gcp, every pool": ("gcp", *POOLS),
    "trial": ("trial", "cpu"),
    "gcp, no spot": ("gcp", "h100"),
    "trial, l4": ("trial", "l4"),
}
# What the chart says itself, to each pod or in all.
OWNED = {"broker_url", "jobs", "cache_dir", "grace_s", "metrics_port", "metrics_bind", "log_format"}
OWNED |= {"price_per_hour", "capacity"}


@pytest.fixture(scope="module", params=INSTALLATIONS.values(), ids=INSTALLATIONS.keys())
def installation(request: pytest.FixtureRequest) -> dict[str, Any]:
    return preset(*request.param)


@pytest.fixture(scope="module")
def everything() -> list[Object]:
    return render(preset("aws", *POOLS))


# -- the chart as it is


@pytest.mark.parametrize("kube", versions())
def test_every_object_is_valid(installation: dict[str, Any], kube: str):
    """In every version of Kubernetes that we promise, no field is unknown and none has a value of another kind."""
    assert lint(installation, kube) == []
    assert schema_problems(render(installation), kube) == []


def test_every_object_obeys_our_rules(installation: dict[str, Any]):
    """Restricted pods, pinned images, closed networks, and pools that are scaled by waiting and by running work."""
    assert policy_problems(render(installation)) == []


def test_versions_are_those_that_are_promised():
    """The chart says the oldest version that its checks begin with, and there are newer ones."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert versions()[0] in chart["kubeVersion"]
    assert len(versions()) >= 9


def test_the_defaults_alone_pass_lint():
    """`helm lint` of the chart as it lies there has nothing to say, whatever an installation would still have to add."""
    assert lint({}, versions()[-1]) == []


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ({"pools": {}}, "pools: none is described"),
        ({"jobs": ""}, "jobs: where submitted jobs are registered"),
        ({"redis": {}}, "redis.host: the address of your Redis"),
        ({"networkPolicy": {}}, "networkPolicy.redis.cidrs"),
    ],
)
def test_what_has_no_default_is_asked_for(left_out: dict[str, Any], message: str):
    """An installation without pools, a registry of jobs, a Redis or a way to it could do nothing."""
    with pytest.raises(helm_python.HelmError, match=message):
        render(preset("aws", "cpu") | left_out)


def test_several_gpus_a_pod():
    """A pod with four GPUs runs four workers: four times the messages ask for it, a quarter as many are needed, and each is scraped."""
    objects = render(merged(preset("aws", "h100"), {"pools": {"h100": {"gpu": {"count": 4}}}}))
    scaled = named(objects, "ScaledObject", "lading-worker-h100")["spec"]
    assert scaled["maxReplicaCount"] == 2
    assert lengths(scaled) == {
        "lading.h100.shards": 16,
        "unacked:lading.h100.shards": 16,
        "lading.h100.requests": 4096,
        "unacked:lading.h100.requests": 4096,
    }
    assert len(named(objects, "PodMonitor", "lading-worker")["spec"]["podMetricsEndpoints"]) == 4
    assert policy_problems(objects) == []


def test_times_follow_from_shards_and_models():
    """Longer shards and models mean a longer cooldown and grace; on spot the grace leaves room within the notice."""
    slow = {"h100": {"shardSeconds": 900, "loadSeconds": 600}, "l4": {"shardSeconds": 900}}
    objects = render(merged(preset("aws", "h100", "l4"), {"pools": slow}))
    h100 = named(objects, "ScaledObject", "lading-worker-h100")["spec"]
    assert h100["cooldownPeriod"] == 1500
    behaviour = h100["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert behaviour["stabilizationWindowSeconds"] == 3600  # the most that Kubernetes takes
    assert environment(objects, "h100")["LADING_GRACE_S"] == "900"
    assert environment(objects, "l4")["LADING_GRACE_S"] == "85"
    gke = render(merged(preset("gcp", "l4"), {"pools": {"l4": {"shardSeconds": 900}}}))
    assert environment(gke, "l4")["LADING_GRACE_S"] == "5"


def test_capacity(everything: list[Object]):
    """Spot pools are kept to spot nodes, or prefer them where on-demand may stand in; on-demand pools keep off spot."""

    def nodes(one: Object) -> Object:
        return one["template"]["spec"]["affinity"]["nodeAffinity"]

    l4 = nodes(named(everything, "Deployment", "lading-worker-l4")["spec"])
    assert list(l4) == ["preferredDuringSchedulingIgnoredDuringExecution"]
    a100 = nodes(named(everything, "ScaledJob", "lading-worker-a100")["spec"]["jobTargetRef"])
    h100 = nodes(named(everything, "Deployment", "lading-worker-h100")["spec"])
    for found, operator in ((a100, "In"), (h100, "NotIn")):
        terms = found["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert terms == [
            {"matchExpressions": [{"key": "eks.amazonaws.com/capacityType", "operator": operator, "values": ["SPOT"]}]}
        ]


def test_other_release_names():
    """Whatever a release is called, its objects find each other and have names that Kubernetes takes, pools with long names too."""
    values = preset("trial", "cpu")
    long = "p" * 20
    values["pools"] = {long: values["pools"]["cpu"], "bulk": merged(values["pools"]["cpu"], {"mode": "bulk"})}
    values["schedules"] = {"s" * 16: preset("aws")["schedules"]["nightly"]}
    for name in ("production", "a-release-of-lading-with-quite-a-long-name-of-53-chars", "x" * 53):
        objects = render(values, name=name)
        assert policy_problems(objects) == []
        assert schema_problems(objects, versions()[-1]) == []


@pytest.mark.parametrize("cloud", ["eks", "karpenter", "gke", "aks", "none"])
def test_clouds(cloud: str):
    """Each of the clouds' words makes a valid chart, and a GPU that a cloud has no name for is refused."""
    objects = render(merged(preset("aws", *POOLS), {"cloud": cloud}))
    assert policy_problems(objects) == []
    assert schema_problems(objects, versions()[-1]) == []
    odd = merged(preset("aws", "l4"), {"cloud": "gke", "pools": {"l4": {"gpu": {"type": "l5"}}}})
    with pytest.raises(helm_python.HelmError, match=r"pools\.l4\.gpu\.type: GKE has no l5"):
        render(odd)


def test_metadata_of_nodes():
    """No pod reaches the address where a node's own credentials are to be had, but on GKE, where it is the pods' own."""
    for cloud, reached in (("aws", []), ("gcp", ["169.254.169.252/32", "169.254.169.254/32"])):
        objects = render(preset(cloud, "cpu"))
        blocks = [
            peer["ipBlock"]["cidr"]
            for one in objects
            if one["kind"] == "NetworkPolicy"
            for rule in one["spec"].get("egress") or []
            for peer in rule["to"]
            if "ipBlock" in peer and 53 not in [port["port"] for port in rule["ports"]]
        ]
        assert [one for one in blocks if one.startswith("169.254.")] == reached


def test_offline(everything: list[Object]):
    """Who has all models in the cache can close the way to the hub."""
    offline = {"settings": {"offline": True}, "networkPolicy": {"hub": {"cidrs": []}}}
    objects = render(merged(preset("aws", "l4"), offline))
    names = {one["metadata"]["name"] for one in objects if one["kind"] == "NetworkPolicy"}
    assert "lading-to-hub" not in names
    assert "lading-to-hub" in {one["metadata"]["name"] for one in everything}


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        ({"type": "emptyDir", "size": "9Gi"}, {"emptyDir": {"sizeLimit": "9Gi"}}),
        ({"type": "claim", "claimName": "models"}, {"persistentVolumeClaim": {"claimName": "models"}}),
    ],
)
def test_model_cache(cache: Object, volume: Object):
    """The models' folder is what the pool says."""
    objects = render(merged(preset("aws", "h100"), {"pools": {"h100": {"cache": cache}}}))
    volumes = named(objects, "Deployment", "lading-worker-h100")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "cache", **volume} in volumes


def test_monitoring_is_left_out_where_nobody_knows_it():
    """Without the Prometheus operator's definitions nothing of its is made, unless it is asked for."""
    kinds = {"PodMonitor", "PrometheusRule"}
    assert not kinds & {one["kind"] for one in render(preset("trial", "cpu"))}
    asked = render(merged(preset("trial", "cpu"), {"monitoring": {"objects": "always"}}))
    assert "PodMonitor" in {one["kind"] for one in asked}


def test_rules_and_dashboards_are_the_deployments_own():
    """A chart reads only files inside itself: its copies are those of deploy/, to the letter, and all of them arrive."""
    rules, dashboards = DEPLOY / "prometheus" / "rules.yaml", DEPLOY / "dashboards"
    sources = {"rules.yaml": rules} if rules.exists() else {}
    sources |= {f"dashboards/{one.name}": one for one in dashboards.glob("*.json")}
    copies = {str(one.relative_to(CHART / "files")): one for one in (CHART / "files").rglob("*.*") if one.is_file()}
    copies.pop("README.md")
    remedy = "run deploy/helm/sync.sh"
    assert copies.keys() == sources.keys(), remedy
    assert [name for name in copies if copies[name].read_bytes() != sources[name].read_bytes()] == [], remedy
    objects = render(preset("aws", "cpu"))
    shown = [key for one in objects if "grafana_dashboard" in one["metadata"]["labels"] for key in one["data"]]
    assert sorted(shown) == sorted(one.removeprefix("dashboards/") for one in sources if one != "rules.yaml")
    found = [one["spec"] for one in objects if one["kind"] == "PrometheusRule"]
    assert found == ([yaml.safe_load(rules.read_text())] if rules.exists() else [])


# -- the chart and the program


def lengths(scaled: Object) -> dict[str, int]:
    return {one["metadata"]["listName"]: int(one["metadata"]["listLength"]) for one in scaled["triggers"]}


def environment(objects: list[Object], pool: str) -> dict[str, str]:
    found = named(objects, "Deployment", f"lading-worker-{pool}")["spec"]["template"]["spec"]["containers"][0]["env"]
    return {one["name"]: one["value"] for one in found if "value" in one}


def our_pools() -> pools.Pools:
    return pools.load({"LADING_CONFIG_DIR": str(DEPLOY / "config")})


def test_presets_agree_with_the_pools():
    """Each preset's `spec` is what `lading render pools` writes of deploy/config, and a difference is named."""
    here = our_pools()
    assert tuple(here) == POOLS
    for name in POOLS:
        file = CHART / f"values-{name}.yaml"
        given = load_mapping(file, UsageError)
        assert list(given["pools"]) == [name]
        assert rendering.differences(here, given, file.name) == []
        given["pools"][name]["spec"]["pull_shards"] = 9
        assert len(rendering.differences(here, given, file.name)) == 1


def test_pods_are_told_the_same_pools(tmp_path: Path, everything: list[Object]):
    """What the chart mounts is read by the program, whole numbers and all, as deploy/config is."""
    for name, text in named(everything, "ConfigMap", "lading-config")["data"].items():
        (tmp_path / name).write_text(text)
    assert pools.load({"LADING_CONFIG_DIR": str(tmp_path)}) == our_pools()


def test_settings_reach_the_pods():
    """Every setting that values may have arrives as the same value, large numbers and words too."""
    given = {
        "offline": True,
        "max_waiting_requests": 3_000_000,
        "lease_s": 90.5,
        "roots": "s3://a,s3://b",
        "threads": 2,
    }
    objects = render(merged(preset("aws", "l4"), {"settings": given}))
    found = settings.load(environment(objects, "l4") | {"LADING_CONFIG_DIR": ""})
    assert {key: getattr(found, key) for key in given} == given


def test_a_full_backlog_asks_for_all_workers(everything: list[Object]):
    """However a full window is split between waiting and in flight, the larger part asks for max_workers, and no split for more."""
    for name, pool in our_pools().items():
        kind = "ScaledJob" if name == "a100" else "ScaledObject"
        scaled = named(everything, kind, f"lading-worker-{name}")["spec"]
        assert scaled["maxReplicaCount"] == pool.max_workers
        of = lengths(scaled)
        assert of.keys() == {one for key in (pool.shards, pool.requests) for one in (key, f"unacked:{key}")}
        full = window(pool)
        for waiting in range(full + 1):
            parts = (waiting / of[pool.shards], (full - waiting) / of[f"unacked:{pool.shards}"])
            assert max(parts) >= pool.max_workers
        assert of[pool.shards] == of[f"unacked:{pool.shards}"] == pool.pull_shards
        # More requests than that make their clients wait.
        assert settings.load({}).max_waiting_requests / of[pool.requests] >= pool.max_workers


def test_a_window_that_is_cut_short():
    """Where Redis holds less than twice what all workers take, what is there still asks for all of them."""
    huge = {"l4": {"spec": {"max_workers": 4000, "pull_shards": 64}}}
    objects = render(merged(preset("aws", "l4"), {"pools": huge}))
    pool = dataclasses.replace(our_pools()["l4"], max_workers=4000, pull_shards=64)
    of = lengths(named(objects, "ScaledObject", "lading-worker-l4")["spec"])
    assert window(pool) / 2 / of["lading.l4.shards"] >= 4000
    assert of["lading.l4.shards"] == 8


def test_scheduled_jobs_are_jobs(tmp_path: Path, everything: list[Object]):
    """What a CronJob submits is a job file that the program takes."""
    (tmp_path / "job.yaml").write_text(named(everything, "ConfigMap", "lading-submit-nightly")["data"]["job.yaml"])
    found = job_spec.load(tmp_path / "job.yaml")
    assert found.sink.to == "lancedb://s3://example-lading/db/docs"
    cron = named(everything, "CronJob", "lading-submit-nightly")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert cron["containers"][0]["command"] == ["lading", "submit", "/etc/lading-job/job.yaml", "--pool", "l4"]


def test_the_schema_knows_what_the_program_knows():
    """A key of pools.yaml or of settings.yaml can be said in values, and no other."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    fields = {one.name for one in dataclasses.fields(pools.Pool)} - {"name"}
    assert set(schema["definitions"]["spec"]["properties"]) == fields
    packaged = yaml.safe_load(importlib.resources.files("lading.config").joinpath("defaults.yaml").read_text())
    assert set(schema["properties"]["settings"]["properties"]) == packaged.keys() - OWNED
    assert packaged.keys() & OWNED >= {"broker_url", "jobs", "cache_dir", "grace_s"}


def test_every_default_may_be_said():
    """The schema leaves no room for a key beside those of values.yaml, and has one for each."""

    def compare(schema: Any, values: Any, where: str) -> None:
        if isinstance(values, dict) and isinstance(schema, dict) and "properties" in schema:
            assert schema.get("additionalProperties") is False, where
            for key, value in values.items():
                assert key in schema["properties"], f"{where}.{key}"
                compare(resolved(schema["properties"][key]), value, f"{where}.{key}")

    whole = json.loads((CHART / "values.schema.json").read_text())

    def resolved(schema: Any) -> Any:
        schema = schema["allOf"][0] if "allOf" in schema else schema
        return whole["definitions"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema

    compare(whole, yaml.safe_load((CHART / "values.yaml").read_text()), "values")


@pytest.mark.parametrize(
    "typo",
    [
        {"job": "s3://b/jobs"},
        {"pools": {"cpu": {"capasity": "spot"}}},
        {"pools": {"cpu": {"capacity": "spots"}}},
        {"pools": {"cpu": {"spec": {"max_worker": 3}}}},
        {"pools": {"cpu": {"spec": {"memory_bytes": "4 GB"}}}},
        {"pools": {"cpu": {"cache": {"sizes": "1Gi"}}}},
        {"pools": {"CPU.1": {}}},
        {"poolDefaults": {"spec": {}}},
        {"settings": {"lease": 3}},
        {"images": {"producer": {"repository": "x", "tag": "latest"}}},
        {"images": {"producer": {"digest": "sha256:12"}}},
        {"networkPolicy": {"objectStores": {"cidrs": ["everything"]}}},
        {"schedules": {"nightly": {"cron": "0 2 * * *"}}},
        {"redis": {"host": "redis://redis.internal:6379"}},
        {"monitoring": {"objects": "yes"}},
        {"cloud": "aws"},
    ],
    ids=lambda typo: "-".join(map(str, typo)),
)
def test_typos_in_values_are_refused(typo: dict[str, Any]):
    """By helm, before anything is made."""
    good = preset("trial", "cpu")
    render(good)
    with pytest.raises(helm_python.HelmError, match="schema"):
        render(merged(good, typo))


def test_commands_are_those_of_the_program(everything: list[Object]):
    """Each verb that a pod is started with is one of the program's."""
    verbs = {
        one["spec"]["template"]["spec"]["containers"][0]["command"][1]
        for one in everything
        if one["kind"] == "Deployment"
    }
    assert verbs == {"worker", "scheduler", "exporter"}
    assert {"worker", "scheduler", "submit"} <= cli.commands.keys()


# -- each rule bites


ALL_PODS, WORKERS, TEMPLATES = "_pod.tpl", "_workers.tpl", "workers.yaml"
MUTATIONS = {
    "a typo in a field": (WORKERS, "      resources:\n", "      resourcez:\n", "resourcez"),
    "a typo in KEDA's object": (TEMPLATES, "  cooldownPeriod:", "  cooldownPeriodd:", "cooldownPeriodd"),
    "a number where KEDA wants text": (WORKERS, "databaseIndex: {{ $root.Values.redis.database | quote }}", "databaseIndex: 0", "databaseIndex"),
    "a typo in a monitor": ("monitoring.yaml", "      path: /metrics", "      paths: /metrics", "paths"),
    "a typo in a bulk pool's job": (TEMPLATES, "    backoffLimit: 3", "    backOffLimit: 3", "backOffLimit"),
    "no trigger for what is in flight": (WORKERS, 'dict "" "" "unacked:" "-inflight"', 'dict "" ""', "in flight of lading.l4.shards"),
    "no trigger for requests": (WORKERS, ' (list "requests" (printf "lading.%s.requests" .name) .pool.requestsPerPod)', "", "waits in lading.l4.requests"),
    "a threshold before a pool wakes": (WORKERS, 'activationListLength: "0"', 'activationListLength: "5"', "does not wake"),
    "a fallback": (TEMPLATES, "  advanced:\n", "  fallback: {failureThreshold: 3, replicas: 1}\n  advanced:\n", "when Redis cannot be asked"),
    "replicas of a scaled pool": (TEMPLATES, "  revisionHistoryLimit: 3\n", "  replicas: 1\n", "has replicas"),
    "a pool that is not scaled": (TEMPLATES, "    name: {{ $fullname }}\n  minReplicaCount", "    name: other\n  minReplicaCount", "nobody scales"),
    "root": (ALL_PODS, "  runAsUser: 10001\n", "  runAsUser: 0\n", "may run as root"),
    "root allowed": (ALL_PODS, "  runAsNonRoot: true\n", "", "may run as root"),
    "a root container in the pod": (ALL_PODS, "  readOnlyRootFilesystem: true\n", "  readOnlyRootFilesystem: true\n  runAsUser: 0\n", "runs as root"),
    "a file system that can be written to": (ALL_PODS, "  readOnlyRootFilesystem: true\n", "", "can be written to"),
    "no seccomp": (ALL_PODS, "  seccompProfile:\n    type: RuntimeDefault\n", "", "no seccomp"),
    "capabilities": (ALL_PODS, "    drop: [ALL]\n", "    drop: [ALL]\n    add: [SYS_ADMIN]\n", "keeps capabilities"),
    "escalation": (ALL_PODS, "  allowPrivilegeEscalation: false\n", "", "gain privileges"),
    "a token": (ALL_PODS, "automountServiceAccountToken: false\n", "", "token for Kubernetes is mounted"),
    "no digest and no tag": ("_names.tpl", '{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .root.Chart.AppVersion }}{{ end }}', "", "neither a digest nor a tag"),
    "latest": ("_names.tpl", "$image.tag | default .root.Chart.AppVersion", '"latest"', "neither a digest nor a tag"),
    "no limits": ("control.yaml", "resources: {{- toYaml .Values.scheduler.resources | nindent 12 }}", "resources: {}", "no limit of memory"),
    "no probes": ("control.yaml", '{{- include "lading.probes" (dict "port" "metrics") | nindent 10 }}', "", "no livenessProbe"),
    "too little patience": (WORKERS, "add $pool.grace 40", "add $pool.grace 10", "is killed before"),
    "no policy for egress": ("network.yaml", "policyTypes: [Ingress, Egress]", "policyTypes: [Ingress]", "its rules for egress count for nothing"),
    "pods without a policy": ("network.yaml", "      app.kubernetes.io/name: lading\n      app", "      app.kubernetes.io/name: leading\n      app", "no NetworkPolicy for its ingress"),
    "the nodes' metadata": ("_names.tpl", "{cidr: {{ .cidr }}, except: [{{ join \", \" .except }}]}", "{cidr: {{ .cidr }}}", "metadata can be reached"),
    "a rule for everybody": ("network.yaml", "{port: 9464, endPort: 9480, protocol: TCP}", "{}", "for every port"),
    "no budget": (TEMPLATES, "kind: PodDisruptionBudget", "kind: ConfigMap", "needs one PodDisruptionBudget"),
    "a volume that is not there": (ALL_PODS, "- name: home\n  emptyDir:", "- name: house\n  emptyDir:", "no volume home"),
    "a configuration that is not there": (ALL_PODS, "-config\n      - secret", "-konfig\n      - secret", "no ConfigMap lading-konfig"),
    "a password in sight": (ALL_PODS, 'value: "0.0.0.0"', 'value: "redis://worker:secret@redis/0"', "shows a password"),
    "a port that is not there": ("monitoring.yaml", "- port: metrics{{", "- port: stats{{", "no pod has a port stats"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_mistakes_in_the_chart_are_found(name: str, tmp_path: Path):
    """One mistake in one template is one that the checks of this file name."""
    file, before, after, found = MUTATIONS[name]
    chart = tmp_path / "lading"
    shutil.copytree(CHART, chart)
    template = chart / "templates" / file
    text = template.read_text()
    assert before in text, f"{file} has changed: give the mutation its new words"
    template.write_text(text.replace(before, after))
    objects = render(preset("aws", "l4", "a100"), chart)
    problems = schema_problems(objects, versions()[-1]) + policy_problems(objects)
    assert any(found in problem for problem in problems), problems


# -- Redis


@pytest.fixture(scope="module")
def secret() -> dict[str, str]:
    """The contents of the secret that the chart asks for, made of the users of deploy/redis; each one's password is its name."""
    users = {file.stem: file.read_text().strip() for file in (DEPLOY / "redis").glob("*.acl")}
    users.setdefault("exporter", users["scheduler"].replace("user scheduler ", "user exporter "))
    found = {f"{user}.yaml": f"broker_url: redis://{user}:{user}@127.0.0.1:6379/0\n" for user in users}
    found |= {f"{user}.password": user for user in users}
    default, admin = "user default off resetpass ~* &* +@all", "user admin on ~* &* +@all >admin"
    return found | {
        "users.acl": "\n".join([default, admin, *(f"{line} >{user}" for user, line in users.items())]) + "\n"
    }


@pytest.fixture
def guarded(secret: dict[str, str], tmp_path: Path) -> Iterator[RedisServer]:
    """A server with the configuration of the bundled one."""
    if executable() is None:
        pytest.fail("no redis-server: apt install redis-server")
    objects = render(preset("trial", "cpu"))
    text = named(objects, "ConfigMap", "lading-redis")["data"]["redis.conf"]
    text = text.replace("port 6379\n", "").replace("dir /data", f"dir {tmp_path}")
    (tmp_path / "redis.conf").write_text(text.replace("/etc/redis-users", str(tmp_path)))
    (tmp_path / "users.acl").write_text(secret["users.acl"])
    server = RedisServer(tmp_path, "--include", str(tmp_path / "redis.conf"))
    yield server
    server.close()


def config_volume(pod: Object) -> list[Object]:
    return next(one for one in pod["volumes"] if one["name"] == "config")["projected"]["sources"]


def test_each_pod_is_its_own_user_of_redis(
    everything: list[Object], secret: dict[str, str], guarded: RedisServer, tmp_path: Path
):
    """From the files that are mounted, each part reads a URL that opens the server, and none has a password in its environment."""
    users: dict[str, str] = {}
    for one in everything:
        if one["kind"] == "Deployment":
            pod = one["spec"]["template"]["spec"]
            config, credentials = config_volume(pod)
            folder = tmp_path / one["metadata"]["name"]
            folder.mkdir()
            for name, text in named(everything, "ConfigMap", config["configMap"]["name"])["data"].items():
                (folder / name).write_text(text)
            (item,) = credentials["secret"]["items"]
            (folder / item["path"]).write_text(secret[item["key"]].replace(":6379/", f":{guarded.port}/"))
            said = {one["name"]: one["value"] for one in pod["containers"][0]["env"] if "value" in one}
            found = settings.load(said | {"LADING_CONFIG_DIR": str(folder)})
            Broker.connect(found.broker_url).check()
            assert (found.jobs, found.roots) == ("s3://example-lading/jobs", "s3://example-lading")
            users[one["metadata"]["name"]] = item["key"]
    assert users.pop("lading-scheduler") == "scheduler.yaml"
    assert users.pop("lading-exporter") == "exporter.yaml"
    assert set(users.values()) == {"worker.yaml"}
    with pytest.raises(BrokerError):
        Broker.connect(guarded.url).check()


def test_keda_is_its_own_user_of_redis(everything: list[Object], secret: dict[str, str], guarded: RedisServer):
    """With what its TriggerAuthentication names it may look at every list of every trigger, and no further."""
    authentication = named(everything, "TriggerAuthentication", "lading-redis")["spec"]
    (password,), (user,) = authentication["secretTargetRef"], authentication["configMapTargetRef"]
    name = named(everything, "ConfigMap", user["name"])["data"][user["key"]]
    lists = {key for one in everything if one["kind"].startswith("Scaled") for key in lengths(one["spec"])}
    with redis.Redis(port=guarded.port, username=name, password=secret[password["key"]]) as client:
        assert [client.hlen(one) if one.startswith("unacked:") else client.llen(one) for one in lists] == [0] * 16
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.lrange("lading.cpu.shards", 0, -1)


def test_a_ca_of_ones_own():
    """KEDA is told of it in one place, as it wants, and pods have the file where the URL says it is."""
    objects = render(preset("gcp", "l4"))
    authentication = named(objects, "TriggerAuthentication", "lading-redis")["spec"]
    assert [one["parameter"] for one in authentication["configMapTargetRef"]] == ["tls"]
    assert [one["parameter"] for one in authentication["secretTargetRef"]] == ["password", "ca"]
    assert named(objects, "ConfigMap", "lading-autoscaler")["data"]["tls"] == "enable"
    for trigger in named(objects, "ScaledObject", "lading-worker-l4")["spec"]["triggers"]:
        assert "enableTLS" not in trigger["metadata"]
    for trigger in named(render(preset("aws", "l4")), "ScaledObject", "lading-worker-l4")["spec"]["triggers"]:
        assert trigger["metadata"]["enableTLS"] == "true"
    container = named(objects, "Deployment", "lading-scheduler")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "redis-ca", "mountPath": "/etc/lading-redis", "readOnly": True} in container["volumeMounts"]


def test_who_reaches_the_bundled_redis():
    """Our pods and KEDA do, and nobody else until it is said."""
    objects = render(preset("trial", "cpu"))
    redis_pod = named(objects, "StatefulSet", "lading-redis")["spec"]["template"]["metadata"]["labels"]
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    rules = [rule for one in policies if selects(one["podSelector"], redis_pod) for rule in one.get("ingress") or []]
    assert [peer for rule in rules for peer in rule["from"]] == [
        {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "lading", "app.kubernetes.io/instance": "lading"}}},
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}},
    ]


def test_the_bundled_redis_forgets_nothing(guarded: RedisServer):
    """It keeps a log, drops no queue when it is full, and after a restart knows what workers took and did."""
    queue = Broker.connect(f"redis://worker:worker@127.0.0.1:{guarded.port}/0").queue("lading.cpu.shards")
    queue.send([b"done", b"taken", b"waits"])
    queue.ack(queue.pull(1, 1000))
    queue.pull(1, 1000)
    assert guarded.process is not None
    guarded.process.terminate()
    guarded.process.wait()
    guarded.start()
    with redis.Redis(port=guarded.port, username="admin", password="admin") as admin:
        said = admin.config_get("*")
    assert (said["maxmemory-policy"], said["appendonly"], int(said["maxmemory"])) == ("noeviction", "yes", 768 << 20)
    counts = queue.counts()
    assert (counts.waiting, counts.in_flight) == (1, 1)
