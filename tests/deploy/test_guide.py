"""The guide from an empty account to a first job: what can be held to the modules, the chart and the job's format without an account."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lading.pipelines.spec import from_dict
from tests.deploy.chart_rules import merged, named, pods_of, policy_problems, preset, render

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "deploy/README.md").read_text()
EXAMPLES = ROOT / "deploy/terraform/examples"
BASH = re.findall(r"^```bash\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
(FIRST,) = re.findall(r"^```yaml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def outputs(cloud: str) -> set[str]:
    return set(re.findall(r'^output "(\w+)"', (EXAMPLES / cloud / "main.tf").read_text(), re.MULTILINE))


@pytest.mark.parametrize("block", BASH, ids=lambda block: block.splitlines()[0][:40])
def test_its_commands_are_of_the_shell(block: str):
    """Each block can be parsed whole: no quote or bracket is open at its end."""
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_its_outputs_are_there():
    """What a block asks of Terraform, an example answers; what the sections for both clouds ask, both do."""
    aws, google = outputs("aws"), outputs("gcp")
    for block in BASH:
        asked = set(re.findall(r"tf output -\w+ (\w+)", block))
        assert asked <= aws or asked <= google
    assert {"helm_values", "bucket", "image_repositories", "cluster_name", "redis_host"} <= aws & google


def test_its_variables_are_there():
    """What is written into terraform.tfvars, or given with -var, is a variable of the example."""
    for cloud, extra in (("aws", "redis_user_group"), ("gcp", "memorystore")):
        known = set(re.findall(r'^variable "(\w+)"', (EXAMPLES / cloud / "main.tf").read_text(), re.MULTILINE))
        (given,) = re.findall(
            rf"^cat > deploy/terraform/examples/{cloud}/terraform.tfvars <<EOF\n(.*?)^EOF", GUIDE, re.M | re.S
        )
        named_there = set(re.findall(r"^(\w+) +=", given, re.MULTILINE)) | set(re.findall(r"-var (\w+)=", GUIDE))
        assert named_there | {extra} <= known
        assert f"{extra} = " in GUIDE


def test_its_autoscaler_is_of_the_clusters_version():
    """Cluster Autoscaler follows Kubernetes' minor versions; the guide's is the one of the module's default."""
    variables = (ROOT / "deploy/terraform/aws/variables.tf").read_text()
    (version,) = re.findall(r'variable "kubernetes_version" \{.*?default += "(.*?)"', variables, re.DOTALL)
    assert f"image.tag=v{version}." in GUIDE


def test_its_files_are_there():
    """Every file of this repository that a command names."""
    for block in BASH:
        for path in re.findall(r"(?<!exec )\bdeploy/[\w./*-]+", block):
            assert list(ROOT.glob(path.removesuffix("/terraform.tfvars"))), path


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_its_first_job_is_one(scheme: str):
    """The chart takes the file as it stands in the guide, and the job in it is valid."""
    first: dict[str, Any] = yaml.safe_load(FIRST.replace("s3://BUCKET", f"{scheme}://lading-1"))
    trial = {"redis": {"bundled": True, "tls": {"enabled": False}}, "jobs": f"{scheme}://lading-1/jobs"}
    objects = render(merged(preset("cpu", "l4"), trial, first))
    assert policy_problems(objects) == []
    assert named(objects, "CronJob", "lading-submit-first")["spec"]["suspend"] is True
    job = yaml.safe_load(named(objects, "ConfigMap", "lading-submit-first")["data"]["job.yaml"])
    spec = from_dict(job, "job.yaml")
    assert spec.sink.to == f"lancedb://{scheme}://lading-1/outputs/first/docs"
    assert "create job first --from=cronjob/lading-submit-first" in GUIDE


@pytest.mark.parametrize("page", ["deploy/README.md", "deploy/helm/lading/README.md"])
def test_its_secrets_hold_what_pods_read_and_no_more(page: str):
    """Each secret of Redis has the files that the chart mounts: the administrator's password stays where it was made."""
    mounted = {"autoscaler.password"}  # KEDA's own, by TriggerAuthentication
    for _, _, pod in pods_of(render(preset("aws", "cpu"))):
        for volume in pod["spec"]["volumes"]:
            for source in (volume.get("projected") or {}).get("sources", []):
                mounted |= {item["key"] for item in source.get("secret", {}).get("items", [])}
    text = (ROOT / page).read_text()
    commands = re.findall(r"create secret generic lading-redis (--from-file=.*)$", text, re.MULTILINE)
    assert len(commands) == {"deploy/README.md": 3, "deploy/helm/lading/README.md": 2}[page]
    bundled = 0
    for command in commands:
        shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
        files = {line.rpartition("/")[2] for line in shown.stdout.splitlines()}
        bundled += "users.acl" in files
        assert files - {"users.acl"} == mounted
    assert bundled == 1


def test_nothing_is_built_again_for_google():
    """The images carry the clients of both clouds' buckets, so the guide adds none."""
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    assert dockerfile.count("s3,gs]") == 3
    assert "docker build" not in GUIDE


def test_its_users_of_elasticache_have_the_rights_of_the_files():
    """What the guide cuts out of each ACL file is an access string: on, keys and commands, no password and no name."""
    for file in sorted((ROOT / "deploy/redis").glob("*.acl")):
        done = subprocess.run(["cut", "-d ", "-f3-", str(file)], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("on resetkeys resetchannels -@all ~")
        assert not re.search(r"\s[>#<!]|nopass|\breset\b", done.stdout)
    assert """--access-string "$(cut -d' ' -f3- "$file")\"""" in GUIDE
