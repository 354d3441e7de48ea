#!/usr/bin/env bash
# Runs the clients as examples/README.md says, each against a fresh server on the loopback, and proves what they wrote.
#
#   examples/run.sh [--install] [python|node|go|rust|curl|all]...
#
# Of each client: the picture is a PNG of the right size and has the bytes that every other client gets; the second run
# sends no input; latents in a file give the same picture; a refusal and an absent server are told with their reason.
# --install fetches what is missing: Debian packages by apt, the rest from PyPI into target/venv and from npm into
# examples/node/node_modules. LATENTGATE names the server's binary (default target/release/latentgate).
#
# Exit status: 1 if a client failed, or if one that was asked for by name did not run.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
server_binary=${LATENTGATE:-target/release/latentgate}
# A server and clients like those of somebody who has configured nothing.
unset LATENTGATE_CONFIG LATENTGATE_SERVER "${!LATENTGATE__@}"
known=(python node go rust curl)

usage() {
  sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

install=no named=()
for argument; do
  case $argument in
    --install) install=yes ;;
    all) ;;
    python | node | go | rust | curl) named+=("$argument") ;;
    *) usage ;;
  esac
done
clients=("${named[@]:-${known[@]}}")

work=$(mktemp -d)
server_pid=
cleanup() {
  stop_server
  rm -rf "$work"
}
trap cleanup EXIT

# --- the server

start_server() {
  # Emptied here, not by the new process: the address must not be that of the server before.
  : >"$work/server.log"
  "$server_binary" serve --listen 127.0.0.1:0 --admin 127.0.0.1:0 2>>"$work/server.log" &
  server_pid=$!
  for _ in $(seq 200); do
    address=$(sed -n 's/.*serving data=\(127\.0\.0\.1:[0-9]*\) .*/\1/p' "$work/server.log")
    if [ -n "$address" ]; then
      export LATENTGATE_SERVER=http://$address
      return
    fi
    kill -0 "$server_pid" 2>/dev/null || break
    sleep 0.05
  done
  cat "$work/server.log" >&2
  echo "the server does not start" >&2
  exit 1
}

stop_server() {
  if [ -n "$server_pid" ]; then
    kill "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
    server_pid=
  fi
}

# --- the page

# The indented lines of a section ("## Python") after the paragraph that ends with a word ("Run:").
lines_of() {
  awk -v section="## $1" -v word="$2" '
    /^## / { inside = (tolower($0) == tolower(section)); wanted = 0; next }
    inside && /^[^ ]/ { wanted = 0 }
    inside && $0 ~ "(^|[. ])" word "$" { wanted = 1; next }
    inside && wanted && /^    / { print substr($0, 5) }
  ' examples/README.md
}

# Runs lines of the page, with a picture, an output and a server other than the page's.
# The names are put in by sed, which is why none of them may hold a `#`.
run_lines() {
  local lines
  lines=$(sed -e "s#assets/demo.jpg#$2#; s#picture.png#$3#; s#latents.f16#$work/latents.f16#" \
    -e "s#http://127.0.0.1:8790#$LATENTGATE_SERVER#" <<<"$1")
  bash -euo pipefail -c "$lines${4:+ $4}"
}

# --- what there is

missing() {
  case $1 in
    python)
      if ! command -v python3 >/dev/null; then
        echo "python3"
      elif ! target/venv/bin/python -c "import blake3, google.rpc, grpc, grpc_status, grpc_tools, numpy, PIL" 2>/dev/null; then
        echo "target/venv"
      fi
      ;;
    node)
      if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        echo "node with npm"
      elif [ ! -e examples/node/node_modules/@grpc/grpc-js ]; then
        echo "examples/node/node_modules"
      fi
      ;;
    go)
      for tool in go protoc protoc-gen-go; do
        command -v "$tool" >/dev/null || { echo "$tool" && return; }
      done
      for package in google.golang.org/grpc google.golang.org/genproto lukechampine.com/blake3; do
        [ -e "/usr/share/gocode/src/$package" ] || { echo "/usr/share/gocode/src/$package" && return; }
      done
      ;;
    rust) command -v cargo >/dev/null || echo "cargo" ;;
    curl) command -v curl >/dev/null || echo "curl" ;;
  esac
}

# As root there may be no sudo, and no need of it.
sudo() {
  if [ "$(id -u)" = 0 ]; then "$@"; else command sudo "$@"; fi
}
export -f sudo

install_client() {
  case $1:$(missing "$1") in
    *: | rust:*) return ;;
    python:python3) sudo apt-get install -y --no-install-recommends python3 python3-venv ;;
    "node:node with npm") sudo apt-get install -y --no-install-recommends nodejs npm ;;
    curl:*) sudo apt-get install -y --no-install-recommends curl ;;
  esac
  bash -euo pipefail -c "$(lines_of "$1" Install:)"
}

# --- what is proved

# Ends the shell that proves a client.
fail() {
  echo "FAILED  $client: $*" >&2
  exit 1
}

# Of a PNG: its signature, then width and height, big-endian, at offset 16.
is_png_of() {
  [ "$(od -An -tx1 -N8 "$1" | tr -d ' ')" = 89504e470d0a1a0a ] || fail "$1 is no PNG"
  local size
  size=$(od -An -tu1 -j16 -N8 "$1" | awk '{ print (($1*256+$2)*256+$3)*256+$4 "x" (($5*256+$6)*256+$7)*256+$8 }')
  [ "$size" = "$2" ] || fail "$1 is $size, wanted $2"
}

