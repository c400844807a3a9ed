// The pairs of a thread: their elements in a row, and their coefficients in registers.
#pragma once

#include "core/pairing.h"
#include "cuda/sincos.cuh"
#include "cuda/vector.cuh"

namespace road::cuda {

// The pairs [pair, pair + kPairs) of a row.  `at` is the element of the first pair's first feature.
// Column indices are 32 bit (a row is narrower than 2^31); rows and offsets are 64 bit.

// Feature k pairs with k + half: two packs of N elements hold N pairs.
template <class T, int N, bool Aligned>
struct Halves {
  static constexpr int kPairs = N, kStep = 1;
  static constexpr bool kAligned = Aligned;
  using Packs = Pack<T, N>[2];
  static __device__ __forceinline__ int first_element(int pair, int half) { return features_of(pair, half).i; }
  static __device__ __forceinline__ void load(const T* first, int half, Packs& packs) {
    packs[0] = load_pack<T, N, Aligned>(first);
    packs[1] = load_pack<T, N, Aligned>(first + half);
  }
  static __device__ __forceinline__ void store(T* first, int half, const Packs& packs) {
    store_pack<T, N, Aligned>(first, packs[0]);
    store_pack<T, N, Aligned>(first + half, packs[1]);
  }
  // The pairs [k, k + kUnit), as numbers.
  static constexpr int kUnit = N == 1 ? 1 : 2;
  template <class A>
  static __device__ __forceinline__ void get(const Packs& packs, int k, A (&i)[kUnit], A (&j)[kUnit]) {
    widen(packs[0].v + k, i);
    widen(packs[1].v + k, j);
  }
  template <class A>
  static __device__ __forceinline__ void set(Packs& packs, int k, const A (&i)[kUnit], const A (&j)[kUnit]) {
    narrow(i, packs[0].v + k);
    narrow(j, packs[1].v + k);
  }
};

// half = 1: one pack of N elements holds N / 2 pairs side by side.
template <class T, int N, bool Aligned>
struct Adjacent {
  static constexpr int kPairs = N / 2, kStep = 2;
  static constexpr bool kAligned = Aligned;
  using Packs = Pack<T, N>[1];
  static __device__ __forceinline__ int first_element(int pair, int) { return 2 * pair; }
  static __device__ __forceinline__ void load(const T* first, int, Packs& packs) {
    packs[0] = load_pack<T, N, Aligned>(first);
  }
  static __device__ __forceinline__ void store(T* first, int, const Packs& packs) {
    store_pack<T, N, Aligned>(first, packs[0]);
  }
  static constexpr int kUnit = 1;
  template <class A>
  static __device__ __forceinline__ void get(const Packs& packs, int k, A (&i)[1], A (&j)[1]) {
    A both[2];
    widen(packs[0].v + 2 * k, both);
    i[0] = both[0];
    j[0] = both[1];
  }
  template <class A>
  static __device__ __forceinline__ void set(Packs& packs, int k, const A (&i)[1], const A (&j)[1]) {
    const A both[2] = {i[0], j[0]};
    narrow(both, packs[0].v + 2 * k);
  }
};

// The coefficients of K pairs.  Shared: both rows of a pair have the same ones, kept once.
template <class A, int K, bool Shared>
struct PairCoefs {
  A r1i[K], r2i[K], r1j[Shared ? 1 : K], r2j[Shared ? 1 : K];

