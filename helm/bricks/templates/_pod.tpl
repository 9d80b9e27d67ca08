{{/* What the controller's pod and the test's have in common: its image, and the way to the store. */}}

{{- define "bricks.image" -}}
{{- $images := include "bricks.images" . | fromJson -}}
{{- $name := printf "%s/bricks-controller" ($images.registry | trimSuffix "/") -}}
{{- with $images.digests.controller -}}
{{- printf "%s@%s" $name . -}}
{{- else -}}
{{- printf "%s:%s" $name $images.tag -}}
{{- end -}}
{{- end -}}

{{- define "bricks.podBasics" -}}
{{- with (include "bricks.images" . | fromJson).pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
serviceAccountName: {{ include "bricks.account" (dict "root" . "account" "controller" "suffix" "controller") | quote }}
automountServiceAccountToken: true
enableServiceLinks: false
{{- with .Values.controller.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.controller.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.controller.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.controller.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.controller.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
volumes:
  - name: profile
    configMap:
      name: {{ include "bricks.fullname" . }}-profile
  - name: tmp
    emptyDir:
      sizeLimit: 256Mi
  {{- if eq (include "bricks.storageMode" .) "pvc" }}
  - name: store
    persistentVolumeClaim:
      claimName: {{ include "bricks.claim" . | quote }}
  {{- end }}
  {{- with .Values.controller.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* (dict "root" $ "notifies" true|false): whether it is given the address of who is told of a run's end. */}}
{{- define "bricks.containerBasics" -}}
{{- $notifies := .notifies -}}
{{- with .root -}}
image: {{ include "bricks.image" . | quote }}
imagePullPolicy: {{ (include "bricks.images" . | fromJson).pullPolicy }}
{{- with .Values.controller.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.controller.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $store := include "bricks.store" . | fromJson }}
env:
  - name: BRICKS_STORE
    value: {{ $store.uri | quote }}
  {{- with $store.endpoint }}
  - name: AWS_ENDPOINT_URL_S3
    value: {{ . | quote }}
  {{- end }}
  {{- with $store.region }}
  - name: AWS_REGION
    value: {{ . | quote }}
  {{- end }}
  - name: HOME
    value: /tmp
  {{- if and $notifies .Values.notify.existingSecret }}
  - name: BRICKS_NOTIFY_URL
    valueFrom:
      secretKeyRef:
        name: {{ .Values.notify.existingSecret | quote }}
        key: {{ default "BRICKS_NOTIFY_URL" .Values.notify.key | quote }}
  {{- end }}
  {{- with .Values.controller.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if or $store.secret .Values.controller.extraEnvFrom }}
envFrom:
  {{- with $store.secret }}
  - secretRef:
      name: {{ . | quote }}
  {{- end }}
  {{- with .Values.controller.extraEnvFrom }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
volumeMounts:
  - name: profile
    mountPath: /etc/bricks
    readOnly: true
  - name: tmp
    mountPath: /tmp
  {{- if eq (include "bricks.storageMode" .) "pvc" }}
  - name: store
    mountPath: /store
  {{- end }}
  {{- with .Values.controller.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
{{- end -}}
