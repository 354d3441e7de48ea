#!/usr/bin/env bash
# Has a real Prometheus scrape a real latentgate for two minutes, with the rules and the dashboard's queries loaded, and
# looks at what came of it: check_live.sh [LATENTGATE]
#
# Needs prometheus, promtool, curl and python3; with PyYAML (deploy/check.sh --install) the dashboard's queries too.
# Everything is on the loopback, on free ports, and a request is made about twice a second.
set -euo pipefail
cd "$(dirname "$0")/../.."
latentgate=$(realpath "${1:-target/release/latentgate}")
python=python3
if [ -x target/deploy/bin/python ]; then python=target/deploy/bin/python; fi
seconds=120
work=$(mktemp -d)
started=()
stop() {
  for process in "${started[@]}"; do kill "$process" 2> /dev/null || true; done
  wait
  rm -rf "$work"
}
trap stop EXIT

free_port() { "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
data=127.0.0.1:$(free_port) admin=127.0.0.1:$(free_port) prometheus=127.0.0.1:$(free_port)

# Little room in memory, so that answers are evicted and found again on the disk; an endpoint that is not there, so that
# jobs fail over. Names that end in .invalid lead nowhere.
cat > "$work/latentgate.toml" << END
[listen]
data = "$data"
admin = "$admin"
[cache.memory]
capacity = "600KiB"
[cache.disk]
path = "$work/cache"
[route]
backends = ["local"]
[upstream]
retries = 1
[models.builtin]
backends = ["upstream", "local"]
upstream.decode = ["http://127.0.0.1:1"]
END
"$latentgate" --config "$work/latentgate.toml" serve 2> "$work/latentgate.log" &
started+=($!)

cp -r deploy/prometheus/rules "$work/rules"
if ! "$python" deploy/check/dashboard.py deploy/grafana/latentgate.json "$work/rules/dashboard.yml"; then
  echo "NOT RUN: the dashboard's queries (PyYAML is absent)"
  rm -f "$work/rules/dashboard.yml"
fi
sed -e "s/latentgate:8791/$admin/" -e 's/_interval: 15s/_interval: 5s/' deploy/prometheus/prometheus.yml > "$work/prometheus.yml"
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/tsdb" --web.listen-address="$prometheus" \
  2> "$work/prometheus.log" &
started+=($!)

ask() { "$latentgate" "$@" --server "http://$data" > /dev/null 2>> "$work/clients.log"; }
for _ in $(seq 50); do curl -sf "http://$admin/readyz" > /dev/null && break; sleep 0.2; done
ask encode assets/demo.jpg -o "$work/z.safetensors"
# Hits of either tier, runs, derived forms and refusals in turn.
count=0
while [ "$SECONDS" -lt "$seconds" ]; do
  count=$((count + 1))
  ask decode "$work/z.safetensors" -o "$work/a.png"
  case $((count % 5)) in
    0) ask decode "$work/z.safetensors" -o "$work/a.png" --cache bypass ;;
    1) ask decode "$work/z.safetensors" -o "$work/a.jpg" --quality $((50 + count % 40)) ;;
    2) ask encode assets/demo.jpg -o "$work/z.safetensors" ;;
    3) ask decode "$work/z.safetensors" -o "$work/a.webp" ;;
    4) ask decode "$work/z.safetensors" -o "$work/a.png" --model unheard-of || true ;;
  esac
  sleep 0.8
done

echo "== promtool check metrics"
curl -sf "http://$admin/metrics" | promtool check metrics
echo "== what Prometheus says"
"$python" deploy/check/live.py "http://$prometheus"
