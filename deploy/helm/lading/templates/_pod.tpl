{{- /* What every pod of ours has in common. */ -}}

{{- define "lading.pod.security" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "lading.container.security" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- /* (root, image) Ends in the environment, to which entries may be added. No password is in it. */ -}}
{{- define "lading.container.common" -}}
image: {{ include "lading.image" . | quote }}
imagePullPolicy: IfNotPresent
{{ include "lading.container.security" . }}
{{- with .root.Values.envSecrets }}
envFrom:
{{- range . }}
  - secretRef:
      name: {{ . }}
{{- end }}
{{- end }}
env:
  - name: LADING_CONFIG_DIR
    value: /etc/lading
  - name: LADING_JOBS
    value: {{ required "jobs: where submitted jobs are registered, like s3://bucket/jobs" .root.Values.jobs | quote }}
  - name: LADING_METRICS_BIND
    value: "0.0.0.0"
{{- range $name, $value := .root.Values.settings }}
  - name: LADING_{{ upper $name }}
    value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- range $name, $value := .root.Values.env }}
  - name: {{ $name }}
    value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- /* (root) Where they may write, and what they read. The cache is the caller's. */ -}}
{{- define "lading.mounts" -}}
- name: config
  mountPath: /etc/lading
  readOnly: true
- name: tmp
  mountPath: /tmp
- name: home
  mountPath: /var/lib/lading
- name: cache
  mountPath: /var/cache/lading
{{- if .root.Values.redis.tls.caSecret }}
- name: redis-ca
  mountPath: /etc/lading-redis
  readOnly: true
{{- end }}
{{- end }}

{{- /* (root, user) The broker's URL, with the password, comes as settings.yaml beside the pools. */ -}}
{{- define "lading.volumes" -}}
- name: config
  projected:
    defaultMode: 0440
    sources:
      - configMap:
          name: {{ include "lading.fullname" .root }}-config
      - secret:
          name: {{ .root.Values.redis.secret }}
          items:
            - key: {{ .user }}.yaml
              path: settings.yaml
- name: tmp
  emptyDir:
    sizeLimit: 2Gi
- name: home
  emptyDir:
    sizeLimit: 256Mi
{{- with .root.Values.redis.tls.caSecret }}
- name: redis-ca
  secret:
    secretName: {{ . }}
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- end }}

{{- /* (port) Progress, not only a pulse, is what /healthz answers by. */ -}}
{{- define "lading.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: {{ .port }}}
  periodSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: {{ .port }}}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 5
{{- end }}

{{- define "lading.config.checksum" -}}
checksum/config: {{ include (print $.root.Template.BasePath "/config.yaml") .root | sha256sum }}
{{- end }}
