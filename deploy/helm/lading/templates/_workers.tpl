{{- /* A pool with what its own values leave to poolDefaults, and what follows from them. (root, given) -> YAML */ -}}
{{- define "lading.pool" -}}
{{- $pool := mergeOverwrite (deepCopy .root.Values.poolDefaults) (deepCopy .given) -}}
{{- $processes := max 1 (int $pool.gpu.count) -}}
{{- $workers := int $pool.spec.max_workers -}}
{{- $shard := int $pool.shardSeconds -}}
{{- $load := int $pool.loadSeconds -}}
{{- $notice := int (get (dict "eks" 120 "karpenter" 120 "gke" 15 "aks" 30 "none" 30) .root.Values.cloud) -}}
{{- /* After its grace a worker commits what is done, and ends a batch: some 20 s, which have to fit into the notice too. */ -}}
{{- $grace := $shard -}}
{{- if eq $pool.capacity "spot" }}{{ $grace = min $shard (max 5 (sub $notice 35)) }}{{ end -}}
{{- /* What a pod's processes take at once. The window in Redis is cut at 65,536 messages (schedulers/admission.py). */ -}}
{{- $window := min (mul 2 $workers (int $pool.spec.pull_shards)) 65536 -}}
{{- $_ := set $pool "processes" $processes -}}
{{- $_ := set $pool "maxReplicas" (div (add $workers (sub $processes 1)) $processes) -}}
{{- $_ := set $pool "shardsPerPod" (mul $processes (max 1 (div $window (mul 2 $workers)))) -}}
{{- $_ := set $pool "requestsPerPod" (mul $processes (int $pool.spec.pull_requests)) -}}
{{- $_ := set $pool "grace" (int $pool.graceSeconds | default $grace) -}}
{{- $_ := set $pool "cooldown" (int $pool.cooldownSeconds | default (max 300 (add $load $shard))) -}}
{{- $_ := set $pool "settling" (min 3600 (max 300 (add $load (mul $shard (int $pool.spec.pull_shards))))) -}}
{{- toYaml $pool }}
{{- end }}

{{- /* The pod of a worker. (root, name, pool) */ -}}
{{- define "lading.worker" -}}
{{- $root := .root -}}
{{- $pool := .pool -}}
{{- $image := ternary "workerCuda" "workerCpu" (eq $pool.spec.device "cuda") -}}
metadata:
  labels: {{- include "lading.labels" (dict "root" $root "component" "worker" "name" .name) | nindent 4 }}
  annotations:
    {{- include "lading.config.checksum" (dict "root" $root) | nindent 4 }}
{{- if eq $pool.mode "bulk" }}
    # It ends by itself: whoever tidies nodes up waits for that.
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    karpenter.sh/do-not-disrupt: "true"
{{- end }}
{{- with $pool.annotations }}
    {{- toYaml . | nindent 4 }}
{{- end }}
spec:
  serviceAccountName: {{ include "lading.account" (dict "root" $root "name" "worker") }}
  {{- include "lading.pod.security" (dict "root" $root) | nindent 2 }}
  # More than the worker's own patience: grace_s, then 30 s for processes that do not end.
  terminationGracePeriodSeconds: {{ add $pool.grace 40 }}
{{- if eq $pool.mode "bulk" }}
  restartPolicy: Never
{{- end }}
{{- with $pool.priorityClassName }}
  priorityClassName: {{ . }}
{{- end }}
  {{- include "lading.placement" (dict "root" $root "name" .name "pool" $pool) | trim | nindent 2 }}
  containers:
    - name: worker
      {{- include "lading.container.common" (dict "root" $root "image" $image) | nindent 6 }}
        - name: LADING_METRICS_PORT
          value: "9464"
        - name: LADING_GRACE_S
          value: {{ $pool.grace | int | quote }}
        - name: LADING_CAPACITY
          value: {{ $pool.capacity }}
        - name: LADING_PRICE_PER_HOUR
          value: {{ $pool.pricePerHour | quote }}
        - name: LADING_LOG_FORMAT
          value: json
        # Else there would be a thread for every core of the node, whatever the pod may use of them.
        - name: OMP_NUM_THREADS
          valueFrom:
            resourceFieldRef:
              containerName: worker
              resource: requests.cpu
{{- range $name, $value := $pool.env }}
        - name: {{ $name }}
          value: {{ $value | quote }}
{{- end }}
      command:
        - lading
        - -v
        - worker
        - --pool
        - {{ .name }}
        - --devices
        - all
{{- if eq $pool.mode "bulk" }}
        - --exit-when-idle
        - {{ $pool.idleSeconds | quote }}
{{- end }}
      ports:
{{- range $number := until (int $pool.processes) }}
        - name: metrics{{ if $number }}-{{ $number }}{{ end }}
          containerPort: {{ add 9464 $number }}
{{- end }}
      {{- include "lading.probes" (dict "port" "metrics") | nindent 6 }}
      resources:
        requests: {{- toYaml $pool.resources.requests | nindent 10 }}
        limits:
          {{- toYaml $pool.resources.limits | nindent 10 }}
{{- if $pool.gpu.count }}
          {{ $pool.gpu.resource }}: {{ $pool.gpu.count }}
{{- end }}
      volumeMounts: {{- include "lading.mounts" (dict "root" $root) | nindent 8 }}
  volumes:
    {{- include "lading.volumes" (dict "root" $root "user" "worker") | nindent 4 }}
    - name: cache
{{- if eq $pool.cache.type "claim" }}
      persistentVolumeClaim:
        claimName: {{ required (printf "pools.%s.cache.claimName: which volume" .name) $pool.cache.claimName }}
{{- else if eq $pool.cache.type "ephemeral" }}
      ephemeral:
        volumeClaimTemplate:
          spec:
            accessModes: [ReadWriteOnce]
{{- with $pool.cache.className }}
            storageClassName: {{ . }}
{{- end }}
            resources:
              requests:
                storage: {{ $pool.cache.size }}
{{- else }}
      emptyDir:
        sizeLimit: {{ $pool.cache.size }}
{{- end }}
{{- end }}

