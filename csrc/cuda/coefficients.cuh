// The coefficients of a thread's pairs in registers, from tables or from angles.
#pragma once

#include "cuda/pairs.cuh"
#include "cuda/sincos.cuh"

namespace road::cuda {

// The coefficients of K pairs.  Shared: both rows of a pair have the same ones, kept once.
template <class A, int K, bool Shared>
struct PairCoefs {
  A r1i[K], r2i[K], r1j[Shared ? 1 : K], r2j[Shared ? 1 : K];

  __device__ __forceinline__ A r1_j(int k) const { return Shared ? r1i[k] : r1j[Shared ? 0 : k]; }
  __device__ __forceinline__ A r2_j(int k) const { return Shared ? r2i[k] : r2j[Shared ? 0 : k]; }

  // As in an empty slot of a bank, whose rows pass bit for bit: 0 times an infinity would make a NaN of its partner.
  // Asked in a mixed batch only: a single adapter has no empty slots, and pays nothing for it.
  // By bits: one instruction joins two of r1, and another their r2.
  __device__ __forceinline__ bool is_identity() const {
    using U = std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>;
    const U one = bit_cast<U>(A(1));
    U differs = 0;
    const auto join = [&](const auto& r1, const auto& r2) {
#pragma unroll
      for (int k = 0; k < K; k += 2) {
        const int next = k + 1 < K ? k + 1 : k;
        differs |= (bit_cast<U>(r1[k]) ^ one) | (bit_cast<U>(r1[next]) ^ one);
        differs |= bit_cast<U>(r2[k]) | bit_cast<U>(r2[next]);
      }
    };
    join(r1i, r2i);
    if constexpr (!Shared) join(r1j, r2j);
    return differs == 0;
  }

  // From those of R to those of R^T.
  __device__ __forceinline__ void transpose() {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const A i = r2i[k];
      r2i[k] = -r2_j(k);
      if constexpr (!Shared) r2j[k] = -i;
    }
  }
};

// K adjacent numbers of type S, in loads of up to 16 bytes if Aligned (to those).  Kept: see load_kept.
template <bool Aligned, bool Kept = false, class A, int K, class S>
__device__ __forceinline__ void load_run(const S* from, A (&to)[K]) {
  constexpr int N = K * sizeof(S) <= 16 ? K : 16 / sizeof(S);
#pragma unroll
  for (int k = 0; k < K; k += N) {
    const Pack<S, N> pack = Kept ? load_kept<S, N>(from + k) : load_pack<S, N, Aligned>(from + k);
#pragma unroll
    for (int n = 0; n < N; ++n) to[k + n] = static_cast<A>(widen(pack.v[n]));
  }
}

// K numbers of any dtype, `step` apart.  One branch on the dtype, so that all loads are in flight together.
template <class A, int K>
__device__ __forceinline__ void load_run(const void* base, DType dtype, int64_t first, int step, A (&to)[K]) {
  with_dtype(dtype, [&](auto t) {
    using S = decltype(t);
    const S* from = static_cast<const S*>(base) + first;
    if (step == 1 && K > 1 && reinterpret_cast<uintptr_t>(from) % 16 == 0) return load_run<true>(from, to);
#pragma unroll
    for (int k = 0; k < K; ++k) to[k] = static_cast<A>(widen(from[k * step]));
  });
}

// r1 and r2 of K features, `step` apart from `feature`; for shared forms a feature is a pair.
template <class A, int K>
__device__ __forceinline__ void load_coefs(const Params& params, Form form, int g, int64_t adapter, int feature,
                                           int step, A (&r1)[K], A (&r2)[K]) {
  const int64_t p = adapter * params.p_stride, q = adapter * params.q_stride;
  if (!has_angles(form)) {
    load_run(params.p, params.p_dtype, p + feature, step, r1);
    load_run(params.q, params.q_dtype, q + feature, step, r2);
    return;
  }
  const bool slots = form == Form::kRoad4;
  const int64_t first = slots ? road4_slot0(feature, g) : feature;
  // With g = 2 the first features of successive pairs are 2 apart, and in road_4's packing 4.
  const int apart = slots && step == 2 ? 4 : step;
#pragma unroll  // loads of both slots are in flight together
  for (int slot = 0; slot < 2; ++slot) {
    if (slot == 1 && !slots) break;
    A theta[K], alpha[K], sin[K], cos[K];
    load_run(params.p, params.p_dtype, p + first + slot * g, apart, theta);
    load_run(params.q, params.q_dtype, q + first + slot * g, apart, alpha);
    sin_cos(theta, sin, cos);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (slot == 0) r1[k] = alpha[k] * cos[k];
      if (slot == 1 || !slots) r2[k] = alpha[k] * sin[k];
    }
  }
}

// Where coefficients come from.  load(): those of P::kPairs pairs of one adapter, from `pair`, whose first feature is
// `at`.  prefetch_coefs(): brings them into the L2 cache.
//
// Any form and dtype.
struct AnySource {
  template <class P, bool Shared>
  static __device__ __forceinline__ void prefetch_coefs(const Params&, int, int64_t, int, int) {}

