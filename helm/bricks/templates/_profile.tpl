{{/* The cluster's profile (bricks_core/spec/cluster.py), made of the values. */}}

{{- define "bricks.profile" -}}
{{- $values := .Values -}}
{{- $pods := $values.pods -}}
{{- range $place, $env := dict "pods.env" $pods.env "train.nccl" $values.train.nccl -}}
{{- range $name, $_ := $env -}}
{{- /* As SECRET_NAME in bricks_core/spec/cluster.py. */ -}}
{{- if regexMatch "(?i)(_KEY|_TOKEN|_SECRET|PASSWORD|^AWS_ACCESS_KEY_ID)$" $name -}}
{{- fail (printf "%s has %s, which looks like a secret, and whoever may see a pod reads its environment: put it into a Secret, and name that in secrets or storage.s3.existingSecret." $place $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
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
      "registry" (default "ghcr.io/bricks" .Values.images.registry)
      "tag" (default .Chart.AppVersion .Values.images.tag)
      "digests" (default dict .Values.images.digests)
      "pullPolicy" (default "IfNotPresent" .Values.images.pullPolicy)
      "pullSecrets" (uniq $secrets)
    | toJson -}}
{{- end -}}

{{- define "bricks.storageMode" -}}{{ default "s3" .Values.storage.mode }}{{- end -}}

{{- define "bricks.store" -}}
{{- if eq (include "bricks.storageMode" .) "pvc" -}}
{{- if .Values.storage.s3.bucket -}}
{{- fail "storage.mode is pvc and storage.s3.bucket is set: artifacts go to one of them. Set storage.mode to s3, or leave the bucket out." -}}
{{- end -}}
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
{{- if and (has $key (list "cpu" "memory" "scratch" "shm")) (not (kindIs "map" $each)) (not (kindIs "invalid" $each)) -}}
{{- /* A quantity; --set memory=4 makes a number of it. */ -}}
{{- $_ := set $value $key (toString $each) -}}
{{- else if not (kindIs "invalid" $each) -}}
{{- $_ := set $value $key (include "bricks.withoutNulls" $each | fromJson).value -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- dict "value" $value | toJson -}}
{{- end -}}
