{{- define "operator.name" -}}
{{ .Values.nameOverride | default "dreambooth-operator" }}
{{- end }}
{{- /* Not the name: the NetworkPolicies of jobs and kubectl dreambooth select the operator by this label. */ -}}
{{- define "operator.selector" -}}
app.kubernetes.io/name: dreambooth-operator
{{- end }}
{{- define "operator.labels" -}}
{{ include "operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with omit .Values.labels "app.kubernetes.io/name" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- /* What the operator may do in each namespace with jobs. */ -}}
{{- define "operator.rules" -}}
- apiGroups: [dreambooth.dev]
  resources: [dreamboothjobs]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [dreambooth.dev]
  resources: [dreamboothjobs/status]
  verbs: [patch]
- apiGroups: [dreambooth.dev]
  resources: [dreamboothjobs/finalizers]
  verbs: [update]
{{- if .Values.localRuntimes.enabled }}
- apiGroups: [dreambooth.dev]
  resources: [localdreamboothruntimes]
  verbs: [get, list, watch, patch]
{{- end }}
- apiGroups: [ray.io]
  resources: [rayjobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [ray.io]
  resources: [rayclusters]
  verbs: [list, watch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, create]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [get, list, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- end }}
