"""The Helm chart: rendered with every preset, held to the schemas and rules of chart_rules, and each rule shown to bite."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from benchmarks import scale
from lading.cli.app import cli
from lading.config import settings
from lading.config.errors import UsageError
from lading.config.strict_yaml import load_mapping
from lading.pipelines import spec as job_spec
from lading.schedulers import pools, rendering
from lading.schedulers.admission import window
from lading.schedulers.autoscale import triggers
from tests.deploy.chart_rules import (
    CHART,
    Object,
    environment,
    lengths,
    lint,
    merged,
    named,
    pods_of,
    policy_problems,
    preset,
    render,
    schema_problems,
    versions,
)

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
OWNED |= {"price_per_hour", "capacity", "exit_when_idle_s"}


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


def test_several_gpus_a_pod_by_default():
    """Where poolDefaults say how many GPUs a pod has, each of its workers is scraped too."""
    objects = render(merged(preset("aws", "h100"), {"poolDefaults": {"gpu": {"count": 4}}}))
    assert len(named(objects, "PodMonitor", "lading-worker")["spec"]["podMetricsEndpoints"]) == 1  # h100 says 1 itself
    values = preset("aws", "h100")
    del values["pools"]["h100"]["gpu"]["count"]
    objects = render(merged(values, {"poolDefaults": {"gpu": {"count": 4}}}))
    assert len(named(objects, "PodMonitor", "lading-worker")["spec"]["podMetricsEndpoints"]) == 4


@pytest.mark.parametrize("where", ["pools", "poolDefaults"])
def test_a_bulk_pool_has_one_gpu_a_pod(where: str):
    """Workers of a bulk pod end each by itself: with several GPUs the idle ones would be held, so it is refused."""
    values = preset("aws", "a100")
    del values["pools"]["a100"]["gpu"]["count"]
    more = {"gpu": {"count": 2}}
    values = merged(values, {"pools": {"a100": more}} if where == "pools" else {"poolDefaults": more})
    with pytest.raises(helm_python.HelmError, match=r"pools\.a100: mode bulk with gpu\.count 2"):
        render(values)


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
    page = (DEPLOY.parent / "docs/autoscaling.md").read_text()
    for cloud, made in (("AWS", objects), ("GCP", gke)):
        pod = named(made, "Deployment", "lading-worker-l4")["spec"]["template"]["spec"]
        grace, patience = environment(made, "l4")["LADING_GRACE_S"], pod["terminationGracePeriodSeconds"]
        assert re.search(rf"^\| {cloud} \| [^|]+ \| {grace} \| {patience} \|$", page, re.MULTILINE)
        assert scale.GRACE_S[cloud] == int(grace)


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
    pods = {name: named(objects, "Deployment", f"lading-worker-{name}")["spec"]["template"] for name in ("l4", "cpu")}
    assert {name: pod["spec"].get("nodeSelector") for name, pod in pods.items()} == {
        "eks": {"l4": {"lading.dev/pool": "l4"}, "cpu": {"lading.dev/pool": "cpu"}},
        "karpenter": {"l4": {"karpenter.k8s.aws/instance-gpu-name": "l4"}, "cpu": None},
        "gke": {"l4": {"cloud.google.com/gke-accelerator": "nvidia-l4"}, "cpu": None},
        "aks": {"l4": {"lading.dev/pool": "l4"}, "cpu": {"lading.dev/pool": "cpu"}},
        "none": {"l4": None, "cpu": None},
    }[cloud]
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


def test_names_are_resolved_by_the_cache_too():
    """Where names are looked up, pods of NodeLocal DNSCache are reached beside kube-dns, and no other pod; {} leaves them out."""

    def peers(values: dict[str, Any]) -> list[Object]:
        (rule,) = named(render(values), "NetworkPolicy", "lading-all")["spec"]["egress"]
        assert {port["port"] for port in rule["ports"]} == {53}
        return rule["to"]

    def pods(app: str) -> Object:
        return {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": app}},
        }

    both = [pods("kube-dns"), pods("node-local-dns")]
    assert peers(preset("aws", "cpu")) == both
    assert peers(preset("gcp", "cpu")) == [*both, {"ipBlock": {"cidr": "169.254.20.10/32"}}]
    # As helm: null takes a default away, and {} would be merged into it.
    assert peers(merged(preset("aws", "cpu"), {"networkPolicy": {"dns": {"nodeLocal": None}}})) == both[:1]


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


def test_a_pod_is_asked_at_the_port_that_it_says(everything: list[Object]):
    """Where something listens, LADING_METRICS_PORT is that port, the exporter's too: the image's health check can be run by hand."""
    seen: set[int] = set()
    for title, _, pod in pods_of(everything):
        (container,) = pod["spec"]["containers"]
        said = {one["name"]: one.get("value") for one in container["env"]}["LADING_METRICS_PORT"]
        ports = [port["containerPort"] for port in container.get("ports", [])] or [0]
        assert int(said) == ports[0], title
        seen.add(ports[0])
    assert seen == {9464, 9465, 0}


def test_notes_say_what_to_install():
    """What submits jobs of the hub's models to a bucket: the hub's client, and that of the cloud's buckets."""
    for cloud, store in (("aws", "s3"), ("gcp", "gs")):
        with helm_python.Chart.load(CHART) as chart:
            files = chart.render(preset(cloud, "cpu"), name="lading", namespace="work")
        assert f"pip install 'lading[worker,{store}]'" in files["lading/templates/NOTES.txt"]


