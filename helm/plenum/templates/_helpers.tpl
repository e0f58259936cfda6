{{- define "plenum.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "plenum.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "plenum.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "plenum.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of a resource; the second element is the role, or empty. */}}
{{- define "plenum.labels" -}}
{{- $root := index . 0 -}}
{{ include "plenum.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: plenum
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "plenum.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "plenum.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "plenum.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{- define "plenum.secret" -}}
{{- default (printf "%s-secrets" (include "plenum.fullname" .)) .Values.secrets.existingSecret -}}
{{- end -}}

{{/* Names that the subcharts give their services and secrets. */}}
{{- define "plenum.nats" -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}-nats{{- end -}}
{{- define "plenum.redis" -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}-redis{{- end -}}

{{/* Where `helm test` connects; empty: there is no test, because its way in has a certificate or a protocol that it cannot meet. */}}
{{- define "plenum.testUrl" -}}
{{- $tls := and .Values.nginx.enabled (ne .Values.nginx.tls.existingSecret "") -}}
{{- $proxy := ne (include "plenum.nginxValue" (get .Values.nginx.settings "PROXY_PROTOCOL")) "" -}}
{{- $edge := or (and .Values.ingress.enabled (ne .Values.ingress.tlsSecret "")) .Values.httpRoute.enabled (ne .Values.tests.caSecret "") -}}
{{- if .Values.tests.host -}}
{{ ternary "wss" "ws" (or $tls $edge) }}://{{ .Values.tests.host }}/connection/websocket
{{- else if not .Values.nginx.enabled -}}
ws://{{ include "plenum.fullname" . }}-websocket:8000/connection/websocket
{{- else if $proxy -}}
{{- else if not $tls -}}
ws://{{ include "plenum.fullname" . }}:{{ .Values.nginx.service.port }}/connection/websocket
{{- else if .Values.tests.caSecret -}}
wss://{{ include "plenum.fullname" . }}:{{ .Values.nginx.service.httpsPort }}/connection/websocket
{{- end -}}
{{- end -}}

{{/* A value of nginx.settings as text. YAML's `on` is true, and numbers of a values file are floating: 1e+06 from a million on. */}}
{{- define "plenum.nginxValue" -}}
{{- if kindIs "bool" . -}}{{ ternary "on" "" . }}
{{- else if kindIs "float64" . -}}{{ int64 . }}
{{- else if not (kindIs "invalid" .) -}}{{ . }}
{{- end -}}
{{- end -}}

{{/* Connections of a replica that one nginx pod holds (0: any number): a tenth more than it takes, so that a full one says so itself,
with Retry-After and in its metrics, also when all connections come through one pod. */}}
{{- define "plenum.perReplica" -}}
{{- $most := dig "client" "connection_limit" .Values.websocket.maxConnections .Values.config | int64 -}}
{{- add $most (div (add $most 9) 10) -}}
{{- end -}}

{{/* Whole seconds, rounded up, of a duration as in the configuration: 1h30m, 1.5s. */}}
{{- define "plenum.seconds" -}}
{{- $total := 0.0 -}}
{{- range regexFindAll "[0-9.]+(ms|s|m|h)" (toString .) -1 -}}
{{- $unit := get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0) (regexReplaceAll "[0-9.]+" . "") -}}
{{- $total = addf $total (mulf (regexFind "[0-9.]+" . | float64) $unit) -}}
{{- end -}}
{{- ceil $total | int64 -}}
{{- end -}}

{{/* How long nginx lets a connection be silent: two pings and the time for an answer, at least a minute. */}}
{{- define "plenum.streamTimeout" -}}
{{- $ping := include "plenum.seconds" (dig "client" "ping_interval" "25s" .Values.config) | int64 -}}
{{- $pong := include "plenum.seconds" (dig "client" "pong_timeout" "10s" .Values.config) | int64 -}}
{{- printf "%ds" (max 60 (add (mul 2 $ping) $pong)) -}}
{{- end -}}

{{/* Seconds between SIGTERM's announcement and SIGKILL. */}}
{{- define "plenum.grace" -}}
{{- add .Values.drain.preStopSeconds .Values.drain.seconds .Values.drain.restSeconds 5 -}}
{{- end -}}

{{- define "plenum.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "plenum.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Pods of a role on different nodes and zones, where there are several. */}}
{{- define "plenum.spread" -}}
- maxSkew: 1
  topologyKey: topology.kubernetes.io/zone
  whenUnsatisfiable: {{ (index . 0).Values.spread }}
  # Pods of the old and of the new version are not counted together.
  matchLabelKeys: [pod-template-hash]
  labelSelector:
    matchLabels:
      {{- include "plenum.selector" . | nindent 6 }}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: {{ (index . 0).Values.spread }}
  matchLabelKeys: [pod-template-hash]
  labelSelector:
    matchLabels:
      {{- include "plenum.selector" . | nindent 6 }}
{{- end -}}

{{/* Where NATS is. */}}
{{- define "plenum.natsConfig" -}}
{{- if .Values.nats.enabled -}}
{{- $servers := list -}}
{{- range $number := until (int .Values.nats.replicas) -}}
{{- $servers = append $servers (printf "nats://%s-%d.%s-headless.%s.svc:4222" (include "plenum.nats" $) $number (include "plenum.nats" $) $.Release.Namespace) -}}
{{- end -}}
{{- $replicas := 1 -}}
{{- if ge (int .Values.nats.replicas) 3 -}}{{- $replicas = 3 -}}{{- end -}}
{{- toJson (dict "servers" $servers "replicas" $replicas "max_bytes" (.Values.nats.streamMaxBytes | int64) "pool" (dict "discover_servers" false)) -}}
{{- else -}}
{{- if not .Values.externalNats.servers }}{{ fail "nats.enabled is false: externalNats.servers must name servers" }}{{ end -}}
{{- toJson (dict "servers" .Values.externalNats.servers "replicas" (.Values.externalNats.streamReplicas | int)) -}}
{{- end -}}
{{- end -}}

{{/* Where Redis is. */}}
{{- define "plenum.redisConfig" -}}
{{- if .Values.redis.enabled -}}
{{- $servers := list -}}
{{- range $number := until (int .Values.redis.nodes) -}}
{{- $servers = append $servers (printf "%s-%d.%s-headless.%s.svc:6379" (include "plenum.redis" $) $number (include "plenum.redis" $) $.Release.Namespace) -}}
{{- end -}}
{{- toJson (dict "servers" $servers) -}}
{{- else -}}
{{- toJson (dict "servers" .Values.externalRedis.servers "mode" .Values.externalRedis.mode) -}}
{{- end -}}
{{- end -}}

{{/* From where browsers may connect, as {"origins": […]}: what the user lists, or the names under which the chart exposes nginx. */}}
{{- define "plenum.origins" -}}
{{- $origins := .Values.allowedOrigins -}}
{{- if not $origins -}}
{{- if and .Values.ingress.enabled .Values.ingress.host -}}
{{- $origins = append $origins (printf "https://%s" .Values.ingress.host) -}}
{{- if not .Values.ingress.tlsSecret -}}{{- $origins = append $origins (printf "http://%s" .Values.ingress.host) -}}{{- end -}}
{{- end -}}
{{- if .Values.httpRoute.enabled -}}
{{- /* Whether the gateway has TLS is not known here. */ -}}
{{- range .Values.httpRoute.hostnames -}}
{{- $origins = concat $origins (list (printf "https://%s" .) (printf "http://%s" .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson (dict "origins" (uniq $origins)) -}}
{{- end -}}

{{/* The configuration file: what the chart knows, and over it what the user set. */}}
{{- define "plenum.config" -}}
{{- if .Values.config.shutdown -}}
{{- fail "config.shutdown is written from drain, and so is the pods' grace period: set drain.seconds and drain.restSeconds" -}}
{{- end -}}
{{- $own := dict
  "http_server" (dict "port" 8000 "internal_port" "9000"
    "trusted_proxies" (ternary .Values.websocket.trustedProxies .Values.nginx.trustedProxies .Values.nginx.enabled))
  "client" (dict "allowed_origins" (include "plenum.origins" . | fromJson).origins
    "connection_rate_limit" (int .Values.websocket.handshakesPerSecond) "connection_limit" (int .Values.websocket.maxConnections))
  "shutdown" (dict "drain_time" (printf "%ds" (int .Values.drain.seconds)) "timeout" (printf "%ds" (int .Values.drain.restSeconds))
    "grace_period" (printf "%ds" (sub (int (include "plenum.grace" .)) (add1 (int .Values.drain.preStopSeconds)))))
  "nats" (include "plenum.natsConfig" . | fromJson)
  "redis" (include "plenum.redisConfig" . | fromJson)
-}}
{{- mergeOverwrite $own (deepCopy .Values.config) | toPrettyJson -}}
{{- end -}}

{{/* Secret of the replicas' user on NATS; empty: no login. */}}
{{- define "plenum.natsSecret" -}}
{{- ternary (default (include "plenum.nats" .) .Values.nats.existingSecret) .Values.externalNats.existingSecret .Values.nats.enabled -}}
{{- end -}}

{{- define "plenum.env" -}}
- name: PLENUM_CONFIG
  value: /etc/plenum/plenum.json
- name: PLENUM_NODE__NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: PLENUM_CLIENT__TOKEN__HMAC_SECRET_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "plenum.secret" . }}
      key: token-hmac-secret
- name: PLENUM_HTTP_API__KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "plenum.secret" . }}
      key: api-key
{{- with include "plenum.natsSecret" . }}
- name: PLENUM_NATS__USER
  valueFrom:
    secretKeyRef: { name: {{ . }}, key: user }
- name: PLENUM_NATS__PASSWORD
  valueFrom:
    secretKeyRef: { name: {{ . }}, key: password }
{{- end }}
{{- $redis := .Values.externalRedis.existingSecret }}
{{- if .Values.redis.enabled }}{{- $redis = default (include "plenum.redis" .) .Values.redis.existingSecret }}{{- end }}
{{- with $redis }}
- name: PLENUM_REDIS__USER
  valueFrom:
    secretKeyRef: { name: {{ . }}, key: user }
- name: PLENUM_REDIS__PASSWORD
  valueFrom:
    secretKeyRef: { name: {{ . }}, key: password }
{{- end }}
{{- if or .Values.redis.enabled .Values.externalRedis.servers }}
- name: PLENUM_REDIS__KEY_SECRET
  valueFrom:
    secretKeyRef:
      name: {{ include "plenum.secret" . }}
      key: redis-key-secret
      {{- if .Values.secrets.existingSecret }}
      # A secret without it is taken; the log warns then.
      optional: true
      {{- end }}
{{- end }}
{{- end -}}