  template <class P, class A, bool Shared>
  static __device__ __forceinline__ void load(const Params& params, Form form, int g, int64_t adapter, int pair, int at,
                                              PairCoefs<A, P::kPairs, Shared>& c) {
    if constexpr (Shared) {
      load_coefs(params, form, g, adapter, pair, 1, c.r1i, c.r2i);
    } else {
      constexpr int kStep = P::kAdjacent ? 2 : 1;
      load_coefs(params, form, g, adapter, at, kStep, c.r1i, c.r2i);
      load_coefs(params, form, g, adapter, at + g / 2, kStep, c.r1j, c.r2j);
    }
  }
};

// Tables of one adapter, as the layout of a thread's pairs has them.  run(table, first, to): as many adjacent numbers
// as `to` holds.
template <class P, class A, bool Shared, class Run>
__device__ __forceinline__ void load_tables(const Params& params, int g, int64_t adapter, int pair, int at,
                                            PairCoefs<A, P::kPairs, Shared>& c, const Run& run) {
  constexpr int K = P::kPairs;
  const int64_t p = adapter * params.p_stride, q = adapter * params.q_stride;
  if constexpr (Shared) {
    run(params.p, p + pair, c.r1i);
    run(params.q, q + pair, c.r2i);
  } else if constexpr (!P::kAdjacent) {
    run(params.p, p + at, c.r1i);
    run(params.p, p + at + g / 2, c.r1j);
    run(params.q, q + at, c.r2i);
    run(params.q, q + at + g / 2, c.r2j);
  } else {
    A r1[2 * K], r2[2 * K];
    run(params.p, p + at, r1);
    run(params.q, q + at, r2);
#pragma unroll
    for (int k = 0; k < K; ++k)
      c.r1i[k] = r1[2 * k], c.r1j[k] = r1[2 * k + 1], c.r2i[k] = r2[2 * k], c.r2j[k] = r2[2 * k + 1];
  }
}

// Brings them into the L2 cache.
template <class P, bool Shared>
__device__ __forceinline__ void prefetch_tables(const Params& params, int bytes, int g, int64_t adapter, int pair,
                                                int at) {
  const char *p = static_cast<const char*>(params.p) + adapter * params.p_stride * bytes,
             *q = static_cast<const char*>(params.q) + adapter * params.q_stride * bytes;
  const int first = Shared ? pair : at;
  prefetch(p + first * bytes);
  prefetch(q + first * bytes);
  if constexpr (!Shared && !P::kAdjacent) {
    prefetch(p + (at + g / 2) * bytes);
    prefetch(q + (at + g / 2) * bytes);
  }
}

// Tables of float32 (Bytes = 4), or of one 16-bit dtype (2), aligned to the loads of a thread.
template <int Bytes>
struct TableSource {
  template <class P, class A, bool Shared>
  static __device__ __forceinline__ void load(const Params& params, Form, int g, int64_t adapter, int pair, int at,
                                              PairCoefs<A, P::kPairs, Shared>& c) {
    const auto load_typed = [&](auto s) {
      load_tables<P>(params, g, adapter, pair, at, c, [](const void* table, int64_t first, auto& to) {
        load_run<true, true>(static_cast<const decltype(s)*>(table) + first, to);
      });
    };
    // One branch for both tables: behind one each, those of r2 were asked for when those of r1 had arrived.
    if constexpr (Bytes == 4) load_typed(float{});
    else if (params.p_dtype == DType::kBFloat16) load_typed(BFloat16{});
    else load_typed(Half{});
  }

  template <class P, bool Shared>
  static __device__ __forceinline__ void prefetch_coefs(const Params& params, int g, int64_t adapter, int pair,
                                                        int at) {
    prefetch_tables<P, Shared>(params, Bytes, g, adapter, pair, at);
  }

  // Whether tables of this kind can be read so, K numbers at a time.
  static bool fits(const Params& params, bool batched, int64_t K) {
    const int64_t bytes = K * Bytes < 16 ? K * Bytes : 16;
    const auto aligned = [&](const void* data, int64_t stride) {
      return reinterpret_cast<uintptr_t>(data) % bytes == 0 && (!batched || stride * Bytes % bytes == 0);
    };
    return params.p_dtype == params.q_dtype && size_of(params.p_dtype) == Bytes && aligned(params.p, params.p_stride) &&
           aligned(params.q, params.q_stride);
  }
};

// The id of a row, checked: an invalid one fails an assertion before anything is read with it.  It fits 32 bits,
// because the launchers refuse banks of more than kMostAdapters.
__device__ __forceinline__ int checked_id(int64_t id, int64_t adapters) {
  assert(id >= -1 && id < adapters && "road_kernels: adapter_ids holds an id outside -1 .. A-1");
  return static_cast<int>(id);
}

}  // namespace road::cuda
