{{- define "zerofs.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "zerofs.labels" -}}
app.kubernetes.io/name: zerofs-csi
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "zerofs.selector" -}}
app.kubernetes.io/name: zerofs-csi
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "zerofs.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* Whether the snapshot sidecar and class are there: "true" or "". */ -}}
{{- define "zerofs.snapshots" -}}
{{- $wanted := toString .Values.snapshots.enabled -}}
{{- $there := .Capabilities.APIVersions.Has "snapshot.storage.k8s.io/v1/VolumeSnapshotClass" -}}
{{- if or (eq $wanted "true") (and (eq $wanted "auto") $there) }}true{{ end -}}
{{- end }}

{{- /* Whether group snapshots are there: "true" or "". */ -}}
{{- define "zerofs.groupSnapshots" -}}
{{- $wanted := toString .Values.snapshots.groups -}}
{{- $there := .Capabilities.APIVersions.Has "groupsnapshot.storage.k8s.io/v1/VolumeGroupSnapshotClass" -}}
{{- if and (include "zerofs.snapshots" .) (or (eq $wanted "true") (and (eq $wanted "auto") $there)) }}true{{ end -}}
{{- end }}

{{- /* A value of null takes away a pool of an earlier values file. */ -}}
{{- define "zerofs.poolNames" -}}
{{- $names := list }}
{{- range $name, $pool := .Values.pools }}{{- if $pool }}{{- $names = append $names $name }}{{- end }}{{- end }}
{{- $names | sortAlpha | toJson }}
{{- end }}

{{- /* Whether a pool is a folder of the node: "true" or "". */ -}}
{{- define "zerofs.folders" -}}
{{- range $name, $pool := .Values.pools }}{{- if and $pool (hasPrefix "file://" $pool.url) }}true{{- end }}{{- end }}
{{- end }}

{{- define "zerofs.stateDir" -}}
{{ .Values.node.stateDir | default (printf "/var/lib/%s" .Values.driverName) }}
{{- end }}

{{- define "zerofs.runDir" -}}
{{ .Values.node.runDir | default (printf "/run/%s" .Values.driverName) }}
{{- end }}

{{- /* Changes with the Secrets that the chart makes, so that pods get changed ones; "" where it
makes none. By way of a slow key derivation, because more people read annotations than Secrets, and
a passphrase may be short. */ -}}
{{- define "zerofs.secretsChecksum" -}}
{{- $secrets := dict -}}
{{- range $name, $pool := .Values.pools }}
{{- if and $pool (or $pool.credentials $pool.passphrase) }}
{{- $_ := set $secrets $name (pick $pool "credentials" "passphrase") }}
{{- end }}
{{- end }}
{{- if $secrets }}{{- derivePassword 1 "maximum" (toJson $secrets) "checksum" .Release.Name | sha256sum }}{{- end }}
{{- end }}

{{- /* Connections of a usual mount: the largest nconnect of the chart's classes. Each takes one of
a node's reserved ports. */ -}}
{{- define "zerofs.connectionsPerVolume" -}}
{{- $connections := 1 -}}
{{- range $class := .Values.storageClasses }}
{{- range $option := splitList "," (join "," ($class.mountOptions | default list)) }}
{{- if hasPrefix "nconnect=" $option }}{{- $connections = max $connections (trimPrefix "nconnect=" $option | int) }}{{- end }}
{{- end }}
{{- end }}
{{- $connections -}}
{{- end }}

{{- /* Bytes of a size as the configuration has it, with binary units: 280Mi, 1.5GiB, 64k,
4096. */ -}}
{{- define "zerofs.bytes" -}}
{{- $text := trimSuffix "i" (trimSuffix "b" (lower (toString .))) -}}
{{- $unit := regexFind "[a-z]*$" $text -}}
{{- $units := dict "" 1 "k" 1024 "m" 1048576 "g" 1073741824 "t" 1099511627776 "p" 1125899906842624 -}}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit) | ceil | int64 -}}
{{- end }}

