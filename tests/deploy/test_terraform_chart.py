"""What Terraform makes and what the chart asks for go together: values, service accounts, labels, taints, and room for every worker."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from tests.deploy.chart_rules import Object, merged, policy_problems, preset, render
from tests.deploy.terraform_offline import MissingTool, Terraform, environment

pytestmark = pytest.mark.deploy

POOLS = ("cpu", "l4", "a100", "h100")
# A run of each module's tests that applies it with the default pools, in a file that has few others.
RUNS = {"aws": ("scaling", "groups_are_known_while_they_are_empty"), "gcp": ("options", "what_the_chart_is_told")}
# As deploy/README.md says: a Redis of the chart's own; and Google sells its machines with one H100 as spot alone.
CHOICES = {
    "aws": {"redis": {"bundled": True, "tls": {"enabled": False}}},
    "gcp": {"redis": {"bundled": True, "tls": {"enabled": False}}, "pools": {"h100": {"capacity": "spot"}}},
}


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """One cloud: the values that its module gives, and its groups of nodes."""

    cloud: str
    values: Mapping[str, Any]
    resources: list[Mapping[str, Any]]

    def installation(self) -> list[Object]:
        return render(merged(preset(*POOLS), CHOICES[self.cloud], self.values))

    def nodes(self) -> Iterator[tuple[Mapping[str, str], set[str], int]]:
        """Of each group: labels as Kubernetes would see them, keys of taints, and how many GPUs its nodes have at most."""
        for one in self.resources:
            values = one["values"]
            if one["type"] == "aws_eks_node_group" and one["name"] == "pool":
                labels = values["labels"] | {"eks.amazonaws.com/capacityType": values["capacity_type"]}
                gpus = 8 if values["instance_types"][0].startswith("p") else int("nvidia.com/gpu.present" in labels)
                most = values["scaling_config"][0]["max_size"]
                yield labels, {taint["key"] for taint in values["taint"]}, most * gpus
            if one["type"] == "google_container_node_pool" and one["name"] == "pool":
                node = values["node_config"][0]
                labels = node["labels"] | ({"cloud.google.com/gke-spot": "true"} if node["spot"] else {})
                for accelerator in node["guest_accelerator"]:
                    labels["cloud.google.com/gke-accelerator"] = accelerator["type"]
                gpus = sum(accelerator["count"] for accelerator in node["guest_accelerator"])
                most = values["autoscaling"][0]["total_max_node_count"]
                yield labels, {taint["key"] for taint in node["taint"]}, most * gpus


@pytest.fixture(scope="module", params=RUNS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    cloud, (file, run) = request.param, RUNS[request.param]
    try:
        with environment(tmp_path_factory.mktemp("providers")) as variables:
            terraform = Terraform.copied(tmp_path_factory.mktemp("modules"), variables)
            done = terraform.init(cloud)
            assert done.returncode == 0, done.stdout
            done = terraform.run(cloud, "test", "-json", "-verbose", f"-filter=tests/{file}.tftest.hcl")
    except MissingTool as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    assert done.returncode == 0, done.stdout
    said = [json.loads(line) for line in done.stdout.splitlines()]
    (state,) = [one["test_state"] for one in said if one["type"] == "test_state" and one["@testrun"] == run]
    values = yaml.safe_load(state["outputs"]["helm_values"]["value"])
    return Made(cloud, values, state["root_module"]["resources"])


def workers(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Each pool's name and the pod that it runs."""
    for one in objects:
        pod = one["spec"]["template"] if one["kind"] == "Deployment" else None
        pod = one["spec"]["jobTargetRef"]["template"] if one["kind"] == "ScaledJob" else pod
        if pod and pod["metadata"]["labels"]["app.kubernetes.io/component"] == "worker":
            yield pod["metadata"]["labels"]["lading.dev/pool"], pod["spec"]


def test_the_chart_takes_the_values(made: Made):
    """`helm install` with the module's values, the presets and the guide's choices: valid, and by the chart's own rules."""
    assert policy_problems(made.installation()) == []


def test_every_pool_has_nodes(made: Made):
    """Labels and taints of some group are what the pool's pods select and tolerate, of the capacity that they require."""
    pools = dict(workers(made.installation()))
    assert set(pools) == set(POOLS)
    for name, pod in pools.items():
        tolerated = {one["key"] for one in pod.get("tolerations", [])}
        required = pod["affinity"]["nodeAffinity"].get("requiredDuringSchedulingIgnoredDuringExecution")
        found = [
            (labels["lading.dev/pool"], room)
            for labels, taints, room in made.nodes()
            if pod.get("nodeSelector", {}).items() <= labels.items()
            and taints <= tolerated
            and _allows(required, labels)
        ]
        assert {pool for pool, _ in found} == {name}, f"{name}: would run on nodes of {found}"
        if gpus := pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu"):
            spec = preset(name)["pools"][name]["spec"]
            assert sum(room for _, room in found) // gpus >= spec["max_workers"], f"{name}: more workers than nodes"


def _allows(required: Any, labels: Mapping[str, str]) -> bool:
    """Whether node affinity, as far as the chart uses it, lets a pod onto a node."""
    for term in (required or {"nodeSelectorTerms": []})["nodeSelectorTerms"]:
        for one in term["matchExpressions"]:
            inside = labels.get(one["key"]) in one["values"]
            if inside != (one["operator"] == "In"):
                return False
    return True


def test_what_is_always_there_keeps_to_the_system_nodes(made: Made):
    """On a node of a pool the scheduler or Redis would hold that node for ever."""
    for one in made.installation():
        if one["kind"] in ("Deployment", "StatefulSet", "CronJob"):
            template = one["spec"]["jobTemplate"]["spec"] if one["kind"] == "CronJob" else one["spec"]
            labels, pod = template["template"]["metadata"]["labels"], template["template"]["spec"]
            if labels["app.kubernetes.io/component"] != "worker":
                assert pod["nodeSelector"] == {"lading.dev/pool": "system"}, one["metadata"]["name"]


def test_roles_trust_the_accounts_that_the_chart_makes(made: Made):
    """Names are the same on both sides, and on AWS each carries its role."""
    accounts = {
        one["metadata"]["name"]: one["metadata"] for one in made.installation() if one["kind"] == "ServiceAccount"
    }
    for role in ("worker", "scheduler", "producer"):
        account = accounts[made.values["serviceAccounts"][role]["name"]]
        trusted = json.dumps([one["values"] for one in made.resources if one["name"] == "pod"])
        where = "system:serviceaccount:lading:{}" if made.cloud == "aws" else "subject/ns/lading/sa/{}"
        assert where.format(account["name"]) in trusted
        assert made.cloud != "aws" or account["annotations"]["eks.amazonaws.com/role-arn"]
