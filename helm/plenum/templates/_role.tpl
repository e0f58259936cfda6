{{/* A role's Deployment. Elements: root, role, values, port that clients or probes use. */}}
{{- define "plenum.deployment" -}}
{{- $root := index . 0 }}{{- $role := index . 1 }}{{- $values := index . 2 }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "plenum.fullname" $root }}-{{ $role }}
  labels:
    {{- include "plenum.labels" (list $root $role) | nindent 4 }}
spec:
  {{- if dig "autoscaling" "enabled" false $values }}
  {{- /* A count that goes missing from one revision to the next would become 1: so it is what the autoscaler left. */}}
  {{- $live := lookup "apps/v1" "Deployment" $root.Release.Namespace (printf "%s-%s" (include "plenum.fullname" $root) $role) | default dict }}
  replicas: {{ max (dig "spec" "replicas" 0 $live | int) (int $values.autoscaling.minReplicas) }}
  {{- else }}
  replicas: {{ $values.replicas }}
  {{- end }}
  minReadySeconds: {{ $values.minReadySeconds }}
  revisionHistoryLimit: 5
  strategy:
    type: RollingUpdate
    rollingUpdate: { maxUnavailable: 0, maxSurge: 1 }
  selector:
    matchLabels:
      {{- include "plenum.selector" (list $root $role) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "plenum.labels" (list $root $role) | nindent 8 }}
      annotations:
        checksum/config: {{ include "plenum.config" $root | sha256sum }}
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "plenum.fullname" $root }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ include "plenum.grace" $root }}
      securityContext:
        {{- include "plenum.podSecurity" $root | nindent 8 }}
      {{- with $root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ $role }}
          image: {{ include "plenum.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args: [{{ $role }}]
          ports:
            {{- if eq $role "websocket" }}
            - { name: websocket, containerPort: 8000 }
            {{- end }}
            - { name: internal, containerPort: 9000 }
          env:
            {{- include "plenum.env" $root | nindent 12 }}
            {{- with $values.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          volumeMounts:
            - { name: config, mountPath: /etc/plenum, readOnly: true }
          securityContext:
            {{- include "plenum.containerSecurity" $root | nindent 12 }}
          startupProbe:
            httpGet: { path: /livez, port: internal }
            periodSeconds: 1
            failureThreshold: 60
          # Never looks at a dependency: a restart mends no broker.
          livenessProbe:
            httpGet: { path: /livez, port: internal }
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
          readinessProbe:
            httpGet: { path: /readyz, port: internal }
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 2
          lifecycle:
            preStop:
              sleep: { seconds: {{ $root.Values.drain.preStopSeconds }} }
          resources:
            {{- toYaml $values.resources | nindent 12 }}
      volumes:
        - name: config
          configMap:
            name: {{ include "plenum.fullname" $root }}-config
      topologySpreadConstraints:
        {{- include "plenum.spread" (list $root $role) | nindent 8 }}
      {{- with $values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end -}}