{{- /* Seconds of a time as the configuration has it: 45s, 200ms, 1m 30s. */ -}}
{{- define "zerofs.seconds" -}}
{{- $units := dict "M" 2630016 -}}
{{- range $factor, $names := dict "1e-9" "ns nsec nanos" "1e-6" "us µs usec" "1e-3" "ms msec millis" "1" "s sec secs second seconds" "60" "m min mins minute minutes" "3600" "h hr hrs hour hours" "86400" "d day days" "604800" "w wk wks week weeks" "2630016" "month months" "31557600" "y yr yrs year years" }}
{{- range $name := splitList " " $names }}{{- $_ := set $units $name (float64 $factor) }}{{- end }}
{{- end }}
{{- $sum := 0.0 -}}
{{- range $part := regexFindAll "[0-9]+ *[a-zA-Zµ]+" . -1 }}
{{- $sum = addf $sum (mulf (regexFind "[0-9]+" $part | float64) (get $units (regexFind "[a-zA-Zµ]+$" $part))) }}
{{- end }}
{{- $sum -}}
{{- end }}

{{- /* Refuses what the program would refuse at its start (src/app/config.rs), and the schema
cannot. */ -}}
{{- define "zerofs.checkConfig" -}}
{{- range $name := list "flushInterval" "collectInterval" "ownerTimeout" "mailboxInterval" "lease" }}
{{- with get $.Values.config $name }}
{{- $seconds := include "zerofs.seconds" . | float64 }}
{{- if lt $seconds 0.01 }}{{- fail (printf "config.%s: %q is too short: at least 10ms" $name .) }}{{- end }}
{{- if and (eq $name "lease") (or (lt $seconds 5.0) (gt $seconds 60.0)) }}{{- fail (printf "config.lease: %q is out of range; use 5s to 60s" .) }}{{- end }}
{{- end }}
{{- end }}
{{- $limits := .Values.config.limits | default dict -}}
{{- range $name, $least := dict "memory" "96Mi" "dirtyBytes" "4Mi" "metadataCache" "4Mi" }}
{{- if not (kindIs "invalid" (get $limits $name)) }}
{{- $given := get $limits $name }}
{{- $given = ternary (printf "%.0f" $given) (toString $given) (kindIs "float64" $given) }}
{{- if and $given (lt (include "zerofs.bytes" $given | int64) (include "zerofs.bytes" $least | int64)) }}{{- fail (printf "config.limits.%s: %s is too small; use at least %s" $name $given $least) }}{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Memory that the container of a node may take: the figure of the configuration, a quarter for
what the allocator loses, and what each open volume takes beside that (src/app/memory.rs,
VOLUME). */ -}}
{{- define "zerofs.nodeMemory" -}}
{{- $limits := .Values.config.limits | default dict -}}
{{- $memory := include "zerofs.bytes" ($limits.memory | default "280Mi") | int64 -}}
{{- $own := 0 -}}
{{- range $name := list "dirtyBytes" "metadataCache" "blockCache" "dataCache" }}
{{- with get $limits $name }}{{- $own = add $own (include "zerofs.bytes" . | int64) }}{{- end }}
{{- end }}
{{- $volumes := mul (int64 ($limits.volumesMax | default 256)) 2097152 -}}
{{- printf "%dMi" (div (add $memory (div $memory 4) $own $volumes 1048575) 1048576) -}}
{{- end }}

{{- /* Whether the controller's administration interface is on the pod's loopback only: "true" or
"". */ -}}
{{- define "zerofs.adminOnLoopback" -}}
{{- if regexMatch "^(127[.][0-9.]+|\\[::1\\]):" .Values.controller.admin.listen }}true{{ end -}}
{{- end }}

{{- /* The controller's configuration: the nodes', and its administration interface. */ -}}
{{- define "zerofs.controllerConfig" -}}
{{- $admin := .Values.controller.admin -}}
{{- $config := include "zerofs.config" . | fromYaml -}}
{{- if $admin.listen }}
{{- if not $admin.tokensSecret }}{{- fail "controller.admin: set tokensSecret: without tokens nobody may use the interface" }}{{- end }}
{{- if not (or $admin.tlsSecret (include "zerofs.adminOnLoopback" .)) }}{{- fail (printf "controller.admin.listen %s: tokens and files would cross the network unprotected: set tlsSecret, or listen on 127.0.0.1" $admin.listen) }}{{- end }}
{{- $keys := dict "tokensFile" "/etc/zerofs/admin/tokens/tokens.yaml" -}}
{{- with $admin.hosts }}{{- $_ := set $keys "hosts" . }}{{- end }}
{{- if $admin.tlsSecret }}{{- $_ := set $keys "tls" (dict "certFile" "/etc/zerofs/admin/tls/tls.crt" "keyFile" "/etc/zerofs/admin/tls/tls.key") }}{{- end }}
{{- $_ := set $config "admin" $keys }}
{{- end }}
{{- toYaml $config -}}
{{- end }}

