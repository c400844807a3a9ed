// Reading rotated pairs, for kernels that go on with them: what happens to the pairs is the kernel's own.
#pragma once

#include "cuda/place.cuh"
#include "cuda/plan.h"

namespace road::cuda {

// Where the tables of the fused ops come from; forms are kTable and kTableHalf.
//
// Tables of one dtype other than float64, aligned to the loads of a thread.  The dtype is a branch at run time: all
// tables of a thread are loaded behind one, so that they are in flight together.
struct AlignedTables {
  // c[n]: of the pairs from `pair` + n * apart / 2, whose first feature is `at` + n * apart.
  template <class P, class A, bool Shared, int N>
  static __device__ __forceinline__ void load(const Params& params, Form, int g, int64_t adapter, int pair, int at,
                                              int apart, PairCoefs<A, P::kPairs, Shared> (&c)[N]) {
    const auto load_typed = [&](auto s) {
      using S = decltype(s);
#pragma unroll
      for (int n = 0; n < N; ++n)
        load_tables<P>(params, g, adapter, pair + n * (apart / 2), at + n * apart, c[n],
                       [](const void* table, int64_t first, auto& to) {
                         load_run<true, true>(static_cast<const S*>(table) + first, to);
                       });
    };
    if (params.p_dtype == DType::kFloat32) load_typed(float{});
    else if (params.p_dtype == DType::kBFloat16) load_typed(BFloat16{});
    else load_typed(Half{});
  }

  template <class P, bool Shared>
  static __device__ __forceinline__ void prefetch_coefs(const Params& params, int g, int64_t adapter, int pair,
                                                        int at) {
    prefetch_tables<P, Shared>(params, static_cast<int>(size_of(params.p_dtype)), g, adapter, pair, at);
  }

  // K: numbers that a thread loads from a table at a time.
  static bool fits(const Params& params, bool batched, int64_t K) {
    return TableSource<4>::fits(params, batched, K) || TableSource<2>::fits(params, batched, K);
  }
};

// Tables of any dtype, for one pair at a time.  Not Shared: full or compact ones.
struct AnyTables {
  template <class P, class A, bool Shared, int N>
  static __device__ __forceinline__ void load(const Params& params, Form form, int g, int64_t adapter, int pair, int at,
                                              int apart, PairCoefs<A, 1, Shared> (&c)[N]) {
    static_assert(P::kPairs == 1, "one pair");
    const bool shared = Shared || is_shared(form);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int first = shared ? pair + n * (apart / 2) : at + n * apart;
      A r1[2], r2[2];
      load_run(params.p, params.p_dtype, adapter * params.p_stride + first, shared ? 0 : g / 2, r1);
      load_run(params.q, params.q_dtype, adapter * params.q_stride + first, shared ? 0 : g / 2, r2);
      c[n].r1i[0] = r1[0], c[n].r1j[0] = r1[1], c[n].r2i[0] = r2[0], c[n].r2j[0] = r2[1];
    }
  }

  template <class P, bool Shared>
  static __device__ __forceinline__ void prefetch_coefs(const Params&, int, int64_t, int, int) {}
};

// The pairs that a thread has of a row, in N places that are `apart` features apart: gate and up, or the features that
// RoPE turns together.
template <class P, class Source, bool Shared, int N>
struct Sides {
  using T = typename P::Element;
  using A = Acc<T>;
  using Coefs = PairCoefs<A, P::kPairs, Shared>;

  typename P::Packs packs[N];
  Coefs c[N];

  // first: the address of the first feature.
  __device__ __forceinline__ void load_rows(const T* first, int half, int apart) {
#pragma unroll
    for (int n = 0; n < N; ++n) P::load(first + n * apart, half, packs[n]);
  }
  __device__ __forceinline__ void load_coefs(const PairRows& a, int id, int pair, int at, int apart) {
    if (id >= 0) Source::template load<P>(a.params, a.form, 2 * a.half, id, pair, at, apart, c);
  }
  // Whether there is something to rotate: not without an adapter (-1), nor with the identity in a mixed batch.  Apart
  // from the loads, which it waits for.
  __device__ __forceinline__ bool rotates(const PairRows& a, int id) const {
    if (id < 0) return false;
    bool rotates = !a.ids.data;
#pragma unroll
    for (int n = 0; n < N; ++n) rotates = rotates || !c[n].is_identity();
    return rotates;
  }
  // The pairs [k, k + P::kUnit) of a place, rotated if `rotates`: a row without an adapter keeps what is not finite.
  __device__ __forceinline__ void get(bool rotates, int n, int k, A (&i)[P::kUnit], A (&j)[P::kUnit]) const {
    P::get(packs[n], k, i, j);
    if (!rotates) return;
#pragma unroll
    for (int u = 0; u < P::kUnit; ++u)
      rotate_pair(i[u], j[u], c[n].r1i[k + u], c[n].r1_j(k + u), c[n].r2i[k + u], c[n].r2_j(k + u), i[u], j[u]);
  }
  // Instead of the pairs that get() gave: from their gradients to those of the row.
  __device__ __forceinline__ void set_gradients(bool rotates, int n, int k, A (&i)[P::kUnit], A (&j)[P::kUnit]) {
    if (rotates) {
#pragma unroll
      for (int u = 0; u < P::kUnit; ++u)
        rotate_pair_transposed<A>(i[u], j[u], c[n].r1i[k + u], c[n].r1_j(k + u), c[n].r2i[k + u], c[n].r2_j(k + u),
                                  i[u], j[u]);
    }
    P::set(packs[n], k, i, j);
  }
  __device__ __forceinline__ void store(T* first, int half, int apart) const {
#pragma unroll
    for (int n = 0; n < N; ++n) P::store(first + n * apart, half, packs[n]);
  }
};

// use(pairing, source, shared): the widest loads that tables and rows allow.  vectorizes(bytes): whether rows can be
// moved so many bytes at a time.  few: of 16-bit rows 8 bytes instead of 16; so too where the rows of a pair have
// coefficients of their own, for which 16 bytes would take too many registers.  AsStored: 8 bytes of all rows, and one
// pair at a time has `shared` as the form says.
template <class T, bool AsStored = false, class Vectorizes, class Use>
void with_pairing(const Problem& problem, bool few, const Vectorizes& vectorizes, const Use& use) {
  const bool shared = is_shared(problem.form);
  if constexpr (sizeof(T) < 8) {
    constexpr int N = 16 / sizeof(T), M = sizeof(T) == 2 || AsStored ? N / 2 : N;
    const auto fits = [&](int64_t run) { return AlignedTables::fits(problem.params, problem.ids.data, run); };
    if (problem.group_size == 2 && vectorizes(16) && fits(shared ? N / 2 : N)) {
      Adjacent<T, N, true> packs;
      return shared ? use(packs, AlignedTables{}, std::true_type{}) : use(packs, AlignedTables{}, std::false_type{});
    }
    if constexpr (!AsStored)
      if (problem.group_size > 2 && shared && !few && vectorizes(16) && fits(N))
        return use(Halves<T, N, true>{}, AlignedTables{}, std::true_type{});
    if (problem.group_size > 2 && vectorizes(M * sizeof(T)) && fits(M)) {
      Halves<T, M, true> packs;
      return shared ? use(packs, AlignedTables{}, std::true_type{}) : use(packs, AlignedTables{}, std::false_type{});
    }
  }
  Halves<T, 1, false> packs;
  if constexpr (AsStored)
    if (shared) return use(packs, AnyTables{}, std::true_type{});
  use(packs, AnyTables{}, std::false_type{});
}

}  // namespace road::cuda
