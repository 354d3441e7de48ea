#!/usr/bin/env bash
# Lays out what a CUDA build needs and a machine without a GPU has not: NVIDIA's compiler and headers (CUDA 13.0), from the
# wheels in requirements.txt, and stand-ins for the libraries to link against.
#
#   tools/cuda/toolchain.sh DEST [PYTHON]    then: . DEST/env.sh
#
# For x86_64 Linux; needs cargo, g++ up to 15, a Python with pip, and the network (PyPI, crates.io). Nothing is installed
# outside DEST (270 MB). What NVIDIA's licence says of its compiler holds: DEST is to build with, not to hand on.
#
# The stand-ins export every name that cudarc declares and do nothing. One that exported none would be dropped by the linker
# (--as-needed), and the program would not ask for the real library when it starts. They bear the real names of CUDA 13 and
# cuDNN 9. The CUDA runtime is linked from NVIDIA's static library, so the program asks for no libcudart.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '5s/^# *//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
dest=$(realpath -m "$1") python=${2:-python3}
[ "$(uname -sm)" = "Linux x86_64" ] || { echo "the wheels are for x86_64 Linux; this is $(uname -sm)" >&2; exit 1; }

root=$dest/wheels/nvidia/cu13 stubs=$dest/wheels/nvidia/cu13/lib/stubs
rm -f "$dest/env.sh"
if ! cmp -s "$here/requirements.txt" "$dest/requirements.txt"; then
  rm -rf "$dest/wheels"
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --target "$dest/wheels" --requirement "$here/requirements.txt"
  cp "$here/requirements.txt" "$dest/requirements.txt"
fi
# Wheels have `lib` where the toolkit has `lib64`.
ln -sfn lib "$root/lib64"
mkdir -p "$stubs"

# Where cargo keeps the source of the cudarc that Cargo.lock names.
manifest=$(cargo metadata --locked --format-version 1 --features cudnn --manifest-path "$here/../../Cargo.toml" |
  "$python" -c 'import json, sys; print(*(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"))')
cudarc=${manifest%/Cargo.toml}/src

# stub MODULE NAME SONAME: every function that a module of cudarc declares.
stub() {
  local names
  names=$(grep -rhoE 'fn (cu|nvrtc)[A-Za-z0-9_]+' "$cudarc/$1/sys" | awk '{print $2}' | sort -u)
  [ -n "$names" ] || { echo "cudarc declares nothing in $1/sys: has it changed?" >&2; exit 1; }
  awk '{print "void " $1 "(void) {}"}' <<< "$names" |
    gcc -w -shared -fPIC -x c - -o "$stubs/lib$2.so" "-Wl,-soname,$3"
}
stub driver cuda libcuda.so.1
stub cublas cublas libcublas.so.13
stub cublaslt cublasLt libcublasLt.so.13
stub curand curand libcurand.so.10
stub nvrtc nvrtc libnvrtc.so.13
stub cudnn cudnn libcudnn.so.9
# Asked for by candle-kernels; to a linker a text is a script.
echo "INPUT ( $root/lib/libcudart_static.a -ldl -lrt -lpthread )" > "$stubs/libcudart.so"

# CUDA_HOME is where cudarc looks for libraries, unless one of the others is set.
cat > "$dest/env.sh" << X
# Made by tools/cuda/toolchain.sh.
export CUDA_HOME='$root' NVCC='$root/bin/nvcc' CUDARC_CUDA_VERSION=13000
export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-80}
unset CUDA_PATH CUDA_ROOT CUDA_TOOLKIT_ROOT_DIR CUDNN_LIB
X
"$root/bin/nvcc" --version | tail -n 2