  __device__ __forceinline__ A r1_j(int k) const { return Shared ? r1i[k] : r1j[Shared ? 0 : k]; }
  __device__ __forceinline__ A r2_j(int k) const { return Shared ? r2i[k] : r2j[Shared ? 0 : k]; }
};

// K numbers of any dtype, `step` apart.  One branch on the dtype, so that all loads are in flight together.
template <class S, class A, int K>
__device__ __forceinline__ void load_run(const void* base, int64_t first, int step, A (&out)[K]) {
  const S* p = static_cast<const S*>(base) + first;
  if constexpr (K % 4 == 0 && sizeof(S) == 4) {
    if (step == 1 && reinterpret_cast<uintptr_t>(p) % 16 == 0) {
#pragma unroll
      for (int k = 0; k < K; k += 4) {
        const Pack<S, 4> pack = load_pack<S, 4, true>(p + k);
#pragma unroll
        for (int n = 0; n < 4; ++n) out[k + n] = pack.v[n];
      }
      return;
    }
  }
#pragma unroll
  for (int k = 0; k < K; ++k) out[k] = static_cast<A>(widen(p[k * step]));
}

template <class A, int K>
__device__ __forceinline__ void load_run(const void* base, DType dtype, int64_t first, int step, A (&out)[K]) {
  with_dtype(dtype, [&](auto t) { load_run<decltype(t)>(base, first, step, out); });
}

// r1 and r2 of K features, `step` apart from `feature`; for shared forms a feature is a pair.
template <class A, int K>
__device__ __forceinline__ void load_coefs(const Problem& problem, int64_t adapter, int feature, int step, A (&r1)[K],
                                           A (&r2)[K]) {
  const Params& params = problem.params;
  const int64_t p = adapter * params.p_stride, q = adapter * params.q_stride;
  if (!has_angles(problem.form)) {
    load_run(params.p, params.p_dtype, p + feature, step, r1);
    load_run(params.q, params.q_dtype, q + feature, step, r2);
    return;
  }
  const bool slots = problem.form == Form::kRoad4;
  const int g = static_cast<int>(problem.group_size);
  const int64_t first = slots ? road4_slot0(feature, g) : feature;
  // With g = 2 the first features of successive pairs are 2 apart, and in road_4's packing 4.
  const int apart = slots && step == 2 ? 4 : step;
#pragma unroll 1  // sin and cos are long
  for (int slot = 0; slot <= (slots ? 1 : 0); ++slot) {
    A theta[K], alpha[K];
    load_run(params.p, params.p_dtype, p + first + slot * g, apart, theta);
    load_run(params.q, params.q_dtype, q + first + slot * g, apart, alpha);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      A sin, cos;
      sin_cos(theta[k], sin, cos);
      if (slot == 0) r1[k] = alpha[k] * cos;
      if (slot == 1 || !slots) r2[k] = alpha[k] * sin;
    }
  }
}

// The coefficients of a thread's pairs, for R or for R^T.
template <class A, class P, bool Shared>
__device__ __forceinline__ void load_coefs(const Problem& problem, int64_t adapter, int pair, int half, bool transposed,
                                           PairCoefs<A, P::kPairs, Shared>& c) {
  if constexpr (Shared) {
    load_coefs(problem, adapter, pair, 1, c.r1i, c.r2i);
  } else {
    const int at = P::first_element(pair, half), step = P::kStep;
    load_coefs(problem, adapter, at, step, c.r1i, c.r2i);
    load_coefs(problem, adapter, at + half, step, c.r1j, c.r2j);
  }
  if (!transposed) return;
#pragma unroll
  for (int k = 0; k < P::kPairs; ++k) {
    const A r2i = c.r2i[k];
    c.r2i[k] = -c.r2_j(k);
    if constexpr (!Shared) c.r2j[k] = -r2i;
  }
}

// The id of a row, checked: an invalid one fails an assertion before anything is read with it.  It fits 32 bits,
// because the launchers refuse banks of more than kMostAdapters.
__device__ __forceinline__ int checked_id(int64_t id, int64_t adapters) {
  assert(id >= -1 && id < adapters && "road_kernels: adapter_ids holds an id outside -1 .. A-1");
  return static_cast<int>(id);
}

// stage(k) for `count` rows of a block, by all of its threads: writes the rows' ids and addresses to shared memory, so
// that the 64-bit divisions and loads behind them are done once per block and not by every thread in its loop.
template <class Stage>
__device__ __forceinline__ void stage_rows(int count, const Stage& stage) {
  __syncthreads();  // the rows staged before are not read any more
#pragma unroll 1    // several divisions at once would need the registers that hold the sums
  for (int k = threadIdx.y * blockDim.x + threadIdx.x; k < count; k += blockDim.x * blockDim.y) stage(k);
  __syncthreads();
}
constexpr int kStagedRows = 256;

}  // namespace road::cuda
