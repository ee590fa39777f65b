"""Mistakes in the chart, and in the values that it is given, are found: each rule of chart_rules is shown to bite."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import helm_python
import pytest

from tests.deploy.chart_rules import CHART, merged, policy_problems, preset, render, schema_problems, versions

pytestmark = pytest.mark.deploy


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
        {"submissions": {"cache": {"sizes": "1Gi"}}},
        {"networkPolicy": {"dns": {"nodeLocal": "node-local-dns"}}},
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
