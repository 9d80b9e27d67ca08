{{/* Peers and ports of the network policies. */}}

{{/* Name servers, as one egress rule. */}}
{{- define "bricks.dns" -}}
- to:
    {{- default list .Values.networkPolicy.dns.peers | toYaml | nindent 4 }}
  ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - {protocol: UDP, port: {{ int . }}}
    - {protocol: TCP, port: {{ int . }}}
    {{- end }}
{{- end -}}

{{/* The internet without what is the cluster's own, as peers. */}}
{{- define "bricks.internet" -}}
{{- $four := list -}}
{{- $six := list -}}
{{- range .Values.networkPolicy.privateCidrs -}}
{{- if contains ":" . -}}{{- $six = append $six . -}}{{- else -}}{{- $four = append $four . -}}{{- end -}}
{{- end -}}
- ipBlock:
    cidr: 0.0.0.0/0
    {{- with $four }}
    except:
      {{- toYaml . | nindent 6 }}
    {{- end }}
- ipBlock:
    cidr: ::/0
    {{- with $six }}
    except:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end -}}

{{/* Where S3 is, as egress rules; nothing for a volume, which the node mounts. */}}
{{- define "bricks.storeEgress" -}}
{{- if eq (include "bricks.storageMode" .) "s3" -}}
{{- $endpoint := default "https://s3.amazonaws.com" .Values.storage.s3.endpoint -}}
{{- $url := urlParse $endpoint -}}
{{- $host := regexReplaceAll ":[0-9]+$" $url.host "" -}}
{{- $port := regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (eq $url.scheme "http" | ternary "80" "443") -}}
{{- if .Values.networkPolicy.store.cidrs -}}
- to:
    {{- range .Values.networkPolicy.store.cidrs }}
    - ipBlock:
        cidr: {{ . | quote }}
    {{- end }}
  ports:
    - {protocol: TCP, port: {{ $port }}}
{{- else if or (regexMatch "^[^.]+[.][^.]+[.]svc([.]|$)" $host) (not (contains "." $host)) -}}
# A service of this cluster: its pods, whose port need not be the service's.
- to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ contains "." $host | ternary (index (splitList "." (printf "%s." $host)) 1) .Release.Namespace | quote }}
{{- else if regexMatch "^[0-9.]+$" $host -}}
- to:
    - ipBlock:
        cidr: {{ $host }}/32
  ports:
    - {protocol: TCP, port: {{ $port }}}
{{- else -}}
- to:
    {{- include "bricks.internet" . | nindent 4 }}
  ports:
    - {protocol: TCP, port: {{ $port }}}
{{- end -}}
{{- end -}}
{{- end -}}
