"""The rights that Terraform gives are enough: what submitting, working and scheduling ask of a bucket, each role may.

A real job goes from bucket to bucket on an S3 server, whose log says what was asked. Every line is held to the policy of the role that
asked it, conditions on listings included. That the policies give no more than they should is the modules' own tests' matter.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.terraform_offline import MissingTool, Terraform, environment
from tests.redis_server import RedisServer

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "docs"  # of the server
REQUEST = re.compile(r'"([A-Z]+) (/\S*) HTTP/1\.1" (\d+)')


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A right that a request needs: an action, on an object's ARN, or on the bucket's with what a listing asks for."""

    action: str
    resource: str
    prefix: str | None = None

    @classmethod
    def by(cls, method: str, target: str) -> Asked:
        path, _, query = target.partition("?")
        bucket, _, key = urllib.parse.unquote(path).lstrip("/").partition("/")
        given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        if not bucket:
            return cls("s3:ListAllMyBuckets", "*")
        if not key:
            if method == "POST" and "delete" in given:  # which objects, its body says: those that the same role put
                return cls("s3:DeleteObject", f"arn:aws:s3:::{bucket}/outputs/")
            other = {"location": "s3:GetBucketLocation", "uploads": "s3:ListBucketMultipartUploads"}
            action = next((right for name, right in other.items() if name in given), "s3:ListBucket")
            action = action if method in ("GET", "HEAD") else f"s3:{method} on a bucket"
            return cls(action, f"arn:aws:s3:::{bucket}", given.get("prefix", ""))
        actions = {
            "GET": "GetObject",
            "HEAD": "GetObject",
            "PUT": "PutObject",
            "POST": "PutObject",
            "DELETE": "DeleteObject",
        }
        action = "AbortMultipartUpload" if method == "DELETE" and "uploadId" in given else actions[method]
        return cls(f"s3:{action}", f"arn:aws:s3:::{bucket}/{key}")


def allows(policy: Mapping[str, Any], asked: Asked) -> bool:
    """IAM's rule, as far as these policies use it: some statement has the action, the resource and the listing's prefix."""
    for statement in policy["Statement"]:
        prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
        if (
            statement["Effect"] == "Allow"
            and asked.action in statement["Action"]
            and any(_like(pattern, asked.resource) for pattern in statement["Resource"])
            and (asked.prefix is None or any(_like(pattern, asked.prefix) for pattern in prefixes))
        ):
            return True
    return False


def _like(pattern: str, text: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), text) is not None


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    """Each role's rights, as the module makes them, for the server's bucket."""
    try:
        with environment(tmp_path_factory.mktemp("providers")) as variables:
            terraform = Terraform.copied(tmp_path_factory.mktemp("modules"), variables)
            assert terraform.init("aws").returncode == 0
            done = terraform.run("aws", "test", "-json", "-verbose", "-filter=tests/scaling.tftest.hcl")
    except MissingTool as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    assert done.returncode == 0, done.stdout
    (state,) = [one["test_state"] for one in map(json.loads, done.stdout.splitlines()) if one["type"] == "test_state"]
    name = state["outputs"]["bucket"]["value"]
    return {
        one["index"]: json.loads(one["values"]["policy"].replace(name, BUCKET))
        for one in state["root_module"]["resources"]
        if (one["type"], one["name"]) == ("aws_iam_role_policy", "pod")
    }


@dataclasses.dataclass(slots=True)
class Bucket:
    """The S3 server with its log."""

    environment: dict[str, str]
    log: Path
    read: int = 0

    def asked(self) -> list[Asked]:
        """What was asked since the last time."""
        text = self.log.read_text()
        new, self.read = text[self.read :], len(text)
        return [Asked.by(method, target) for method, target, _ in REQUEST.findall(new)]


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    log = tmp_path / "s3.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/s3_server.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
            env=os.environ | {"S3_SERVER_LOG": "INFO"},
        )  # fmt: skip
        assert server.stdin
        assert server.stdout
        yield Bucket(json.loads(server.stdout.readline()), log)
        server.stdin.close()
        server.wait()


