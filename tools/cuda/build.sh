#!/usr/bin/env bash
# Builds latentgate for NVIDIA GPUs (feature `cudnn`) on a machine that needs neither a GPU nor NVIDIA's toolkit.
#
#   tools/cuda/build.sh [DEST]    the program is target/cuda/release/latentgate
#
# DEST (default target/cuda-toolchain) is where toolchain.sh lays out the compiler; what that needs stands at its head.
# CUDA_COMPUTE_CAP says for which GPU. 80, the default, is for an A100 and whatever is newer: kernels are PTX, which the driver
# translates for the GPU that it finds. From 90 on they are for that GPU alone, as candle then asks for `sm_90a` and the like.
# The folder of the build is its own, so the CPU build stays as it is.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
dest=$(realpath -m "${1:-$root/target/cuda-toolchain}")
cd "$root"
export CARGO_TARGET_DIR=$root/target/cuda

# What is there already is not fetched again.
tools/cuda/toolchain.sh "$dest"
# shellcheck source=/dev/null
. "$dest/env.sh"
cargo build --release --locked --features cudnn

# A library that the linker took for unneeded would be missed on the machine with the GPU, and nowhere before.
program=$CARGO_TARGET_DIR/release/latentgate
needed=$(readelf --dynamic --wide "$program" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
for library in libcuda.so.1 libcublas.so.13 libcurand.so.10 libcudnn.so.9; do
  grep -qxF "$library" <<< "$needed" || { echo "$program does not ask for $library" >&2; exit 1; }
done
printf '%s for compute capability %s, %s bytes, asks for:\n%s\n' "$program" "$CUDA_COMPUTE_CAP" "$(stat -c %s "$program")" "$needed"
