"""The Terraform modules: formatted, valid against the providers' schemas, held to their own tests, and each kind of mistake shown to fail."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.deploy import terraform_offline
from tests.deploy.provider_schema import UnknownShapeError, provider_schema
from tests.deploy.terraform_offline import PACKAGES, REAL, ROOT, MissingTool, Terraform, environment

pytestmark = pytest.mark.deploy

FOLDERS = ("aws", "gcp", "examples/aws", "examples/gcp")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The environment of Terraform, with its providers at hand. A missing program: skipped on a laptop, failed in CI."""
    try:
        with environment(tmp_path_factory.mktemp("providers")) as variables:
            yield variables
    except MissingTool as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))


@pytest.fixture
def terraform(served: Mapping[str, str], tmp_path: Path) -> Terraform:
    return Terraform.copied(tmp_path, served)


def files_of_tests(folder: str) -> list[str]:
    return sorted(path.name.removesuffix(".tftest.hcl") for path in (ROOT / folder / "tests").glob("*.tftest.hcl"))


def passed(done: subprocess.CompletedProcess[str]) -> int:
    """How many runs of `terraform test` passed."""
    return (
        int(match[1]) if (match := re.search(r"^Success! (\d+) passed, 0 failed\.", done.stdout, re.MULTILINE)) else 0
    )


def test_everything_is_formatted(terraform: Terraform):
    """`terraform fmt` would change nothing."""
    done = terraform.run(".", "fmt", "-check", "-recursive", "-diff")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_module_is_valid_and_keeps_its_rules(terraform: Terraform, folder: str):
    """Every argument, type and reference is one that the provider knows, and every run of the module's own tests passes."""
    tests = files_of_tests(folder)
    done = terraform.check(folder, *tests)
    assert done.returncode == 0, done.stdout
    runs = sum((ROOT / folder / "tests" / f"{name}.tftest.hcl").read_text().count("\nrun ") for name in tests)
    assert passed(done) == runs > 0


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.provider)
def test_the_oldest_provider_is_the_one_that_was_tested(folder: str, package: terraform_offline.Package):
    """What the schemas do not know may not be asked for: an older provider might lack an argument that is used."""
    constraints = re.findall(
        rf'"hashicorp/{package.provider}"\s+version = "(.*)"',
        "\n".join(path.read_text() for path in (ROOT / folder).glob("*.tf")),
    )
    major, minor, _ = package.version.split(".")
    assert constraints in ([], [f">= {major}.{minor}, < {int(major) + 1}.0"])
    assert constraints or package.provider[0] != folder.rpartition("/")[2][0]


