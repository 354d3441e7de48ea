#!/usr/bin/env bash
# Runs every check of deploy/ that this machine has the tools for, and says which did not run, and why.
#
#   deploy/check.sh              fails where a check fails; what is absent is told and does not fail
#   deploy/check.sh --install    fetches the tools first: Debian's prometheus (as root), Python packages into target/deploy
#   deploy/check.sh --strict     fails where a tool is absent, too
#
# Nothing here needs a cluster, a Docker daemon or the network.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
tools=$PWD/target/deploy
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=() failed=() absent=() beyond=()

strict=
for argument in "$@"; do
  case $argument in
    --strict) strict=1 ;;
    --install)
      command -v promtool > /dev/null || apt-get install -y --no-install-recommends prometheus || exit
      [ -x "$tools/bin/python" ] || python3 -m venv "$tools" || exit
      "$tools/bin/pip" install --quiet --requirement deploy/check/requirements.txt || exit
      ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
done
PATH=$tools/bin:$PATH

# check NAME COMMAND...
check() {
  local name=$1
  shift
  printf '== %s\n' "$name"
  if "$@"; then passed+=("$name"); else failed+=("$name"); printf 'FAILED: %s\n' "$name"; fi
}

# without NAME WHY: what cannot be checked here.
without() { absent+=("$1: $2"); }

# needs TOOL NAME COMMAND...: the check, where the tool is there.
needs() {
  local tool=$1 name=$2
  shift
  if command -v "$tool" > /dev/null; then check "$@"; else without "$name" "no $tool"; fi
}

# module MODULE NAME COMMAND...: the same for a Python module.
module() {
  local module=$1 name=$2
  shift
  if python3 -c "import $module" 2> /dev/null; then check "$@"; else without "$name" "no Python module $module"; fi
}

needs promtool "Prometheus: configuration and rules" promtool check config deploy/prometheus/prometheus.yml
needs promtool "Prometheus: unit tests of the rules" promtool test rules deploy/prometheus/tests/*.yml
module yaml "Prometheus: each alert is tested to speak and to be silent" \
  python3 deploy/check/alerts.py deploy/prometheus/rules/*.yml -- deploy/prometheus/tests/*.yml

module yaml "Grafana: build of the dashboard" \
  python3 deploy/check/dashboard.py deploy/grafana/latentgate.json "$work/dashboard.yml"
if [ -s "$work/dashboard.yml" ]; then
  needs promtool "Grafana: queries of the dashboard" promtool check rules "$work/dashboard.yml"
else
  without "Grafana: queries of the dashboard" "the check before did not run"
fi

# A built program judges the configurations in the YAML as well; `cargo test` does so in any case.
if [ -x target/release/latentgate ]; then export LATENTGATE=$PWD/target/release/latentgate; fi
module kubernetes_validate "Kubernetes: objects" python3 deploy/check/kubernetes.py deploy/kubernetes/*.yaml
module helm_python "Helm: the chart, rendered" python3 deploy/check/kubernetes.py deploy/helm/latentgate

needs docker-compose "Compose: the file" docker-compose -f deploy/compose/compose.yaml config --quiet
needs hadolint "Docker: the Dockerfile" hadolint deploy/docker/Dockerfile

# The program's place is not filled on every machine; any program will do for it.
if command -v systemd-analyze > /dev/null; then
  sed "s|/usr/bin/latentgate|$(type -P true)|" deploy/systemd/latentgate.service > "$work/latentgate.service"
  check "systemd: the unit" systemd-analyze verify --man=no "$work/latentgate.service"
  # In tenths: 1.5 of 10.
  exposure() { systemd-analyze security --offline=true --threshold=15 "$work/latentgate.service" | tail -n 1; }
  check "systemd: exposure" exposure
else
  without "systemd: the unit and its exposure" "no systemd-analyze"
fi
needs systemd-sysusers "systemd: the user" systemd-sysusers --dry-run "$PWD/deploy/systemd/latentgate.sysusers"

needs shellcheck "scripts" shellcheck deploy/check.sh deploy/prometheus/check_live.sh tools/cuda/nvcc-typecheck tools/cuda/*.sh

beyond=(
  "Docker: building and running the images: needs a daemon and the network"
  "Kubernetes and Helm: installing: needs a cluster"
  "Grafana: the look of the dashboard: needs Grafana"
  "Prometheus: scraping a latentgate: takes two minutes, deploy/prometheus/check_live.sh"
)

printf '\n%s checks passed, %s failed\n' "${#passed[@]}" "${#failed[@]}"
for name in "${failed[@]}"; do printf 'FAILED   %s\n' "$name"; done
for name in "${absent[@]}" "${beyond[@]}"; do printf 'NOT RUN  %s\n' "$name"; done
[ "${#failed[@]}" -eq 0 ] && { [ -z "$strict" ] || [ "${#absent[@]}" -eq 0 ]; }