says() {
  grep -q -- "$1" "$2" || { cat "$2" >&2 && fail "did not say \"$1\""; }
}

same() {
  cmp -s "$1" "$2" || fail "$3"
}

prove() {
  local client=$1 line
  line=$(lines_of "$client" Run:)
  [ -n "$line" ] || fail "examples/README.md does not say how to run it"
  start_server
  bash -euo pipefail -c "$(lines_of "$client" Generate:)"
  run_lines "$line" "$picture" "$work/$client.png" >"$work/first" || fail "its line ended with $?"
  is_png_of "$work/$client.png" "$picture_size"
  same "$work/$client.png" "$work/reference.png" "the picture is not the one that latentgate's own commands write"
  "prove_$client" "$line"
  stop_server
}

# What the four gRPC clients promise.
prove_client() {
  local line=$1
  says "^encode: COMPUTED, .*, input sent$" "$work/first"
  says "^decode: COMPUTED, .*, input sent$" "$work/first"

  run_lines "$line" "$picture" "$work/again.png" >"$work/second" || fail "its second run ended with $?"
  says "^encode: MEMORY, .*, input not sent$" "$work/second"
  says "^decode: MEMORY, .*, input not sent$" "$work/second"
  same "$work/again.png" "$work/reference.png" "the second picture is another"

  run_lines "$line" "$work/latents.safetensors" "$work/file.png" >/dev/null || fail "latents in a file: ended with $?"
  same "$work/file.png" "$work/reference.png" "latents in a file give another picture"

  if run_lines "$line" "$picture" "$work/none.png" no-such-model 2>"$work/refused"; then fail "a refusal ended well"; fi
  says "ListModels tells the names" "$work/refused"
  says "reason: UNKNOWN_MODEL" "$work/refused"
  if run_lines "$line" examples/README.md "$work/none.png" 2>"$work/refused"; then fail "a refusal ended well"; fi
  says "field: image" "$work/refused"
  # Nothing listens on port 1.
  if LATENTGATE_SERVER=http://127.0.0.1:1 run_lines "$line" "$picture" "$work/none.png" 2>"$work/refused"; then
    fail "no server, and it ended well"
  fi
  says 'running `latentgate serve`' "$work/refused"
  [ ! -e "$work/none.png" ] || fail "a refused request left a file"
}

prove_node() { prove_client "$1"; }
prove_go() { prove_client "$1"; }
prove_rust() { prove_client "$1"; }

prove_python() {
  prove_client "$1"
  target/venv/bin/python examples/python/remote_decode.py "$work/latents.safetensors" "$work/pillow.png" >/dev/null
  target/venv/bin/python - "$work/pillow.png" "$work/reference.png" <<'PYTHON' || fail "remote_decode.py gives other pixels"
import sys
import numpy, PIL.Image
one, other = (numpy.asarray(PIL.Image.open(path)) for path in sys.argv[1:])
sys.exit(not numpy.array_equal(one, other))
PYTHON
  # The README shows minimal.py, less its comment.
  sed -n '/^```python$/,/^```$/{/^import grpc$/,/^```$/{/^```$/q;p}}' README.md >"$work/readme.py"
  same "$work/readme.py" <(grep -v '^#' examples/python/minimal.py) "README's program is not minimal.py"
  (cd "$work" && sed "s#127.0.0.1:8790#$address#" "$root/examples/python/minimal.py" |
    PYTHONPATH=$root/examples/python "$root/target/venv/bin/python" - >"$work/minimal")
  says "^SOURCE_COMPUTED .* ms -> decoded.png$" "$work/minimal"
  is_png_of "$work/decoded.png" 512x512
}

prove_curl() {
  says "cache-status: latentgate; fwd=miss" "$work/first"
  run_lines "$1" "$picture" "$work/again.png" >"$work/second" || fail "its second run ended with $?"
  says "cache-status: latentgate; hit" "$work/second"
  same "$work/again.png" "$work/reference.png" "the second picture is another"
}

# --- all of it

[ -x "$server_binary" ] || { echo "$server_binary is not there: cargo build --release" >&2 && exit 1; }
picture=assets/demo.jpg
picture_size=512x512
start_server
"$server_binary" encode "$picture" -o "$work/latents.safetensors" 2>/dev/null
"$server_binary" decode "$work/latents.safetensors" -o "$work/reference.png" 2>/dev/null
stop_server

status=0
for client in "${clients[@]}"; do
  if [ $install = yes ]; then
    install_client "$client" >"$work/install.log" 2>&1 || { cat "$work/install.log" >&2 && status=1; }
  fi
  absent=$(missing "$client")
  if [ -n "$absent" ]; then
    remedy="--install fetches it"
    [ "$client" != rust ] || remedy="rustup installs it"
    echo "NOT RUN $client: $absent is not there; $remedy"
    [ ${#named[@]} = 0 ] || status=1
    continue
  fi
  began=$SECONDS
  # A shell of its own, so that the other clients still run. Not as the condition of an `if`: `set -e` would not hold in it.
  set +e
  (
    set -eE
    trap stop_server EXIT
    trap 'echo "FAILED  $client: line $LINENO of $0: $BASH_COMMAND" >&2' ERR
    prove "$client"
  )
  ended=$?
  set -e
  if [ $ended != 0 ]; then
    status=1
    continue
  fi
  read -r crc bytes < <(cksum <"$work/$client.png")
  echo "passed  $client: $bytes bytes, CRC $crc, $((SECONDS - began)) s"
done
exit $status
