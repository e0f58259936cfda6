{{/* What `plenum doctor` is asked to look at, a line each. */}}
{{- define "plenum.doctorArgs" -}}
- doctor
{{- with include "plenum.testUrl" . }}
- --url={{ . }}
{{- end }}
{{- if .Values.tests.caSecret }}
- --ca=/etc/plenum-ca/ca.crt
{{- end }}
# Each replica by itself: through nginx all connections may come to the one that has the fewest.
- --each-url=ws://{{ include "plenum.fullname" . }}-websocket:8000/connection/websocket
- --min-replicas={{ ternary .Values.websocket.autoscaling.minReplicas .Values.websocket.replicas .Values.websocket.autoscaling.enabled }}
- --channel={{ .Values.tests.channel }}
- --api=http://{{ include "plenum.fullname" . }}-api:9000/api
{{- if .Values.nats.enabled }}
{{- range $number := until (int .Values.nats.replicas) }}
- --nats-monitoring=http://{{ include "plenum.nats" $ }}-{{ $number }}.{{ include "plenum.nats" $ }}-headless:8222
{{- end }}
{{- end }}
- --timeout=10s
# The policies of those whom it reaches hear of a new pod after a moment.
- --retry-for=60s
{{- end -}}

{{/* What both kinds of pods of operators have in common, up to their containers. */}}
{{- define "plenum.operatorPod" -}}
restartPolicy: Never
serviceAccountName: {{ include "plenum.fullname" . }}-operator
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "plenum.podSecurity" . | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A pod of the doctor; elements: root, arguments in YAML. */}}
{{- define "plenum.doctorPod" -}}
{{- $root := index . 0 -}}
{{ include "plenum.operatorPod" $root }}
containers:
  - name: doctor
    image: {{ include "plenum.image" $root }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args:
      {{- index . 1 | nindent 6 }}
    env:
      {{- include "plenum.env" $root | nindent 6 }}
    volumeMounts:
      - { name: config, mountPath: /etc/plenum, readOnly: true }
      {{- if $root.Values.tests.caSecret }}
      - { name: ca, mountPath: /etc/plenum-ca, readOnly: true }
      {{- end }}
    securityContext:
      {{- include "plenum.containerSecurity" $root | nindent 6 }}
    resources:
      {{- toYaml $root.Values.doctor.resources | nindent 6 }}
volumes:
  - name: config
    configMap:
      name: {{ include "plenum.fullname" $root }}-config
  {{- with $root.Values.tests.caSecret }}
  - name: ca
    secret:
      secretName: {{ . }}
  {{- end }}
{{- end -}}

{{/* A pod with the backups; elements: root, name, arguments. */}}
{{- define "plenum.backupPod" -}}
{{- $root := index . 0 -}}
{{- $backup := $root.Values.backup -}}
{{ include "plenum.operatorPod" $root }}
containers:
  - name: {{ index . 1 }}
    image: {{ include "plenum.image" $root }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args: {{ index . 2 | toJson }}
    env:
      - name: PLENUM_CONFIG
        value: /etc/plenum/plenum.json
      {{- $own := and (not $backup.existingSecret) $root.Values.nats.enabled }}
      {{- if not (or $own $backup.existingSecret) }}{{ fail "backup.enabled with externalNats: backup.existingSecret must name a user that may back up" }}{{ end }}
      - name: PLENUM_NATS__USER
        {{- if $own }}
        value: backup
        {{- else }}
        valueFrom:
          secretKeyRef: { name: {{ $backup.existingSecret }}, key: user }
        {{- end }}
      - name: PLENUM_NATS__PASSWORD
        valueFrom:
          secretKeyRef: { name: {{ ternary (include "plenum.natsSecret" $root) $backup.existingSecret $own }}, key: {{ ternary "backup-password" "password" $own }} }
    volumeMounts:
      - { name: config, mountPath: /etc/plenum, readOnly: true }
      - { name: backups, mountPath: /backups }
    securityContext:
      {{- include "plenum.containerSecurity" $root | nindent 6 }}
    resources:
      {{- toYaml $backup.resources | nindent 6 }}
volumes:
  - name: config
    configMap:
      name: {{ include "plenum.fullname" $root }}-config
  - name: backups
    persistentVolumeClaim:
      claimName: {{ default (printf "%s-backups" (include "plenum.fullname" $root)) $backup.existingClaim }}
{{- end -}}

{{/* A CronJob from which jobs can be made by hand; elements: root, name, component, schedule, pod. */}}
{{- define "plenum.cronJob" -}}
{{- $root := index . 0 -}}
{{- $schedule := index . 3 -}}
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {{ include "plenum.fullname" $root }}-{{ index . 1 }}
  labels:
    {{- include "plenum.labels" (list $root (index . 2)) | nindent 4 }}
spec:
  {{- if not $schedule }}
  # Never by itself: kubectl create job --from=cronjob/{{ include "plenum.fullname" $root }}-{{ index . 1 }} NAME
  suspend: true
  {{- end }}
  schedule: {{ default "0 0 1 1 *" $schedule | quote }}
  timeZone: Etc/UTC
  concurrencyPolicy: Forbid
  startingDeadlineSeconds: 3600
  successfulJobsHistoryLimit: 3
  failedJobsHistoryLimit: 3
  jobTemplate:
    spec:
      backoffLimit: 0
      ttlSecondsAfterFinished: 604800
      template:
        metadata:
          labels:
            {{- include "plenum.labels" (list $root (index . 2)) | nindent 12 }}
        spec:
          {{- index . 4 | nindent 10 }}
{{- end -}}
