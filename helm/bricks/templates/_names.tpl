{{/* Names and labels. 50 characters at most, so that -controller and its like still fit a label's 63. */}}

{{- define "bricks.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := printf "%s-%s" .Release.Name $name -}}
{{- if .Values.fullnameOverride -}}
{{- $full = .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- $full = .Release.Name -}}
{{- end -}}
{{- $full | replace "." "-" | trunc 50 | trimAll "-" -}}
{{- end -}}

{{/* What a Deployment and policies select by: never changes, because a Deployment's selector cannot. */}}
{{- define "bricks.selector" -}}
{{- dict
      "app.kubernetes.io/name" "bricks"
      "app.kubernetes.io/instance" .root.Release.Name
      "app.kubernetes.io/component" .component
    | toYaml -}}
{{- end -}}

{{/* Ours win over a user's of the same name. */}}
{{- define "bricks.labels" -}}
{{- $ours := dict
      "app.kubernetes.io/version" .root.Chart.AppVersion
      "app.kubernetes.io/part-of" "bricks"
      "app.kubernetes.io/managed-by" .root.Release.Service
      "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_")
-}}
{{- merge $ours (include "bricks.selector" . | fromYaml) (default dict .more) (default dict .root.Values.commonLabels) | toYaml -}}
{{- end -}}

{{/* The name of an account: (dict "root" $ "account" controller|stages|ci "suffix" …). */}}
{{- define "bricks.account" -}}
{{- $account := index .root.Values.serviceAccounts .account -}}
{{- if $account.name -}}
{{- $account.name -}}
{{- else if $account.create -}}
{{- printf "%s-%s" (include "bricks.fullname" .root) .suffix -}}
{{- else -}}
{{- fail (printf "serviceAccounts.%s.create is false and its name is empty: write the name of the account that is there." .account) -}}
{{- end -}}
{{- end -}}
