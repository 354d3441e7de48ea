// Kernels of the CUDA path: everything about a feature map that is no convolution and no matrix product.
//
// Maps are [n, h, w, stored], channels last; `stored` is the channels rounded up to a multiple of 8, and what lies beyond the
// channels is zero. A thread works on an octet of 8 channels of a pixel, 16 bytes of a half precision. Elements are bits of
// their own type (Half, Brain) and arithmetic is f32 throughout; a result is rounded once, where it is stored. Sums are made in
// an order that depends on the shape alone, so a run gives the same bits each time. Offsets are 64 bits wide: a map may have
// more than 2^31 elements. Grids are chosen in `cuda/grid.rs`.
//
// This file is compiled twice: by nvcc to PTX (build.rs), and by the tests in `cuda/tests.rs` for the CPU, where
// tests/cuda/emulate.cpp stands in for the machine and every kernel is held to plain sums.

typedef long long i64;

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
__device__ __forceinline__ float half_bits_to_float(unsigned short bits) { return __half2float(__ushort_as_half(bits)); }
__device__ __forceinline__ unsigned short float_to_half_bits(float v) { return __half_as_ushort(__float2half_rn(v)); }
__device__ __forceinline__ float brain_bits_to_float(unsigned short bits) {
  return __bfloat162float(__ushort_as_bfloat16(bits));
}
__device__ __forceinline__ unsigned short float_to_brain_bits(float v) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(v));
}
#endif

// Threads of every block.
constexpr int THREADS = 256;
// Channels of an octet.
constexpr int OCTET = 8;
// Most channels, and so most groups, of a norm: one octet a thread.
constexpr int CHANNELS = THREADS * OCTET;
// Softmax weights sum to this and not to 1: one of 65536 equal weights would be a subnormal half otherwise. The product
// with the values divides by it again (`cuda/attend.rs`).
constexpr float WEIGHTS_SUM = 1024.0f;

struct Half {
  unsigned short bits;
};
struct Brain {
  unsigned short bits;
};

__device__ __forceinline__ float load(float v) { return v; }
__device__ __forceinline__ float load(Half v) { return half_bits_to_float(v.bits); }
__device__ __forceinline__ float load(Brain v) { return brain_bits_to_float(v.bits); }
__device__ __forceinline__ void store(float &to, float v) { to = v; }
__device__ __forceinline__ void store(Half &to, float v) { to.bits = float_to_half_bits(v); }
__device__ __forceinline__ void store(Brain &to, float v) { to.bits = float_to_brain_bits(v); }

// Aligned, so that it is read and written as one or two vectors of 16 bytes.
template <class T>
struct alignas(sizeof(T) * OCTET) Octet {
  T of[OCTET];
};

template <class T>
__device__ __forceinline__ Octet<T> octet_at(const T *map, i64 octet) {
  return reinterpret_cast<const Octet<T> *>(map)[octet];
}

template <class T>
__device__ __forceinline__ void put_octet(T *map, i64 octet, const Octet<T> &values) {
  reinterpret_cast<Octet<T> *>(map)[octet] = values;
}

// 0: none, 1: relu, 2: silu.
__device__ __forceinline__ float activate(float v, int activation) {
  if (activation == 1) return v < 0.0f ? 0.0f : v;
  if (activation == 2) return v / (1.0f + expf(-v));
  return v;
}

// A thread's place: which octet of its pixels, and which of the pixels its block works on at a time. Blocks that share
// pixels (`slab`) divide more than THREADS octets among them.
struct Place {
  int lane;
  int row;
  int rows;
  bool idle;
};

__device__ __forceinline__ Place place(int octets, int slab) {
  Place it;
  int lanes = octets < THREADS ? octets : THREADS;
  it.rows = THREADS / lanes;
  it.row = (int)threadIdx.x / lanes;
  it.lane = (int)threadIdx.x % lanes + slab * THREADS;
  it.idle = it.row >= it.rows || it.lane >= octets;
  return it;
}

