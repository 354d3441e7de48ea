// Runs the kernels of `src/backend/local/engine/cuda/kernels.cu` on the CPU, for tests: the very text that nvcc compiles, with
// this file in the machine's place.
//
// A block's threads are coroutines that take turns between barriers, from the first to the last or from the last to the first,
// so that a result which hangs on their order shows as two results. Barriers that not all threads reach are an error, and so is
// a write outside a buffer; what lies around a buffer reads as NaN. Conversions to half precisions are written out here, bit by
// bit, and the tests hold them to those of Rust's `half`.
//
// Launches come on stdin and go back on stdout, little-endian:
//   in:  u32 order (0: first to last, 1: last to first), u32 grid[3], u32 name length, name, u32 arguments, then each of them:
//        u8 0, i32 | u8 1, i64 | u8 2, f64 | u8 3, u64 length, bytes of a buffer | u8 4, a null pointer
//        which must be of the type that the kernel takes: a launch on a GPU would read what lies there as such
//   out: the bytes of each buffer, in the order of the arguments.
// Errors end the program with a line on stderr.
// Some systems hide coroutines from whoever does not say this.
#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700
#endif
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static

struct Index {
  unsigned x, y, z;
};
static Index threadIdx, blockIdx, gridDim;
static void __syncthreads();

[[noreturn]] static void fail(const std::string &why) {
  fprintf(stderr, "emulate: %s\n", why.c_str());
  exit(1);
}

static uint32_t bits_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return bits;
}

static float float_of(uint32_t bits) {
  float v;
  memcpy(&v, &bits, 4);
  return v;
}

static float half_bits_to_float(unsigned short half) {
  const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
  if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) return float_of(sign | bits_of((float)fraction * 0x1p-24f));
  return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

static unsigned short float_to_half_bits(float v) {
  const uint32_t bits = bits_of(v), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return sign | 0x7e00 | (rest >> 13 & 0x3ff);
  const int exponent = (int)(rest >> 23) - 112;
  if (exponent >= 31) return sign | 0x7c00;
  uint32_t kept, cut, half;
  if (exponent >= 1) {
    kept = (uint32_t)exponent << 10 | (rest >> 13 & 0x3ff);
    cut = rest & 0x1fff;
    half = 0x1000;
  } else {
    const int shift = 14 - exponent;
    if (shift > 24) return sign;
    const uint32_t mantissa = (rest & 0x7fffff) | 0x800000;
    kept = mantissa >> shift;
    cut = mantissa & ((1u << shift) - 1);
    half = 1u << (shift - 1);
  }
  // A carry out of the fraction is the next exponent, and out of the last exponent infinity.
  if (cut > half || (cut == half && (kept & 1))) kept++;
  return sign | kept;
}

static float brain_bits_to_float(unsigned short brain) { return float_of((uint32_t)brain << 16); }

