{{/* The cluster's profile (bricks_core/spec/cluster.py), made of the values. */}}

{{- define "bricks.profile" -}}
{{- $values := .Values -}}
{{- $pods := $values.pods -}}
{{- $profile := dict
      "images" (include "bricks.images" . | fromJson)
      "store" (include "bricks.store" . | fromJson)
      "secrets" $values.secrets
      "serviceAccount" (include "bricks.account" (dict "root" . "account" "stages" "suffix" "stage"))
      "queues" $values.kueue.queues
      "priorityClass" $pods.priorityClass
      "hostUsers" $pods.hostUsers
      "nodeSelector" $pods.nodeSelector
      "gpuNodeSelector" $pods.gpuNodeSelector
      "tolerations" $pods.tolerations
      "gpuTolerations" $pods.gpuTolerations
      "env" $pods.env
      "stages" $values.stages
      "train" $values.train
      "preflight" $values.preflight
-}}
{{- (include "bricks.withoutNulls" $profile | fromJson).value | toYaml -}}
{{- end -}}

{{- define "bricks.images" -}}
{{- $secrets := list -}}
{{- range concat (default list .Values.images.pullSecrets) (default list .Values.global.imagePullSecrets) -}}
{{- $secrets = append $secrets (kindIs "map" . | ternary (get (kindIs "map" . | ternary . dict) "name") .) -}}
{{- end -}}
{{- dict
      "registry" .Values.images.registry
      "tag" (default .Chart.AppVersion .Values.images.tag)
      "digests" (default dict .Values.images.digests)
      "pullPolicy" .Values.images.pullPolicy
      "pullSecrets" (uniq $secrets)
    | toJson -}}
{{- end -}}

{{- define "bricks.store" -}}
{{- if eq .Values.storage.mode "pvc" -}}
{{- $path := default "" .Values.storage.pvc.path | trimAll "/" -}}
{{- dict "uri" (printf "file:///store/%s" $path | trimSuffix "/") "claim" (include "bricks.claim" .) | toJson -}}
{{- else -}}
{{- $s3 := .Values.storage.s3 -}}
{{- $bucket := required "storage.s3.bucket is empty: name the bucket that artifacts go to (--set storage.s3.bucket=…), or set storage.mode to pvc." $s3.bucket -}}
{{- dict
      "uri" (printf "s3://%s/%s" $bucket (default "" $s3.prefix | trimAll "/") | trimSuffix "/")
      "endpoint" (default "" $s3.endpoint)
      "region" (default "" $s3.region)
      "secret" (default "" $s3.existingSecret)
    | toJson -}}
{{- end -}}
{{- end -}}

{{- define "bricks.claim" -}}
{{- default (printf "%s-store" (include "bricks.fullname" .)) .Values.storage.pvc.existingClaim -}}
{{- end -}}

{{/* {"value": …} as JSON, without the keys that are null: unset is what the code takes then. */}}
{{- define "bricks.withoutNulls" -}}
{{- $value := . -}}
{{- if kindIs "map" . -}}
{{- $value = dict -}}
{{- range $key, $each := . -}}
{{- if not (kindIs "invalid" $each) -}}
{{- $_ := set $value $key (include "bricks.withoutNulls" $each | fromJson).value -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- dict "value" $value | toJson -}}
{{- end -}}
