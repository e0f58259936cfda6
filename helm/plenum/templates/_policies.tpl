{{- define "plenum.toDns" -}}
- to:
    {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports:
    - { protocol: UDP, port: 53 }
    - { protocol: TCP, port: 53 }
{{- end }}
{{/* The host of `helm test`: where it is, is not known here. */}}
{{- define "plenum.toTestHost" -}}
{{- with .Values.tests.host -}}
- ports:
    {{- with regexFind ":[0-9]+$" . | trimPrefix ":" }}
    - { protocol: TCP, port: {{ . }} }
    {{- else }}
    - { protocol: TCP, port: 80 }
    - { protocol: TCP, port: 443 }
    {{- end }}
{{- end }}
{{- end }}
{{/* NATS and Redis; which addresses they have outside of this chart is not known here, only their ports. */}}
{{- define "plenum.toNats" -}}
{{- if .Values.nats.enabled -}}
- to:
    - podSelector:
        matchLabels: { app.kubernetes.io/name: nats, app.kubernetes.io/instance: {{ .Release.Name }} }
  ports:
    - { protocol: TCP, port: 4222 }
{{- else -}}
- ports:
    {{- range .Values.externalNats.servers }}
    - { protocol: TCP, port: {{ regexFind ":[0-9]+$" . | trimPrefix ":" | default "4222" | int }} }
    {{- end }}
{{- end }}
{{- end }}
{{- define "plenum.toStores" -}}
{{ include "plenum.toNats" . }}
{{- if .Values.redis.enabled }}
- to:
    - podSelector:
        matchLabels: { app.kubernetes.io/name: redis-cluster, app.kubernetes.io/instance: {{ .Release.Name }} }
  ports:
    - { protocol: TCP, port: 6379 }
{{- else if .Values.externalRedis.servers }}
- ports:
    {{- range .Values.externalRedis.servers }}
    - { protocol: TCP, port: {{ regexFind ":[0-9]+$" . | trimPrefix ":" | default "6379" | int }} }
    {{- end }}
{{- end }}
{{- end }}
{{- define "plenum.fromMetrics" -}}
- from:
    - podSelector:
        matchLabels: { plenum/metrics: "true" }
    {{- with .Values.networkPolicy.metricsFrom }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - { protocol: TCP, port: 9000 }
{{- end }}