@pytest.mark.parametrize("sink", ["lancedb", "parquet"])
def test_each_role_may_what_it_does(
    sink: str,
    policies: Mapping[str, Mapping[str, Any]],
    bucket: Bucket,
    redis_server: RedisServer,
    tiny_encoder: Path,
    tmp_path: Path,
):
    """A producer submits, a worker works and ends the job, an operator looks and tidies up with the scheduler's rights."""
    variables = os.environ | bucket.environment | {
        "AWS_DEFAULT_REGION": bucket.environment["AWS_REGION"],
        "LADING_BROKER_URL": f"redis://127.0.0.1:{redis_server.port}/0",
        "LADING_JOBS": f"s3://{BUCKET}/jobs",
        "LADING_ROOTS": f"s3://{BUCKET}/outputs,s3://{BUCKET}/sources",
        "LADING_CACHE_DIR": str(tmp_path / "cache"),
        "LADING_OFFLINE": "true",
    }  # fmt: skip

    def lading(*arguments: str) -> str:
        command = [sys.executable, "-m", "lading.cli", *arguments]
        done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    put = "import sys, fsspec; fsspec.filesystem('s3').pipe(sys.argv[1], sys.stdin.buffer.read())"
    rows = "".join(json.dumps({"id": str(number), "text": f"crate {number}"}) + "\n" for number in range(30))
    subprocess.run(
        [sys.executable, "-c", put, f"{BUCKET}/sources/first/docs.jsonl"],
        input=rows.encode(),
        env=variables,
        check=True,
    )
    bucket.asked()
    job = {
        "source": {"path": f"s3://{BUCKET}/sources/first/*.jsonl", "id": "id"},
        "steps": [{"encode": {"text": "text", "model": str(tiny_encoder)}}],
        "sink": {"to": f"{sink}://s3://{BUCKET}/outputs/first/docs"},
        "policy": {"shard_rows": 10},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    seen: dict[str, set[Asked]] = {}
    lading("submit", "job.yaml")
    seen["producer"] = set(bucket.asked())
    worker = subprocess.Popen(
        [sys.executable, "-m", "lading.cli", "worker", "--pool", "cpu"], env=variables, cwd=tmp_path
    )
    try:
        lading("watch", job["sink"]["to"])
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait()
    seen["worker"] = set(bucket.asked())
    lading("scheduler", "--once")
    lading("status", job["sink"]["to"])
    lading("optimize", job["sink"]["to"])
    seen["scheduler"] = set(bucket.asked())
    refused = {
        role: sorted(map(str, (one for one in asked if not allows(policies[role], one))))
        for role, asked in seen.items()
    }
    assert refused == {"producer": [], "worker": [], "scheduler": []}
    # The log was read: work was seen, and what a worker asks is more than the scheduler may, which reads no documents.
    for role in ("producer", "worker"):
        assert {"s3:GetObject", "s3:PutObject", "s3:ListBucket"} <= {one.action for one in seen[role]}
    beyond = {one.resource for one in seen["worker"] if not allows(policies["scheduler"], one)}
    assert f"arn:aws:s3:::{BUCKET}/sources/first/docs.jsonl" in beyond


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("GET", f"/{BUCKET}?list-type=2"),
        ("GET", f"/{BUCKET}?list-type=2&prefix=private%2F"),
        ("GET", f"/{BUCKET}/private/letter.txt"),
        ("PUT", f"/{BUCKET}/sources/first/docs.jsonl"),
        ("DELETE", f"/{BUCKET}/sources/first/docs.jsonl"),
        ("GET", "/other/outputs/first"),
        ("PUT", f"/{BUCKET}"),
    ],
)
def test_nobody_may_what_nobody_needs(policies: Mapping[str, Mapping[str, Any]], method: str, target: str):
    """Other prefixes and buckets, whole listings, and writing where documents are read."""
    assert not any(allows(policy, Asked.by(method, target)) for policy in policies.values())
