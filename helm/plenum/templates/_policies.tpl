{{- define "plenum.toDns" -}}
- to:
    - namespaceSelector:
        matchLabels: { kubernetes.io/metadata.name: kube-system }
      podSelector:
        matchLabels: { k8s-app: kube-dns }
  ports:
    - { protocol: UDP, port: 53 }
    - { protocol: TCP, port: 53 }
{{- end }}
{{- define "plenum.toStores" -}}
- to:
    {{- if .Values.nats.enabled }}
    - podSelector:
        matchLabels: { app.kubernetes.io/name: nats, app.kubernetes.io/instance: {{ .Release.Name }} }
    {{- else }}
    # Outside: which addresses is not known here.
    - ipBlock: { cidr: 0.0.0.0/0 }
    {{- end }}
  ports:
    {{- if .Values.nats.enabled }}
    - { protocol: TCP, port: 4222 }
    {{- else }}
    {{- range .Values.externalNats.servers }}
    - { protocol: TCP, port: {{ regexFind ":[0-9]+$" . | trimPrefix ":" | default "4222" | int }} }
    {{- end }}
    {{- end }}
{{- if or .Values.redis.enabled .Values.externalRedis.servers }}
- to:
    {{- if .Values.redis.enabled }}
    - podSelector:
        matchLabels: { app.kubernetes.io/name: redis-cluster, app.kubernetes.io/instance: {{ .Release.Name }} }
    {{- else }}
    - ipBlock: { cidr: 0.0.0.0/0 }
    {{- end }}
  ports:
    {{- if .Values.redis.enabled }}
    - { protocol: TCP, port: 6379 }
    {{- else }}
    {{- range .Values.externalRedis.servers }}
    - { protocol: TCP, port: {{ regexFind ":[0-9]+$" . | trimPrefix ":" | default "6379" | int }} }
    {{- end }}
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