{{- /* On which nodes. (root, name, pool) */ -}}
{{- define "lading.placement" -}}
{{- $cloud := .root.Values.cloud -}}
{{- $pool := .pool -}}
{{- $spot := eq $pool.capacity "spot" -}}
{{- $key := get (dict "eks" "eks.amazonaws.com/capacityType" "karpenter" "karpenter.sh/capacity-type" "gke" "cloud.google.com/gke-spot" "aks" "kubernetes.azure.com/scalesetpriority") $cloud -}}
{{- $value := get (dict "eks" "SPOT" "karpenter" "spot" "gke" "true" "aks" "spot") $cloud -}}
{{- $selector := deepCopy $pool.nodeSelector -}}
{{- if has $cloud (list "eks" "aks") -}}
{{- /* Nodes of managed groups say nothing of what is in them: ours carry the pool's name. */ -}}
{{- $_ := set $selector "lading.dev/pool" .name -}}
{{- else if and $pool.gpu.count $pool.gpu.type -}}
{{- if eq $cloud "gke" -}}
{{- $names := dict "t4" "nvidia-tesla-t4" "l4" "nvidia-l4" "a100-40gb" "nvidia-tesla-a100" "a100-80gb" "nvidia-a100-80gb" "h100-80gb" "nvidia-h100-80gb" -}}
{{- $_ := set $selector "cloud.google.com/gke-accelerator" (required (printf "pools.%s.gpu.type: GKE has no %s" .name $pool.gpu.type) (get $names $pool.gpu.type)) -}}
{{- else if eq $cloud "karpenter" -}}
{{- $_ := set $selector "karpenter.k8s.aws/instance-gpu-name" (first (splitList "-" $pool.gpu.type)) -}}
{{- end -}}
{{- end -}}
{{- with $selector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $key }}
affinity:
  nodeAffinity:
{{- if and $spot $pool.onDemandFallback }}
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        preference:
          matchExpressions:
            - {key: {{ $key }}, operator: In, values: [{{ $value | quote }}]}
{{- else }}
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: {{ $key }}, operator: {{ ternary "In" "NotIn" $spot }}, values: [{{ $value | quote }}]}
{{- end }}
{{- end }}
{{- $tolerations := $pool.tolerations }}
{{- if $pool.gpu.count }}
{{- $tolerations = append $tolerations (dict "key" $pool.gpu.resource "operator" "Exists" "effect" "NoSchedule") }}
{{- end }}
{{- if and $spot (has $cloud (list "gke" "aks")) }}
{{- $tolerations = append $tolerations (dict "key" $key "operator" "Equal" "value" $value "effect" "NoSchedule") }}
{{- end }}
{{- with $tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
# A zone without spot capacity, or one that is reclaimed, should not be all of them.
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "lading.selector" (dict "root" .root "component" "worker" "name" .name) | nindent 8 }}
{{- end }}

{{- /* KEDA looks at Redis itself, at what waits and at what is in flight, of shards and of requests. (root, name, pool) */ -}}
{{- define "lading.triggers" -}}
{{- $root := .root -}}
{{- $lists := list (list "shards" (printf "lading.%s.shards" .name) .pool.shardsPerPod) (list "requests" (printf "lading.%s.requests" .name) .pool.requestsPerPod) -}}
{{- range $prefix, $suffix := dict "" "" "unacked:" "-inflight" }}
{{- range $lists }}
- type: redis
  name: {{ index . 0 }}{{ $suffix }}
  metadata:
    address: {{ printf "%s:%d" (include "lading.redis.host" $root) (int $root.Values.redis.port) | quote }}
    databaseIndex: {{ $root.Values.redis.database | quote }}
{{- /* KEDA refuses to be told twice: with a CA of one's own the TriggerAuthentication says it. */}}
{{- if and $root.Values.redis.tls.enabled (not $root.Values.redis.bundled) (not $root.Values.redis.tls.caSecret) }}
    enableTLS: "true"
{{- end }}
    listName: {{ printf "%s%s" $prefix (index . 1) | quote }}
    listLength: {{ index . 2 | int | quote }}
    activationListLength: "0"
  authenticationRef:
    name: {{ include "lading.fullname" $root }}-redis
{{- end }}
{{- end }}
{{- end }}