# Cores, memory in GiB and GPUs of every machine that the modules, their examples or their README name for a pool.
MACHINES = {
    "c7i.4xlarge": (16, 32, 0), "c7a.4xlarge": (16, 32, 0), "c6i.4xlarge": (16, 32, 0),
    "g6.xlarge": (4, 16, 1), "g6.2xlarge": (8, 32, 1), "g6.4xlarge": (16, 64, 1),
    "p4d.24xlarge": (96, 1152, 8), "p4de.24xlarge": (96, 1152, 8),
    "p5.4xlarge": (16, 256, 1), "p5.48xlarge": (192, 2048, 8), "p5e.48xlarge": (192, 2048, 8), "p5en.48xlarge": (192, 2048, 8),
    "n2-standard-16": (16, 64, 0), "c3-standard-22": (22, 88, 0),
    "g2-standard-4": (4, 16, 1), "g2-standard-8": (8, 32, 1), "g2-standard-12": (12, 48, 1),
    "a2-highgpu-1g": (12, 85, 1), "a3-highgpu-1g": (26, 234, 1),
}  # fmt: skip


def offered(pool: str) -> Iterator[str]:
    for file in sorted((DEPLOY / "terraform").rglob("*")):
        if file.suffix in (".tf", ".md"):
            for types in re.findall(rf"^ +{pool} +=[^\]]*?_types += \[([^\]]+)\]", file.read_text(), re.MULTILINE):
                yield from re.findall(r'"([^"]+)"', types)


def left_to_pods(cores: int, gib: float) -> tuple[float, float]:
    """Of a machine, when Kubernetes and what runs on each node (GKE's share, the larger) have theirs: cores and GiB."""
    steps = ((4, 0.25), (4, 0.2), (8, 0.1), (112, 0.06), (1e9, 0.02))
    kept, rest = 0.6, float(gib)
    for size, share in steps:
        kept += min(rest, size) * share
        rest -= min(rest, size)
    return cores - 0.8, gib - kept


@pytest.mark.parametrize("name", POOLS)
def test_a_worker_fits_on_every_machine_of_its_pool(name: str):
    """The smallest that the Terraform modules name included: a pod that asks for more than a node has is never placed."""
    pod = preset(name)["pools"][name]
    asked = pod["resources"]["requests"]
    machines = set(offered(name))
    assert len(machines) >= 3
    for machine in machines:
        cores, gib, gpus = MACHINES[machine]
        there = left_to_pods(cores, gib)
        workers = gpus // pod["gpu"]["count"] if gpus else 1
        assert workers * float(asked["cpu"]) <= there[0], machine
        assert workers * float(asked["memory"].removesuffix("Gi")) <= there[1], machine


def test_the_bundled_redis_is_configured_as_ours_is():
    """Every line of deploy/redis/redis.conf is in the chart's, and half of the memory is left to rewriting the log and to clients."""
    objects = render(preset("trial", "cpu"))

    def directives(text: str) -> set[str]:
        return {line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")}

    ours = directives((DEPLOY / "redis/redis.conf").read_text())
    assert "lua-time-limit 1000" in ours
    assert ours <= directives(named(objects, "ConfigMap", "lading-redis")["data"]["redis.conf"])
    (server,) = named(objects, "StatefulSet", "lading-redis")["spec"]["template"]["spec"]["containers"]
    assert server["resources"]["limits"] == {"memory": "1Gi"}


def test_submissions_have_room_for_models():
    """The cache of a submission's pod is what values say."""
    for given, size in (({}, "20Gi"), ({"submissions": {"cache": {"size": "90Gi"}}}, "90Gi")):
        objects = render(merged(preset("aws", "cpu"), given))
        job = named(objects, "CronJob", "lading-submit-nightly")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        assert {"name": "cache", "emptyDir": {"sizeLimit": size}} in job["volumes"]


# -- the chart and the program


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
        assert of == {one.key: one.per_worker for one in triggers(pool)}
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


def test_commands_are_those_of_the_program():
    """What a pod is started with is a verb of the program, with options that it has."""
    objects = render(preset("aws", "l4", "cpu", "a100"))
    commands = [pod["spec"]["containers"][0]["command"] for _, _, pod in pods_of(objects)]
    seen: set[str] = set()
    for program, *given in commands:
        verb, *arguments = given[1:] if given[0] == "-v" else given
        seen.add(verb)
        assert program == "lading"
        assert cli.commands[verb].make_context(verb, arguments).args == []
    assert seen == {"worker", "scheduler", "exporter", "submit"}