// Sum over a block, in a fixed order; every thread gets it.
template <class F>
__device__ F block_sum(F mine) {
  __shared__ F sums[THREADS];
  sums[threadIdx.x] = mine;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  F sum = sums[0];
  __syncthreads();
  return sum;
}

__device__ inline float block_max(float mine) {
  __shared__ float most[THREADS];
  most[threadIdx.x] = mine;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if ((int)threadIdx.x < half) {
      float other = most[threadIdx.x + half];
      // NaN wins, so that it shows in the answer.
      if (!(most[threadIdx.x] >= other)) most[threadIdx.x] = other;
    }
    __syncthreads();
  }
  float max = most[0];
  __syncthreads();
  return max;
}

// Sums of columns `[rows][8 octets]` over the rows, into the first row. Needs a barrier before and gives one after.
__device__ inline void sum_rows(float *sums, int rows, int stored) {
  for (int c = threadIdx.x; c < stored; c += THREADS) {
    float sum = sums[c];
    for (int row = 1; row < rows; row++) sum += sums[row * stored + c];
    sums[c] = sum;
  }
  __syncthreads();
}

// Mean and sum of squared deviations of each group in some pixels of an image: partials[n][chunks][groups][2]. Two passes
// over the same pixels, the second from the cache, so that no large sums are subtracted. Grid: chunks, n. At most THREADS octets.
template <class T>
__device__ void group_partials(const T *x, float *partials, i64 pixels, int octets, int groups, int width, int chunk) {
  __shared__ float sums[CHANNELS];
  __shared__ float means[CHANNELS];
  const Place at = place(octets, 0);
  const int stored = octets * OCTET;
  const i64 first = (i64)blockIdx.x * chunk;
  const i64 last = first + chunk < pixels ? first + chunk : pixels;
  const i64 image = (i64)blockIdx.y * pixels;
  float *out = partials + ((i64)blockIdx.y * gridDim.x + blockIdx.x) * groups * 2;
  float mean[OCTET] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
  for (int pass = 0; pass < 2; pass++) {
    if (!at.idle) {
      float sum[OCTET] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
      for (i64 pixel = first + at.row; pixel < last; pixel += at.rows) {
        const Octet<T> v = octet_at(x, (image + pixel) * octets + at.lane);
#pragma unroll
        for (int k = 0; k < OCTET; k++) {
          float value = load(v.of[k]) - mean[k];
          sum[k] += pass == 0 ? value : value * value;
        }
      }
      for (int k = 0; k < OCTET; k++) sums[at.row * stored + at.lane * OCTET + k] = sum[k];
    }
    __syncthreads();
    sum_rows(sums, at.rows, stored);
    for (int group = threadIdx.x; group < groups; group += THREADS) {
      float sum = 0.0f;
      for (int c = group * width; c < (group + 1) * width; c++) sum += sums[c];
      if (pass == 0) {
        means[group] = sum / (float)((last - first) * width);
        out[group * 2] = means[group];
      } else {
        out[group * 2 + 1] = sum;
      }
    }
    __syncthreads();
    if (pass == 0 && !at.idle) {
      for (int k = 0; k < OCTET; k++) {
        int c = at.lane * OCTET + k;
        mean[k] = c < groups * width ? means[c / width] : 0.0f;
      }
    }
  }
}

