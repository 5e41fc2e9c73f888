#!/usr/bin/env bash
# The manifests in k8s/, judged by Kubernetes: every overlay goes to a kube-apiserver of this machine with --dry-run=server, strictly,
# and no warning is borne. Then our own assertions (scripts/k8s_check.py). A green run writes k8s/checked and k8s/rendered.json: commit them.
#   scripts/k8s_check.sh              needs Go 1.26 or newer; builds kube-apiserver, kubectl and etcd into the cache folder (10 minutes, once)
#   scripts/k8s_check.sh if-changed   the same where k8s/ or tools/k8s is not what was checked; else our own assertions alone
# TAIJI_BIN: folder of the built programs (target/release).
set -euo pipefail
cd "$(dirname "$0")/.."
programs=${TAIJI_BIN:-${CARGO_TARGET_DIR:-target}/release}
own() { python3 scripts/k8s_check.py assert --programs "$programs"; }

python3 scripts/k8s_check.py generated
if [ "${1:-}" = if-changed ] && python3 scripts/k8s_check.py unchanged; then
  own
  exit
fi

command -v go >/dev/null || { echo "k8s-check: go is missing: install Go 1.26 or newer" >&2; exit 69; }
tools=${XDG_CACHE_HOME:-$HOME/.cache}/taiji/k8s/$(cat tools/k8s/go.mod tools/k8s/go.sum tools/k8s/*/main.go | sha256sum | cut -c1-12)
if [ ! -x "$tools/kube-apiserver" ]; then
  echo "k8s-check: building etcd, kubectl and kube-apiserver (10 minutes on 2 cores, once)" >&2
  mkdir -p "$tools"
  (cd tools/k8s && go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$tools/" ./etcd ./kubectl ./kube-apiserver)
fi

work=$(mktemp -d)
etcd_pid='' server_pid=''
stop() {
  local code=$?
  [ "$code" = 0 ] || tail -n 5 "$work"/*.log >&2 || true
  # shellcheck disable=SC2086
  kill $server_pid $etcd_pid 2>/dev/null || true
  wait
  rm -rf "$work"
}
trap stop EXIT

# Custom resources as their own projects define them.
mkdir "$work/crds"
while read -r module sum files; do
  case $module in '' | '#'*) continue ;; esac
  (cd "$work" && go mod download -json "$module") >"$work/module.json"
  python3 - "$work/module.json" "$sum" <<'P' >"$work/folder"
import json, sys
module = json.load(open(sys.argv[1]))
if module["Sum"] != sys.argv[2]:
    sys.exit(f"k8s-check: {module['Path']} {module['Version']} is {module['Sum']}, not {sys.argv[2]}")
print(module["Dir"])
P
  for file in $files; do install -m 644 "$(cat "$work/folder")/$file" "$work/crds/"; done
done <tools/k8s/crds.txt

read -r etcd_port peer_port port < <(python3 - <<'P'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in sockets))
P
)
"$tools/etcd" --data-dir "$work/etcd" --unsafe-no-fsync --listen-client-urls "http://127.0.0.1:$etcd_port" \
  --advertise-client-urls "http://127.0.0.1:$etcd_port" --listen-peer-urls "http://127.0.0.1:$peer_port" \
  --initial-advertise-peer-urls "http://127.0.0.1:$peer_port" --initial-cluster "default=http://127.0.0.1:$peer_port" >"$work/etcd.log" 2>&1 &
etcd_pid=$!
openssl ecparam -name prime256v1 -genkey -noout -out "$work/accounts.pem"
token=$(openssl rand -hex 16)
echo "$token,admin,admin,system:masters" >"$work/tokens.csv"
"$tools/kube-apiserver" --etcd-servers "http://127.0.0.1:$etcd_port" --bind-address 127.0.0.1 --secure-port "$port" \
  --advertise-address 192.0.2.1 --cert-dir "$work/cert" \
  --service-account-issuer https://k8s-check --service-account-key-file "$work/accounts.pem" \
  --service-account-signing-key-file "$work/accounts.pem" --service-cluster-ip-range 10.96.0.0/16 \
  --token-auth-file "$work/tokens.csv" --authorization-mode AlwaysAllow >"$work/apiserver.log" 2>&1 &
server_pid=$!
kubectl() {
  HOME=$work "$tools/kubectl" --server "https://127.0.0.1:$port" --token "$token" --insecure-skip-tls-verify --warnings-as-errors "$@"
}
for ((tries = 240; tries > 0; tries--)); do
  kubectl get --raw /readyz >/dev/null 2>&1 && break
  kill -0 "$server_pid" 2>/dev/null || { echo "k8s-check: kube-apiserver ended" >&2; exit 70; }
  sleep 0.5
done
[ "$tries" -gt 0 ] || { echo "k8s-check: kube-apiserver was not ready within 2 minutes" >&2; exit 70; }

try() { kubectl apply --validate=strict --dry-run=server -f "$1" >"$work/out.log" 2>&1; }
refused() { # refused WHAT WORD: standard input must be refused with WORD
  cat >"$work/wrong.yaml"
  if try "$work/wrong.yaml" || ! grep -q "$2" "$work/out.log"; then
    cat "$work/out.log" >&2
    echo "k8s-check: $1 was to be refused" >&2
    exit 70
  fi
}
accepted() { # accepted NAME FOLDER
  kubectl kustomize "$2" >"$work/$1.yaml"
  try "$work/$1.yaml" || { cat "$work/out.log" >&2; echo "k8s-check: $2 is refused" >&2; exit 1; }
  kubectl create --dry-run=client -o json -f "$work/$1.yaml" >"$work/$1.json"
  echo "k8s-check: $2: $(wc -l <"$work/out.log") objects accepted"
}

kubectl wait --for=create --timeout=60s namespace/default >/dev/null
for namespace in k8s/overlays/*/namespace.yaml; do kubectl apply -f "$namespace" >/dev/null; done
# These need nothing but Kubernetes.
accepted base k8s/base
accepted dev k8s/overlays/dev
kubectl create -f "$work/crds" >/dev/null
kubectl wait --for=condition=Established --timeout=60s crd --all >/dev/null
for overlay in cpu gpu image-volume; do accepted "$overlay" "k8s/overlays/$overlay"; done
try k8s/secret.example.yaml || { cat "$work/out.log" >&2; exit 1; }
# What judges here does judge: unknown fields, wrong types, what the namespace forbids, and the same for custom resources.
sed 's/maxUnavailable: 1$/maxUnavailabel: 1/' "$work/cpu.yaml" | refused 'a misspelt field' 'unknown field.*maxUnavailabel'
sed 's/minReplicaCount: 2/minReplicaCount: two/' "$work/cpu.yaml" | refused 'a word for a number' minReplicaCount
sed 's/pollingInterval:/pollInterval:/' "$work/cpu.yaml" | refused 'a misspelt field of a custom resource' 'unknown field.*pollInterval'
sed 's/allowPrivilegeEscalation: false/allowPrivilegeEscalation: true/' "$work/cpu.yaml" | refused 'a privileged pod' 'violate PodSecurity'

# What k8s/README.md tells an operator to do; nobody here acts on it, but the server takes it.
kubectl apply -f "$work/cpu.yaml" >/dev/null
while IFS= read -r command; do
  eval "$command" >"$work/out.log" 2>&1 || { cat "$work/out.log" >&2; echo "k8s-check: refused: $command" >&2; exit 1; }
done < <(python3 scripts/k8s_check.py commands)

python3 scripts/k8s_check.py rendered "$work"
own
python3 scripts/k8s_check.py checked
echo "k8s-check: green; commit k8s/checked and k8s/rendered.json"
