#!/bin/bash
# Does the operators' port answer PATH with 200? Used by HEALTHCHECK: the image has no curl.
#   healthcheck PATH
path=${1:?usage: healthcheck PATH}
listen=${TAIJI__SERVER__ADMIN_LISTEN:-127.0.0.1:9090}
exec 3<>"/dev/tcp/127.0.0.1/${listen##*:}" || exit 1
printf 'GET %s HTTP/1.0\r\nhost: localhost\r\n\r\n' "$path" >&3
read -r _ status _ <&3 && [ "$status" = 200 ]