// What a norm does to each channel, v * affine[n][0][c] + affine[n][1][c], from the partials of `chunks` chunks. Grid: groups, n.
extern "C" __global__ void group_affine(const float *partials, const float *scale, const float *shift, float *affine,
                                        i64 pixels, int chunks, int chunk, int width, int stored, double eps) {
  const int group = blockIdx.x, groups = gridDim.x;
  const float *mine = partials + (i64)blockIdx.y * chunks * groups * 2;
  double sum = 0.0;
  for (int i = threadIdx.x; i < chunks; i += THREADS) {
    i64 count = i + 1 < chunks ? chunk : pixels - (i64)chunk * (chunks - 1);
    sum += (double)count * mine[((i64)i * groups + group) * 2];
  }
  const double mean = block_sum(sum) / (double)pixels;
  double squares = 0.0;
  for (int i = threadIdx.x; i < chunks; i += THREADS) {
    i64 count = i + 1 < chunks ? chunk : pixels - (i64)chunk * (chunks - 1);
    const float *pair = mine + ((i64)i * groups + group) * 2;
    double apart = pair[0] - mean;
    squares += pair[1] + (double)(count * width) * apart * apart;
  }
  const double variance = block_sum(squares) / ((double)pixels * width);
  const float inverse = (float)(1.0 / sqrt(variance + eps));
  float *out = affine + (i64)blockIdx.y * 2 * stored;
  for (int c = group * width + threadIdx.x; c < (group + 1) * width; c += THREADS) {
    out[c] = scale[c] * inverse;
    out[stored + c] = shift[c] - (float)mean * out[c];
  }
  // Whoever has the last group sees to the channels that are none.
  if (group == groups - 1) {
    for (int c = groups * width + threadIdx.x; c < stored; c += THREADS) out[c] = out[stored + c] = 0.0f;
  }
}

// y = activation(x * scale + shift). Grid: pixels, n, slabs.
template <class T>
__device__ void norm_apply(const T *x, const float *affine, T *y, i64 pixels, int octets, int activation) {
  const Place at = place(octets, blockIdx.z);
  if (at.idle) return;
  const float *mine = affine + (i64)blockIdx.y * 2 * octets * OCTET;
  float scale[OCTET], shift[OCTET];
  for (int k = 0; k < OCTET; k++) {
    scale[k] = mine[at.lane * OCTET + k];
    shift[k] = mine[(octets + at.lane) * OCTET + k];
  }
  for (i64 pixel = (i64)blockIdx.x * at.rows + at.row; pixel < pixels; pixel += (i64)gridDim.x * at.rows) {
    const i64 octet = ((i64)blockIdx.y * pixels + pixel) * octets + at.lane;
    Octet<T> v = octet_at(x, octet);
#pragma unroll
    for (int k = 0; k < OCTET; k++) store(v.of[k], activate(load(v.of[k]) * scale[k] + shift[k], activation));
    put_octet(y, octet, v);
  }
}

// y = activation(y + bias + onto), in place; bias and onto may be null. Grid: pixels of all images, 1, slabs.
template <class T>
__device__ void finish(T *y, const T *bias, const T *onto, i64 pixels, int octets, int activation) {
  const Place at = place(octets, blockIdx.z);
  if (at.idle) return;
  float added[OCTET];
  for (int k = 0; k < OCTET; k++) added[k] = bias ? load(bias[at.lane * OCTET + k]) : 0.0f;
  for (i64 pixel = (i64)blockIdx.x * at.rows + at.row; pixel < pixels; pixel += (i64)gridDim.x * at.rows) {
    const i64 octet = pixel * octets + at.lane;
    Octet<T> v = octet_at(y, octet);
    Octet<T> on;
    if (onto) on = octet_at(onto, octet);
#pragma unroll
    for (int k = 0; k < OCTET; k++) {
      float value = load(v.of[k]) + added[k];
      if (onto) value += load(on.of[k]);
      store(v.of[k], activate(value, activation));
    }
    put_octet(y, octet, v);
  }
}

// Nearest-neighbour upsampling by `factor` between `before` rows and columns of zeros and as many as y has room for.
// x [n, h, w], y [n, oh, ow]. Grid: columns, oh, n * slabs.
template <class T>
__device__ void spread(const T *x, T *y, int h, int w, int oh, int ow, int octets, int slabs, int factor, int before) {
  const Place at = place(octets, blockIdx.z % slabs);
  if (at.idle) return;
  const int image = blockIdx.z / slabs, oy = blockIdx.y;
  const bool has_row = oy >= before && (oy - before) / factor < h;
  const i64 from = ((i64)image * h + (oy - before) / factor) * w, to = ((i64)image * oh + oy) * ow;
  for (int ox = blockIdx.x * at.rows + at.row; ox < ow; ox += gridDim.x * at.rows) {
    Octet<T> v;
    for (int k = 0; k < OCTET; k++) store(v.of[k], 0.0f);
    if (has_row && ox >= before && (ox - before) / factor < w) {
      v = octet_at(x, (from + (ox - before) / factor) * octets + at.lane);
    }
    put_octet(y, (to + ox) * octets + at.lane, v);
  }
}