@pytest.mark.parametrize(
    ("file", "kind", "sized_by"),
    [
        ("aws/nodes.tf", "aws_eks_node_group", "scaling_config[0].desired_size"),
        ("gcp/nodes.tf", "google_container_node_pool", "initial_node_count"),
    ],
)
def test_sizes_are_the_autoscaler_s(file: str, kind: str, sized_by: str):
    """A later `terraform apply` does not take nodes away from pods that run there. No plan of a fresh module can show it."""
    groups = re.findall(rf'^resource "{kind}" .*?^}}$', (ROOT / file).read_text(), re.MULTILINE | re.DOTALL)
    assert len(groups) == 2
    assert all(f"ignore_changes = [{sized_by}]" in group for group in groups)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A change of one place, which file of tests has to notice it ("": `validate` does), and what is said then."""

    file: str
    old: str
    new: str
    seen_by: str = ""
    said: str


MISTAKES = {
    "a typo in an argument": Mistake(
        file="aws/nodes.tf",
        old="    http_put_response_hop_limit = 1",
        new="    http_put_response_hop_limits = 1",
        said='An argument named "http_put_response_hop_limits" is not expected here',
    ),
    "a typo in a name of a block": Mistake(
        file="gcp/nodes.tf",
        old="        gpu_driver_installation_config {",
        new="        gpu_driver_install_config {",
        said='Blocks of type "gpu_driver_install_config" are not expected here',
    ),
    "a missing argument": Mistake(
        file="aws/nodes.tf",
        old="  node_role_arn   = aws_iam_role.node.arn\n  subnet_ids      = [for zone in",
        new="  subnet_ids      = [for zone in",
        said='The argument "node_role_arn" is required',
    ),
    "a missing block": Mistake(
        file="aws/cluster.tf",
        old='  access_scope {\n    type = "cluster"\n  }\n',
        new="",
        said='At least 1 "access_scope" blocks are required',
    ),
    "a block too many": Mistake(
        file="aws/cluster.tf",
        old="  upgrade_policy {",
        new='  upgrade_policy {\n    support_type = "EXTENDED"\n  }\n\n  upgrade_policy {',
        said="Too many upgrade_policy blocks",
    ),
    "a value of the wrong type": Mistake(
        file="gcp/storage.tf",
        old="  uniform_bucket_level_access = true",
        new='  uniform_bucket_level_access = ["true"]',
        said=": bool required",
    ),
    "an unknown resource": Mistake(
        file="aws/registry.tf",
        old='resource "aws_ecr_lifecycle_policy" "image"',
        new='resource "aws_ecr_lifecycle_rule" "image"',
        said='The provider hashicorp/aws does not support resource type "aws_ecr_lifecycle_rule"',
    ),
    "a reference to nothing": Mistake(
        file="aws/redis.tf",
        old="  subnet_group_name          = aws_elasticache_subnet_group.redis",
        new="  subnet_group_name          = aws_elasticache_subnet_group.queue",
        said="Reference to undeclared resource",
    ),
    "a reference to an attribute that there is not": Mistake(
        file="gcp/nodes.tf",
        old='  member   = "serviceAccount:${google_service_account.node.email}"',
        new='  member   = "serviceAccount:${google_service_account.node.mail}"',
        said='This object has no argument, nested block, or exported attribute named "mail"',
    ),
    "an example that passes what the module does not take": Mistake(
        file="examples/aws/main.tf",
        old="  api_public_cidrs     = var.my_cidrs",
        new="  public_cidrs         = var.my_cidrs",
        said='An argument named "public_cidrs" is not expected here',
    ),
    "GPUs that stay on (AWS)": Mistake(
        file="aws/nodes.tf",
        old="    min_size     = 0",
        new="    min_size     = 1",
        seen_by="defaults",
        said="a group of a pool would keep nodes without work",
    ),
    "GPUs that stay on (Google)": Mistake(
        file="gcp/nodes.tf",
        old="    total_min_node_count = 0",
        new="    total_min_node_count = 1",
        seen_by="defaults",
        said="a group of a pool would keep nodes without work",
    ),
    "GPUs that begin with a node": Mistake(
        file="aws/nodes.tf",
        old="    desired_size = 0",
        new="    desired_size = 1",
        seen_by="defaults",
        said="a group of a pool would keep nodes without work",
    ),
    "a spot pool of a single type": Mistake(
        file="aws/nodes.tf",
        old="local.offered[name].instance_types\n",
        new="slice(local.offered[name].instance_types, 0, 1)\n",
        seen_by="defaults",
        said="a spot group has a single instance type",
    ),
    "a taint that the chart does not tolerate": Mistake(
        file="aws/nodes.tf",
        old='{ key = "nvidia.com/gpu", value = "present" }',
        new='{ key = "nvidia.com/gpus", value = "present" }',
        seen_by="defaults",
        said="the taint that the chart's pools tolerate",
    ),
    "a label that no pool selects": Mistake(
        file="gcp/nodes.tf",
        old='"lading.dev/pool" = each.value.pool',
        new='"lading.dev/pool" = each.value.machine',
        seen_by="defaults",
        said="labels are not those that the chart's pools select by",
    ),
    "a bucket that can be made public (AWS)": Mistake(
        file="aws/storage.tf",
        old="  restrict_public_buckets = true",
        new="  restrict_public_buckets = false",
        seen_by="defaults",
        said="the bucket can be made public",
    ),
    "a bucket that can be made public (Google)": Mistake(
        file="gcp/storage.tf",
        old='"enforced"',
        new='"inherited"',
        seen_by="defaults",
        said="the bucket can be made public",
    ),
    "a public API server (AWS)": Mistake(
        file="aws/cluster.tf",
        old="    endpoint_public_access  = length(var.api_public_cidrs) > 0",
        new="    endpoint_public_access  = true",
        seen_by="defaults",
        said="the API server is on the internet",
    ),
    "a public API server (Google)": Mistake(
        file="gcp/cluster.tf",
        old="    enable_private_endpoint = length(var.api_public_cidrs) == 0",
        new="    enable_private_endpoint = false",
        seen_by="defaults",
        said="the API server or nodes are on the internet",
    ),
    "the internet as an address": Mistake(
        file="aws/variables.tf",
        old="    condition     = alltrue([for cidr in var.api_public_cidrs : can(cidrnetmask(cidr))",
        new="    condition     = true || alltrue([for cidr in var.api_public_cidrs : can(cidrnetmask(cidr))",
        seen_by="validation",
        said="Missing expected failure",
    ),
    "a role for any service account": Mistake(
        file="aws/cluster.tf",
        old='"system:serviceaccount:${account}"',
        new='"system:serviceaccount:*"',
        seen_by="identity",
        said="a role is open to other service accounts",
    ),
    "a role for a whole bucket": Mistake(
        file="gcp/identity.tf",
        old="bucket == bucket]",
        new='bucket == bucket && place.prefix == ""]',
        seen_by="options",
        said="a worker writes elsewhere",
    ),
    "Redis without TLS": Mistake(
        file="aws/redis.tf",
        old='    = "required"',
        new='    = "preferred"',
        seen_by="options",
        said="Redis answers without TLS",
    ),
    "Redis that drops queues": Mistake(
        file="gcp/redis.tf",
        old='"noeviction"',
        new='"allkeys-lru"',
        seen_by="options",
        said="a full Redis would drop queues",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_noticed(terraform: Terraform, mistake: Mistake):
    """Each kind of mistake fails the check, for its own reason."""
    terraform.replace(mistake.file, mistake.old, mistake.new)
    done = terraform.check(str(Path(mistake.file).parent), *filter(None, [mistake.seen_by]))
    assert done.returncode != 0, done.stdout
    assert mistake.said in re.sub(r"\s+", " ", done.stdout), done.stdout


@pytest.mark.skipif(REAL, reason="the registry's providers say it in their own way")
def test_a_resource_that_no_test_names_is_unknown(terraform: Terraform):
    """A schema is made of what the modules name: what is added to a copy later is refused, not waved through."""
    (terraform.root / "aws" / "more.tf").write_text('resource "aws_instance" "more" {}\n')
    done = terraform.check("aws")
    assert "does not support resource type" in re.sub(r"\s+", " ", done.stdout), done.stdout


RESOURCE = """
class Thing extends cdktf.TerraformResource {
    constructor(scope, id, config) {
        // owners - computed: true, optional: false, required: false
        this._owners = new ThingOwnersList(this, "owners", true);
        // rule - computed: false, optional: false, required: true
        this._rule = new ThingRuleOutputReference(this, "rule");
    }
    resetSize() {
    }
    // arn - computed: true, optional: false, required: false
    get arn() {
        return this.getStringAttribute('arn');
    }
    synthesizeHclAttributes() {
        const attrs = {
            name: {
                value: cdktf.stringToHclTerraform(this._name),
                isBlock: false,
                type: "simple",
                storageClassType: "string",
            },
            size: {
                value: cdktf.numberToHclTerraform(this._size),
                isBlock: false,
                type: "simple",
                storageClassType: "number",
            },
            rule: {
                value: thingRuleToHclTerraform(this._rule.internalValue),
                isBlock: true,
                type: "list",
                storageClassType: "ThingRuleList",
            },
        };
    }
}
class ThingOwnersOutputReference extends cdktf.ComplexObject {
    // since - computed: true, optional: false, required: false
    get since() {
        return this.getNumberAttribute('since');
    }
}
function thingRuleToHclTerraform(struct) {
    const attrs = {
        ports: {
            value: cdktf.listMapperHcl(cdktf.numberToHclTerraform, false)(struct.ports),
            isBlock: false,
            type: "set",
            storageClassType: "numberList",
        },
    };
}
class ThingRuleOutputReference extends cdktf.ComplexObject {
    resetPorts() {
    }
}
"""


def test_a_schema_is_read_from_generated_classes():
    """Required and optional, types, blocks and what is known only afterwards: as the provider's own schema has them."""
    block = provider_schema("cloud", {"cloud_thing": [RESOURCE]}).resource_schemas["cloud_thing"].block
    found = {one.name: (one.type, one.required, one.optional, one.computed) for one in block.attributes}
    assert found == {
        "name": (b'"string"', True, False, False),
        "size": (b'"number"', False, True, False),
        "arn": (b'"string"', False, False, True),
        "owners": (b'["set", ["object", {"since": "number"}]]', False, False, True),
    }
    (rule,) = block.block_types
    assert (rule.type_name, rule.min_items, rule.max_items) == ("rule", 1, 1)
    assert [(one.name, one.type, one.optional) for one in rule.block.attributes] == [
        ("ports", b'["set", "number"]', True)
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('storageClassType: "number",', 'storageClassType: "complex",'),
        ("this.getStringAttribute('arn')", "this.interpolationForAttribute('arn')"),
        ("this._owners = new ThingOwnersList(", "this._owners = makeOwners("),
    ],
)
def test_what_the_reader_does_not_know_is_an_error(old: str, new: str):
    """A schema with a hole would wave mistakes through."""
    with pytest.raises(UnknownShapeError, match="cloud_thing"):
        provider_schema("cloud", {"cloud_thing": [RESOURCE.replace(old, new, 1)]})


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its content is compared before anything of it is read, and it is not kept."""
    monkeypatch.setattr(terraform_offline, "CACHE", tmp_path)
    other = tmp_path / "npm" / "cdktf-provider-aws-21.22.1.tgz"
    other.parent.mkdir()
    other.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not what is pinned"):
        terraform_offline.schema_of(PACKAGES[0])
    assert not other.exists()
