"""deploy/compose.yaml: valid by the specification, closed to the outside, and everything that it mounts and names is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from lading.cli.app import cli
from lading.cli.worker import BEYOND_GRACE_S
from lading.config import settings

from .image_rules import PINNED, TARGETS, stages

pytestmark = pytest.mark.deploy

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TEXT = (DEPLOY / "compose.yaml").read_text()
SETTINGS = {f"LADING_{name.upper()}" for name in settings.Settings.__dataclass_fields__} | {"LADING_CONFIG_DIR"}
OURS = [f"lading-{target}" for target in TARGETS]
GRACE_S = settings.load({}).grace_s + BEYOND_GRACE_S  # what a worker may take to end
TOOL = "lading"  # the service that one runs verbs in


def resolved(text: str, **environment: str) -> dict[str, Any]:
    """As Compose reads it: variables by their defaults, merge keys merged."""

    def value(match: re.Match[str]) -> str:
        return environment.get(match[1], match[2])

    return yaml.safe_load(re.sub(r"(?<!\$)\$\{(\w+):-([^}]*)\}", value, text))


def problems(text: str, made: set[str]) -> list[str]:
    """What is wrong with a composition; `made` are the names of the files that passwords.py makes."""
    import compose_spec  # of the group `deploy`, which other tests do without

    whole = resolved(text)
    try:
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(whole))
    except ValueError as error:
        return [str(error)]
    bad = [f"secret {name}: nobody makes {secret['file']}" for name, secret in whole["secrets"].items()
           if Path(secret["file"]).parent != Path("secrets") or Path(secret["file"]).name not in made]  # fmt: skip
    for name, service in whole["services"].items():
        bad += [f"{name}: {one}" for one in _service(name, service, whole)]
    return bad


def _service(name: str, service: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    ours = service["image"].split(":")[0] in OURS
    expected = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
    bad = [f"{key} is not {value}" for key, value in expected.items() if service.get(key) != value]
    bad += [
        f"has {key}" for key in ("privileged", "cap_add", "network_mode", "pid", "ipc", "devices") if key in service
    ]
    ids = service.get("user", "0:0").split(":")
    if not all(one.isdigit() and int(one) > 0 for one in ids) or (ours and ids != ["10001", "10001"]):
        bad.append(f"user {service.get('user')}")
    if not PINNED.fullmatch(service["image"]):
        bad.append(f"image {service['image']}")
    if ours != ("build" in service):
        bad.append("builds what is not ours, or not what is")
    if ours and (service["build"]["target"] != service["image"].split(":")[0].removeprefix("lading-")):
        bad.append(f"builds {service['build']['target']} for {service['image']}")
    if not ours and "healthcheck" not in service:
        bad.append("no health check")
    bad += [
        f"publishes {port} to the outside" for port in service.get("ports", []) if not port.startswith("127.0.0.1:")
    ]
    bad += [f"network {one}" for one in service.get("networks", ["default"]) if one not in whole["networks"]]
    for mount in service["volumes"]:
        source, _, *mode = mount.split(":")
        if source.startswith("."):
            if not (DEPLOY / source).exists() or mode != ["ro"]:
                bad.append(f"{mount}: not in the repository, or not read-only")
        elif source not in whole["volumes"]:
            bad.append(f"{mount}: no such volume")
    used = [secret if isinstance(secret, str) else secret["source"] for secret in service.get("secrets", [])]
    bad += [f"secret {one} is not declared" for one in used if one not in whole["secrets"]]
    if ours:
        bad += _ours(name, service, whole)
    return bad


def _ours(name: str, service: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    environment = service["environment"]
    bad = [f"{key} is no setting" for key in environment if key not in SETTINGS]
    verb = next((word for word in service.get("command", []) if not word.startswith("-")), "")
    if verb not in cli.commands and name != TOOL:
        bad.append(f"lading has no verb {verb}")
    internal = [one for one in service["networks"] if whole["networks"][one].get("internal")]
    if "queue" not in internal:
        bad.append("is not on the queue's network")
    if name != TOOL and "metrics" not in internal:
        bad.append("is not on the network that Prometheus comes over")
    mounted = {mount.split(":")[-1] for mount in service["volumes"]}
    if mounted != {"/data", "/var/lib/lading", "/var/cache/lading"}:
        bad.append(f"mounts {mounted}: expected what the image declares as volumes")
    if (
        service["stop_grace_period"] < "55s" if verb == "worker" else False
    ):  # grace_s, and BEYOND_GRACE_S of cli/worker.py
        bad.append("is killed before its grace is over")
    return bad


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What passwords.py makes."""
    folder = tmp_path_factory.mktemp("secrets")
    subprocess.run([sys.executable, DEPLOY / "redis/passwords.py", folder], check=True, capture_output=True)
    return {path.name for path in folder.iterdir()}


def test_the_composition_is_sound(made: set[str]) -> None:
    """Compose's own schema, and every service: no root, nothing writable but volumes, no rights, loopback only, all mounts there."""
    assert problems(TEXT, made) == []