// f32 planes [n, c, pixels] to a map. Grid: pixels, n.
template <class T>
__device__ void from_planes(const float *planes, T *y, i64 pixels, int c, int octets) {
  for (i64 pixel = (i64)blockIdx.x * THREADS + threadIdx.x; pixel < pixels; pixel += (i64)gridDim.x * THREADS) {
    for (int octet = 0; octet < octets; octet++) {
      Octet<T> v;
      for (int k = 0; k < OCTET; k++) {
        int channel = octet * OCTET + k;
        store(v.of[k], channel < c ? planes[((i64)blockIdx.y * c + channel) * pixels + pixel] : 0.0f);
      }
      put_octet(y, ((i64)blockIdx.y * pixels + pixel) * octets + octet, v);
    }
  }
}

// Bytes [n, pixels, c] to a map of -1..1, or of 0..1. Grid: pixels of all images.
template <class T>
__device__ void from_bytes(const unsigned char *bytes, T *y, i64 pixels, int c, int octets, int unit) {
  for (i64 pixel = (i64)blockIdx.x * THREADS + threadIdx.x; pixel < pixels; pixel += (i64)gridDim.x * THREADS) {
    for (int octet = 0; octet < octets; octet++) {
      Octet<T> v;
      for (int k = 0; k < OCTET; k++) {
        int channel = octet * OCTET + k;
        float value = 0.0f;
        if (channel < c) {
          value = (float)bytes[pixel * c + channel] / 255.0f * 2.0f - 1.0f;
          if (unit) value = (value + 1.0f) * 0.5f;
        }
        store(v.of[k], value);
      }
      put_octet(y, pixel * octets + octet, v);
    }
  }
}

// A map to planes [n, c, pixels]; from 0..1 to -1..1 if it is `unit`. Grid: pixels, n.
template <class T, class P>
__device__ void to_planes(const T *x, P *planes, i64 pixels, int c, int octets, int unit) {
  for (i64 pixel = (i64)blockIdx.x * THREADS + threadIdx.x; pixel < pixels; pixel += (i64)gridDim.x * THREADS) {
    for (int octet = 0; octet < octets; octet++) {
      const Octet<T> v = octet_at(x, ((i64)blockIdx.y * pixels + pixel) * octets + octet);
      for (int k = 0; k < OCTET; k++) {
        int channel = octet * OCTET + k;
        float value = load(v.of[k]);
        if (unit) value = value * 2.0f - 1.0f;
        if (channel < c) store(planes[((i64)blockIdx.y * c + channel) * pixels + pixel], value);
      }
    }
  }
}

// A map of three channels to bytes [n, pixels, 3], as `render::unit_to_u8` makes them of numbers that were rounded to f16, each
// operation rounded to f16 as well. `flaw` becomes 1 where such a number is not finite. Grid: pixels of all images.
template <class T>
__device__ void to_bytes(const T *x, unsigned char *bytes, int *flaw, i64 pixels, int octets, int unit) {
  for (i64 pixel = (i64)blockIdx.x * THREADS + threadIdx.x; pixel < pixels; pixel += (i64)gridDim.x * THREADS) {
    const Octet<T> v = octet_at(x, pixel * octets);
    for (int k = 0; k < 3; k++) {
      float value = load(v.of[k]);
      if (unit) value = value * 2.0f - 1.0f;
      const unsigned short half = float_to_half_bits(value);
      if ((half & 0x7c00) == 0x7c00) *flaw = 1;
      const float halved = half_bits_to_float(float_to_half_bits(half_bits_to_float(half) * 0.5f));
      float shown = half_bits_to_float(float_to_half_bits(halved + 0.5f));
      // NaN fails both comparisons and is 0.
      shown = shown > 0.0f ? (shown < 1.0f ? shown : 1.0f) : 0.0f;
      bytes[pixel * 3 + k] = (unsigned char)rintf(shown * 255.0f);
    }
  }
}

