"""The chart and Redis: what is mounted opens a real server for each part's user, and the bundled server's configuration is one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from lading.config import settings
from lading.config.errors import BrokerError
from lading.schedulers.connection import Broker
from tests.deploy.chart_rules import CHART, Object, lengths, named, pods_of, preset, render, selects
from tests.redis_server import RedisServer, executable

pytestmark = pytest.mark.deploy

DEPLOY = CHART.parents[1]


@pytest.fixture(scope="module")
def everything() -> list[Object]:
    return render(preset("aws", "cpu", "l4", "a100", "h100"))


@pytest.fixture(scope="module")
def secret() -> dict[str, str]:
    """The contents of the secret that the chart asks for, made of the users of deploy/redis; each one's password is its name."""
    users = {file.stem: file.read_text().strip() for file in (DEPLOY / "redis").glob("*.acl")}
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


def test_the_readme_makes_the_secret_that_is_asked_for():
    """The commands of the chart's README put into the secret what pods and KEDA read from it, and nothing more."""
    made = re.findall(
        r"create secret generic lading-redis --from-file=secrets/\{(.*)\}", (CHART / "README.md").read_text()
    )
    for names, values in zip(made, (preset("aws", "cpu", "a100"), preset("trial", "cpu")), strict=True):
        objects = render(values)
        asked = {
            one["key"] for one in named(objects, "TriggerAuthentication", "lading-redis")["spec"]["secretTargetRef"]
        }
        for _, _, pod in pods_of(objects):
            for volume in pod["spec"]["volumes"]:
                for source in (volume.get("projected") or {}).get("sources") or [volume]:
                    asked |= {item["key"] for item in (source.get("secret") or {}).get("items") or []}
        assert set(names.split(",")) == asked


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
    assert (said["maxmemory-policy"], said["appendonly"], int(said["maxmemory"])) == ("noeviction", "yes", 512 << 20)
    counts = queue.counts()
    assert (counts.waiting, counts.in_flight) == (1, 1)