MUTATIONS = {
    "root": ('user: "999:999"', 'user: "0:0"'),
    "no user": ('  user: "10001:10001"\n', ""),
    "a writable root": ("read_only: true", "read_only: false"),
    "rights": ("cap_drop: [ALL]", "cap_drop: [NET_RAW]"),
    "more rights": ("cap_drop: [ALL]", "cap_drop: [ALL]\n  cap_add: [SYS_ADMIN]"),
    "setuid": ("no-new-privileges:true", "no-new-privileges:false"),
    "privileged": ("  init: true", "  init: true\n  privileged: true"),
    "the host's network": ("networks: [metrics, edge]", "network_mode: host"),
    "a typo in a key": ("restart: unless-stopped", "restartt: unless-stopped"),
    "a typo deep down": ("start_period: 10s", "start_peroid: 10s"),
    "a typo in a condition": ("service_healthy", "service_helthy"),
    "a typo in a setting": ("LADING_ROOTS:", "LADING_ROTS:"),
    "a typo in a verb": ("command: [-v, exporter]", "command: [-v, exportr]"),
    "latest": ("redis:7.4.9", "redis:latest"),
    "a floating version": ("grafana:12.3.0", "grafana:12"),
    "no health check": ("    healthcheck: # -e", "    x-healthcheck: # -e"),
    "a public port": ('"127.0.0.1:6379:6379"', '"6379:6379"'),
    "a mount that is not there": ("./redis/redis.conf:", "./redis/reddis.conf:"),
    "a writable mount": ("redis.conf:ro", "redis.conf:rw"),
    "a volume that is not there": ("- redis:/data", "- reddis:/data"),
    "a secret that nobody makes": ("./secrets/worker.yaml", "./secrets/workers.yaml"),
    "a secret from the repository": ("./secrets/worker.yaml", "./worker.yaml"),
    "an undeclared secret": ("secrets: [users.acl, autoscaler.password]", "secrets: [users.acl, password]"),
    "another target's image": ("target: worker-cpu}", "target: worker-cuda}"),
    "a short grace": ("stop_grace_period: 60s", "stop_grace_period: 10s"),
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_mistake_is_found(made: set[str], what: str) -> None:
    """Each of these, made in the real file, is a problem."""
    before, after = MUTATIONS[what]
    assert before in TEXT
    assert set(problems(TEXT.replace(before, after), made)) - set(problems(TEXT, made))


def test_the_images_are_the_dockerfile_s() -> None:
    """Every target is a stage of the Dockerfile, built from the repository's root, and what it writes to is a volume there."""
    found = stages((DEPLOY / "docker/Dockerfile").read_text())
    for service in resolved(TEXT)["services"].values():
        if build := service.get("build"):
            assert build["target"] in found
            assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "docker/Dockerfile")


def test_the_tool_settles_recipes_of_the_hub_s_models() -> None:
    """Its image has the hub's client, which `submit` needs, and its network leads to the hub."""
    tool = resolved(TEXT)["services"][TOOL]
    dockerfile = stages((DEPLOY / "docker/Dockerfile").read_text())
    installs = {
        name: " ".join(rest for word, rest in stage.steps if word == "RUN") for name, stage in dockerfile.items()
    }
    assert "[worker," in installs[f"{tool['build']['target']}-environment"]
    extras = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(one.startswith("huggingface-hub") for one in extras["worker"])
    assert "edge" in tool["networks"]


def test_a_folder_of_one_s_own_stands_in_place_of_the_data() -> None:
    """LADING_DATA is mounted at /data by all that read and write there."""
    services = resolved(TEXT, LADING_DATA="/corpus")["services"]
    assert {name for name, one in services.items() if "/corpus:/data" in one["volumes"]} == {
        "worker", "worker-gpu", "scheduler", "exporter", "lading",
    }  # fmt: skip


def test_prometheus_scrapes_all_of_them(tmp_path: Path) -> None:
    """promtool takes its configuration; each process that serves metrics is a target, at the port that it is told."""
    assert shutil.which("promtool"), "no promtool: apt install prometheus"
    services = resolved(TEXT)["services"]
    mounts = dict(mount.split(":")[:2] for mount in services["prometheus"]["volumes"][1:])
    config = (DEPLOY / "prometheus/prometheus.yaml").read_text()
    for source, target in mounts.items():
        config = config.replace(target, str((DEPLOY / source).resolve()))
    (tmp_path / "prometheus.yaml").write_text(config)
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    targets: set[tuple[str, str]] = set()
    for job in yaml.safe_load(config)["scrape_configs"]:
        for found in job.get("dns_sd_configs", []):
            targets |= {(name, str(found["port"])) for name in found["names"]}
        for found in job.get("static_configs", []):
            targets |= {tuple(one.split(":")) for one in found["targets"]}
    told = {(name, one["environment"]["LADING_METRICS_PORT"]) for name, one in services.items()
            if "LADING_METRICS_PORT" in one.get("environment", {}) and name != TOOL}  # fmt: skip
    assert targets == told | {("127.0.0.1", "9090")}


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    """The data source is the service, at its port; the folder that dashboards are read from is mounted, and has some."""
    services = resolved(TEXT)["services"]
    mounts = {target: DEPLOY / source for source, target, _ in
              (one.split(":") for one in services["grafana"]["volumes"][1:])}  # fmt: skip
    assert {path for path in mounts if path.startswith("/etc/grafana/provisioning/")} == {
        "/etc/grafana/provisioning/datasources/lading.yaml",
        "/etc/grafana/provisioning/dashboards/lading.yaml",
    }
    [source] = yaml.safe_load((DEPLOY / "grafana/datasources.yaml").read_text())["datasources"]
    assert (source["url"], source["type"]) == ("http://prometheus:9090", "prometheus")
    [provider] = yaml.safe_load((DEPLOY / "grafana/dashboards.yaml").read_text())["providers"]
    assert list(mounts[provider["options"]["path"]].glob("*.json"))


def test_no_password_is_in_the_environment() -> None:
    """Passwords come in files: none is in a variable, where `docker inspect` and every child process would show it."""
    for service in resolved(TEXT)["services"].values():
        for name, value in service.get("environment", {}).items():
            assert "URL" not in name
            assert "PASSWORD" not in name or (name.endswith("__FILE") and value.startswith("/run/secrets/"))