// Rows of f32 scores [rows, keys] to weights that sum to WEIGHTS_SUM. Grid: rows.
template <class T>
__device__ void softmax(const float *scores, T *weights, int keys) {
  const float *mine = scores + (i64)blockIdx.x * keys;
  T *out = weights + (i64)blockIdx.x * keys;
  float most = mine[0];
  for (int key = threadIdx.x; key < keys; key += THREADS) {
    float score = mine[key];
    if (!(most >= score)) most = score;
  }
  most = block_max(most);
  float sum = 0.0f;
  for (int key = threadIdx.x; key < keys; key += THREADS) sum += expf(mine[key] - most);
  const float share = WEIGHTS_SUM / block_sum(sum);
  for (int key = threadIdx.x; key < keys; key += THREADS) store(out[key], expf(mine[key] - most) * share);
}

// Every kernel by name and precision.
#define LAUNCHABLE(T, NAME)                                                                                            \
  extern "C" __global__ void group_partials_##NAME(const T *x, float *partials, i64 pixels, int octets, int groups,    \
                                                   int width, int chunk) {                                             \
    group_partials(x, partials, pixels, octets, groups, width, chunk);                                                 \
  }                                                                                                                    \
  extern "C" __global__ void norm_apply_##NAME(const T *x, const float *affine, T *y, i64 pixels, int octets,          \
                                               int activation) {                                                       \
    norm_apply(x, affine, y, pixels, octets, activation);                                                              \
  }                                                                                                                    \
  extern "C" __global__ void finish_##NAME(T *y, const T *bias, const T *onto, i64 pixels, int octets,                 \
                                           int activation) {                                                           \
    finish(y, bias, onto, pixels, octets, activation);                                                                 \
  }                                                                                                                    \
  extern "C" __global__ void spread_##NAME(const T *x, T *y, int h, int w, int oh, int ow, int octets, int slabs,      \
                                           int factor, int before) {                                                   \
    spread(x, y, h, w, oh, ow, octets, slabs, factor, before);                                                         \
  }                                                                                                                    \
  extern "C" __global__ void from_planes_##NAME(const float *planes, T *y, i64 pixels, int c, int octets) {            \
    from_planes(planes, y, pixels, c, octets);                                                                         \
  }                                                                                                                    \
  extern "C" __global__ void from_bytes_##NAME(const unsigned char *bytes, T *y, i64 pixels, int c, int octets,        \
                                               int unit) {                                                             \
    from_bytes(bytes, y, pixels, c, octets, unit);                                                                     \
  }                                                                                                                    \
  extern "C" __global__ void to_f32_##NAME(const T *x, float *planes, i64 pixels, int c, int octets, int unit) {       \
    to_planes(x, planes, pixels, c, octets, unit);                                                                     \
  }                                                                                                                    \
  extern "C" __global__ void to_f16_##NAME(const T *x, Half *planes, i64 pixels, int c, int octets, int unit) {        \
    to_planes(x, planes, pixels, c, octets, unit);                                                                     \
  }                                                                                                                    \
  extern "C" __global__ void to_bf16_##NAME(const T *x, Brain *planes, i64 pixels, int c, int octets, int unit) {      \
    to_planes(x, planes, pixels, c, octets, unit);                                                                     \
  }                                                                                                                    \
  extern "C" __global__ void to_bytes_##NAME(const T *x, unsigned char *bytes, int *flaw, i64 pixels, int octets,      \
                                             int unit) {                                                               \
    to_bytes(x, bytes, flaw, pixels, octets, unit);                                                                    \
  }                                                                                                                    \
  extern "C" __global__ void softmax_##NAME(const float *scores, T *weights, int keys) {                               \
    softmax(scores, weights, keys);                                                                                    \
  }

LAUNCHABLE(float, f32)
LAUNCHABLE(Half, f16)
LAUNCHABLE(Brain, bf16)