{{- /* Whether OpenShift's SecurityContextConstraints have to be used: "true" or "". */ -}}
{{- define "zerofs.openshift" -}}
{{- $wanted := toString .Values.openshift.enabled -}}
{{- $there := .Capabilities.APIVersions.Has "security.openshift.io/v1/SecurityContextConstraints" -}}
{{- if or (eq $wanted "true") (and (eq $wanted "auto") $there) }}true{{ end -}}
{{- end }}

{{- /* The driver's configuration. Secrets are files beside it, never in it. */ -}}
{{- define "zerofs.config" -}}
{{- include "zerofs.checkConfig" . -}}
{{- $config := deepCopy .Values.config -}}
{{- $pools := dict -}}
{{- range $name, $pool := .Values.pools }}
{{- if $pool }}
{{- $entry := dict "url" $pool.url -}}
{{- with $pool.options }}{{- $_ := set $entry "credentials" . }}{{- end }}
{{- if or $pool.credentialsSecret $pool.credentials }}{{- $_ := set $entry "credentialsFile" (printf "/etc/zerofs/pools/%s/credentials" $name) }}{{- end }}
{{- if or $pool.passphraseSecret $pool.passphrase }}{{- $_ := set $entry "passphraseFile" (printf "/etc/zerofs/pools/%s/passphrase/passphrase" $name) }}{{- end }}
{{- if $pool.keySecret }}{{- $_ := set $entry "keyFile" (printf "/etc/zerofs/pools/%s/key/key" $name) }}{{- end }}
{{- if $pool.requestSecrets }}{{- $_ := set $entry "requestSecrets" true }}{{- end }}
{{- $_ := set $pools $name $entry }}
{{- end }}
{{- end }}
{{- $_ := set $config "pools" $pools -}}
{{- $_ := set $config "driverName" .Values.driverName -}}
{{- with .Values.ephemeral.pools }}
{{- range . }}{{- if not (hasKey $pools .) }}{{- fail (printf "ephemeral.pools: %q is not configured: add it to pools" .) }}{{- end }}{{- end }}
{{- $_ := set $config "ephemeral" (dict "pools" . "maxSize" $.Values.ephemeral.maxSize) }}
{{- end }}
{{- with .Values.channel.listen }}{{- $_ := set $config "channel" (dict "listen" .) }}{{- end }}
{{- $connections := include "zerofs.connectionsPerVolume" . | int }}
{{- if gt $connections 1 }}
{{- $_ := set $config "limits" (merge (deepCopy ($config.limits | default dict)) (dict "connectionsPerVolume" $connections)) }}
{{- end }}
{{- with .Values.defaultPool }}
{{- if not (hasKey $pools .) }}{{- fail (printf "defaultPool %q is not configured: add it to pools" .) }}{{- end }}
{{- $_ := set $config "defaultPool" . }}
{{- end }}
{{- toYaml $config -}}
{{- end }}

{{- /* Beside the configuration, of which the controller has its own. */ -}}
{{- define "zerofs.mounts" -}}
- { name: tmp, mountPath: /tmp }
{{- range $name, $pool := .Values.pools }}
{{- if $pool }}
{{- if or $pool.credentialsSecret $pool.credentials }}
- { name: credentials-{{ $name }}, mountPath: /etc/zerofs/pools/{{ $name }}/credentials, readOnly: true }
{{- end }}
{{- if or $pool.passphraseSecret $pool.passphrase }}
- { name: passphrase-{{ $name }}, mountPath: /etc/zerofs/pools/{{ $name }}/passphrase, readOnly: true }
{{- end }}
{{- if $pool.keySecret }}
- { name: key-{{ $name }}, mountPath: /etc/zerofs/pools/{{ $name }}/key, readOnly: true }
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $pool := .Values.pools }}
{{- if and $pool (hasPrefix "file://" $pool.url) }}
- { name: folder-{{ $name }}, mountPath: {{ trimPrefix "file://" $pool.url }} }
{{- end }}
{{- end }}
{{- if .Values.caBundleConfigMap }}
- { name: ca-bundle, mountPath: /etc/zerofs/ca, readOnly: true }
{{- end }}
{{- end }}

