{{- /* Names, labels, images: what several templates say in the same words. */ -}}

{{- /* With -submit- and the name of a schedule it has to fit into the 52 characters that a CronJob may have. */ -}}
{{- define "lading.fullname" -}}
{{- if contains "lading" .Release.Name }}{{ .Release.Name | trunc 28 | trimSuffix "-" }}{{ else }}{{ printf "%s-lading" (.Release.Name | trunc 21 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- /* What never changes in an object's life: selectors are made of it. (root, component, and pool for workers) */ -}}
{{- define "lading.selector" -}}
app.kubernetes.io/name: lading
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .name }}
lading.dev/pool: {{ . }}
{{- end }}
{{- end }}

{{- define "lading.labels" -}}
{{ include "lading.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- /* (root, image: a key of values.images) By digest where there is one. */ -}}
{{- define "lading.image" -}}
{{- $image := index .root.Values.images .image -}}
{{- $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "lading.redis.host" -}}
{{- if .Values.redis.bundled }}{{ include "lading.fullname" . }}-redis.{{ .Release.Namespace }}.svc{{ else }}{{ required "redis.host: the address of your Redis (or redis.bundled=true for a trial)" .Values.redis.host }}{{ end }}
{{- end }}

{{- /* Whether objects of the Prometheus operator are wanted: always, never, or where the cluster knows them. */ -}}
{{- define "lading.monitoring" -}}
{{- if or (eq .Values.monitoring.objects "always") (and (eq .Values.monitoring.objects "auto") (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) }}yes{{ end }}
{{- end }}

{{- /* An address block without what is never meant. `except` must lie inside the block, so it is said of all addresses only. */ -}}
{{- define "lading.block" -}}
{{- if and .except (has .cidr (list "0.0.0.0/0")) -}}
ipBlock: {cidr: {{ .cidr }}, except: [{{ join ", " .except }}]}
{{- else -}}
ipBlock: {cidr: {{ .cidr | quote }}}
{{- end -}}
{{- end }}

{{- /* (root, name: worker | scheduler | producer | exporter | redis) */ -}}
{{- define "lading.account" -}}
{{- dig .name "name" "" .root.Values.serviceAccounts | default (printf "%s-%s" (include "lading.fullname" .root) .name) }}
{{- end }}