static unsigned short float_to_brain_bits(float v) {
  const uint32_t bits = bits_of(v);
  if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

#include "../../src/backend/local/engine/cuda/kernels.cu"

// === threads ===

static const size_t STACK = 64 << 10;
static ucontext_t scheduler, threads[THREADS];
static std::vector<char> stacks(THREADS *STACK);
static bool done[THREADS];
static unsigned current;
static void (*body)();

static void __syncthreads() {
  swapcontext(&threads[current], &scheduler);
}

static void enter() {
  body();
  done[current] = true;
  swapcontext(&threads[current], &scheduler);
}

static void run_block(uint32_t order) {
  for (int t = 0; t < THREADS; t++) {
    getcontext(&threads[t]);
    threads[t].uc_stack.ss_sp = &stacks[t * STACK];
    threads[t].uc_stack.ss_size = STACK;
    threads[t].uc_link = nullptr;
    makecontext(&threads[t], enter, 0);
    done[t] = false;
  }
  for (int ended = 0; ended < THREADS;) {
    ended = 0;
    for (int turn = 0; turn < THREADS; turn++) {
      current = order == 0 ? turn : THREADS - 1 - turn;
      threadIdx = {current, 0, 0};
      swapcontext(&scheduler, &threads[current]);
      ended += done[current];
    }
    if (ended != 0 && ended != THREADS) fail("some threads of a block are at a barrier that others never reach");
  }
}

// === arguments ===

static const size_t GUARD = 64;

enum Kind : unsigned char { INT, LONG, DOUBLE, BUFFER, NOTHING };

struct Argument {
  Kind kind = NOTHING;
  int64_t integer = 0;
  double number = 0;
  std::vector<unsigned char> memory;
  size_t length = 0;

  unsigned char *data() {
    if (kind != BUFFER) return nullptr;
    uintptr_t start = (uintptr_t)memory.data() + GUARD;
    return (unsigned char *)((start + 63) & ~(uintptr_t)63);
  }
  void expect_guards() {
    for (unsigned char *at = memory.data(); at < memory.data() + memory.size(); at++) {
      if ((at < data() || at >= data() + length) && *at != 0xff) fail("a kernel wrote outside its buffer");
    }
  }
};

static std::vector<Argument> arguments;

static void expect(bool is_of_type) {
  if (!is_of_type) fail("an argument is not of the type that the kernel takes");
}

template <class A>
struct Take;
template <>
struct Take<int> {
  static int from(Argument &it) {
    expect(it.kind == INT);
    return it.integer;
  }
};
template <>
struct Take<i64> {
  static i64 from(Argument &it) {
    expect(it.kind == LONG);
    return it.integer;
  }
};
template <>
struct Take<double> {
  static double from(Argument &it) {
    expect(it.kind == DOUBLE);
    return it.number;
  }
};
template <class A>
struct Take<A *> {
  static A *from(Argument &it) {
    expect(it.kind == BUFFER || it.kind == NOTHING);
    return (A *)it.data();
  }
};

template <auto KERNEL>
struct Call;
template <class... A, void (*KERNEL)(A...)>
struct Call<KERNEL> {
  template <size_t... I>
  static void with(std::index_sequence<I...>) {
    KERNEL(Take<A>::from(arguments[I])...);
  }
  static void now() { with(std::index_sequence_for<A...>{}); }
  static const size_t count = sizeof...(A);
};

struct Kernel {
  void (*call)();
  size_t count;
};

#define ENTRY(NAME) {#NAME, {Call<NAME>::now, Call<NAME>::count}}
#define ENTRIES(P)                                                                                                  \
  ENTRY(group_partials_##P), ENTRY(norm_apply_##P), ENTRY(finish_##P), ENTRY(spread_##P), ENTRY(from_planes_##P),   \
      ENTRY(from_bytes_##P), ENTRY(to_f32_##P), ENTRY(to_f16_##P), ENTRY(to_bf16_##P), ENTRY(to_bytes_##P),         \
      ENTRY(softmax_##P)

static const std::map<std::string, Kernel> KERNELS = {ENTRY(group_affine), ENTRIES(f32), ENTRIES(f16), ENTRIES(bf16)};

// === the pipe ===

static void read_all(void *to, size_t length) {
  if (length != 0 && fread(to, length, 1, stdin) != 1) fail("the launch ends early");
}

template <class V>
static V read_one() {
  V v;
  read_all(&v, sizeof(V));
  return v;
}

static void read_argument(Argument &it) {
  it.kind = (Kind)read_one<unsigned char>();
  switch (it.kind) {
    case INT: it.integer = read_one<int32_t>(); break;
    case LONG: it.integer = read_one<int64_t>(); break;
    case DOUBLE: it.number = read_one<double>(); break;
    case BUFFER:
      it.length = read_one<uint64_t>();
      it.memory.assign(it.length + 2 * GUARD + 64, 0xff);
      read_all(it.data(), it.length);
      break;
    case NOTHING: break;
    default: fail("an argument of no kind");
  }
}

int main() {
  uint32_t order;
  while (fread(&order, sizeof(order), 1, stdin) == 1) {
    gridDim.x = read_one<uint32_t>();
    gridDim.y = read_one<uint32_t>();
    gridDim.z = read_one<uint32_t>();
    // What the driver accepts.
    if (gridDim.x == 0 || gridDim.y == 0 || gridDim.z == 0 || gridDim.x > 0x7fffffff || gridDim.y > 65535 || gridDim.z > 65535) {
      fail("no such grid");
    }
    std::string name(read_one<uint32_t>(), ' ');
    read_all(&name[0], name.size());
    arguments.assign(read_one<uint32_t>(), Argument());
    for (Argument &it : arguments) read_argument(it);
    auto kernel = KERNELS.find(name);
    if (kernel == KERNELS.end()) fail("no kernel " + name);
    if (kernel->second.count != arguments.size()) fail(name + " takes another number of arguments");
    body = kernel->second.call;
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++) {
      for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++) {
        for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) run_block(order);
      }
    }
    for (Argument &it : arguments) {
      if (it.kind != BUFFER) continue;
      it.expect_guards();
      if (it.length != 0 && fwrite(it.data(), it.length, 1, stdout) != 1) fail("nobody reads the result");
    }
    fflush(stdout);
  }
}