{{- define "zerofs.volumes" -}}
- name: config
  configMap: { name: {{ include "zerofs.name" . }}-config }
{{- $release := include "zerofs.name" . }}
{{- range $name, $pool := .Values.pools }}
{{- if $pool }}
{{- if or $pool.credentialsSecret $pool.credentials }}
- name: credentials-{{ $name }}
  secret: { secretName: {{ $pool.credentialsSecret | default (printf "%s-credentials-%s" $release $name) }}, defaultMode: 0400 }
{{- end }}
{{- if or $pool.passphraseSecret $pool.passphrase }}
- name: passphrase-{{ $name }}
  secret: { secretName: {{ $pool.passphraseSecret | default (printf "%s-passphrase-%s" $release $name) }}, defaultMode: 0400 }
{{- end }}
{{- if $pool.keySecret }}
- name: key-{{ $name }}
  secret: { secretName: {{ $pool.keySecret }}, defaultMode: 0400 }
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $pool := .Values.pools }}
{{- if and $pool (hasPrefix "file://" $pool.url) }}
# For a cluster of one machine: nodes do not share the folder.
- name: folder-{{ $name }}
  hostPath: { path: {{ trimPrefix "file://" $pool.url }}, type: Directory }
{{- end }}
{{- end }}
{{- with .Values.caBundleConfigMap }}
- name: ca-bundle
  configMap: { name: {{ . }} }
{{- end }}
- name: tmp
  emptyDir: { medium: Memory, sizeLimit: 64Mi }
{{- end }}


{{- define "zerofs.sidecarSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{- /* A sidecar whose leader election is stuck is restarted. Not on the host's network, where the
port may be another's. Called with the root and the port. */ -}}
{{- define "zerofs.sidecarEndpoint" -}}
{{- if not (first .).Values.controller.hostNetwork -}}
- --http-endpoint=:{{ last . }}
{{- end }}
{{- end }}

{{- define "zerofs.sidecarProbe" -}}
{{- if not (first .).Values.controller.hostNetwork -}}
livenessProbe:
  httpGet: { path: /healthz/leader-election, port: {{ last . }} }
  periodSeconds: 20
  timeoutSeconds: 15
  failureThreshold: 6
# The sidecar serves once the driver does.
startupProbe:
  httpGet: { path: /healthz/leader-election, port: {{ last . }} }
  periodSeconds: 10
  timeoutSeconds: 15
  failureThreshold: 60
{{- end }}
{{- end }}

{{- /* No pool is asked for liveness: a restart would not bring its store back, and would be a pause
for every mount. */ -}}
{{- define "zerofs.probes" -}}
{{ include "zerofs.liveness" . }}
readinessProbe:
  httpGet: { path: /readyz, port: {{ .port }}{{ include "zerofs.probeHost" . }} }
  periodSeconds: 5
  timeoutSeconds: 15
  failureThreshold: 6
{{- end }}

{{- /* Loopback is the node's: kubelet would otherwise ask the pod's own address. */ -}}
{{- define "zerofs.probeHost" -}}
{{- if hasPrefix "127." .address }}, host: {{ .address | quote }}{{- else if eq .address "[::1]" }}, host: "::1"{{- end }}
{{- end }}

{{- define "zerofs.liveness" -}}
livenessProbe:
  httpGet: { path: /healthz, port: {{ .port }}{{ include "zerofs.probeHost" . }} }
  initialDelaySeconds: 15
  periodSeconds: 15
  timeoutSeconds: 15
  failureThreshold: 8
{{- end }}

{{- /* The Secrets in the release's namespace that classes name for the sidecars; kubelet reads the
node's by itself. */ -}}
{{- define "zerofs.secretNames" -}}
{{- $names := list }}
{{- $release := .Release.Namespace }}
{{- range $class := concat (.Values.storageClasses | default list) (.Values.snapshots.classes | default list) (.Values.snapshots.groupClasses | default list) }}
{{- $parameters := $class.parameters | default dict }}
{{- range $key, $name := $parameters }}
{{- if and (hasPrefix "csi.storage.k8s.io/" $key) (hasSuffix "-secret-name" $key) (not (hasPrefix "csi.storage.k8s.io/node-" $key)) }}
{{- $namespace := get $parameters (printf "%s-namespace" (trimSuffix "-name" $key)) }}
{{- if and (eq $namespace $release) (not (contains "$" $name)) }}{{- $names = append $names $name }}{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- $names | uniq | sortAlpha | toJson }}
{{- end }}
