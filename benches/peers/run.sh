#!/usr/bin/env bash
# Cache hits beside nginx and Varnish, which must be installed: nothing is installed here, and nothing leaves this machine.
# The servers get one core and what asks them another. What stands behind it is given on: --rounds 9 --bodies small, ...
set -euo pipefail
cd "$(dirname "$0")/../.."

server_core=${SERVER_CORE:-0}
asking_core=${ASKING_CORE:-1}

missing=()
for program in nginx varnishd taskset kill; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "peers: not found: ${missing[*]}" >&2
  echo "peers: on Debian they are in the packages nginx-light, varnish, util-linux and procps; /usr/sbin must be in PATH" >&2
  exit 1
fi

exec cargo bench --locked --bench peers -- --server-core "$server_core" --asking-core "$asking_core" "$@"
