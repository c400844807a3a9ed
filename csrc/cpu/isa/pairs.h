// Pairs of features L at a time, for one instruction set: their elements in a row and their coefficients.
#pragma once

#include "cpu/isa/adjacent.h"
#include "cpu/kernels.h"

namespace road {
namespace ROAD_ISA {

using cpu::Coefs;
using cpu::Has;

// How to walk the pairs of a row (core/pairing.h) L at a time.  Halves: the features of L pairs are two runs, half a
// group apart.  Adjacent: half = 1, and a row is one run of interleaved pairs.  `at` is the pair's first feature.
struct Halves {
  template <class A, class Body>
  static ROAD_INLINE void for_row(int64_t dim, int64_t half, const Body& body) {
    for (int64_t base = 0; base < dim; base += 2 * half)
      for_pairs<A>(half,
                   [&](auto lanes, int64_t k) __attribute__((always_inline)) { body(lanes, base + k, base / 2 + k); });
  }
  template <class T, int L, class V>
  static ROAD_INLINE void load(const T* row, int64_t at, int64_t half, V& i, V& j) {
    i = ROAD_ISA::load<T, L>(row + at);
    j = ROAD_ISA::load<T, L>(row + at + half);
  }
  template <class T, int L, class V>
  static ROAD_INLINE void store(T* row, int64_t at, int64_t half, const V& i, const V& j) {
    ROAD_ISA::store<T, L>(row + at, i);
    ROAD_ISA::store<T, L>(row + at + half, j);
  }
};

struct Adjacent {
  template <class A, class Body>
  static ROAD_INLINE void for_row(int64_t dim, int64_t, const Body& body) {
    for_pairs<A>(dim / 2, [&](auto lanes, int64_t k) __attribute__((always_inline)) { body(lanes, 2 * k, k); });
  }
  template <class T, int L, class V>
  static ROAD_INLINE void load(const T* row, int64_t at, int64_t, V& i, V& j) {
    load_adjacent<T, L>(row + at, i, j);
  }
  template <class T, int L, class V>
  static ROAD_INLINE void store(T* row, int64_t at, int64_t, const V& i, const V& j) {
    store_adjacent<T, L>(row + at, i, j);
  }
};

// The coefficients of L pairs.
template <class A, int L>
struct PairCoefs {
  Lanes<A, L> r1i, r1j, r2i, r2j;
};

template <class P, bool Shared, class A, int L>
ROAD_INLINE void load_coefs(const Coefs& c, int64_t at, int64_t pair, int64_t half, PairCoefs<A, L>& out) {
  const A* r1 = static_cast<const A*>(c.r1);
  const A* r2 = static_cast<const A*>(c.r2);
  if constexpr (Shared) {
    out.r1i = out.r1j = load<A, L>(r1 + pair);
    out.r2i = out.r2j = load<A, L>(r2 + pair);
  } else {
    P::template load<A, L>(r1, at, half, out.r1i, out.r1j);
    P::template load<A, L>(r2, at, half, out.r2i, out.r2j);
  }
}

// L pairs of h = R x, or of x itself where the row has no adapter.
template <class T, class P, Has H, int L, class V>
ROAD_INLINE void load_rotated(const T* x, const Coefs& coefs, int64_t at, int64_t pair, int64_t half, V& hi, V& hj) {
  P::template load<T, L>(x, at, half, hi, hj);
  if constexpr (H != Has::kNone) {
    PairCoefs<Acc<T>, L> c;
    load_coefs<P, H == Has::kShared>(coefs, at, pair, half, c);
    rotate_pair(hi, hj, c.r1i, c.r1j, c.r2i, c.r2j, hi, hj);
  }
}

// Adds L pairs of gz h^T to the sums of a row of `pairs` pairs.
template <bool Shared, class A, int L, class V>
ROAD_INLINE void add_moments(A* moments, int64_t pair, int64_t pairs, const V& gi, const V& gj, const V& hi,
                             const V& hj) {
  A* m = moments + pair;
  if constexpr (Shared) {
    SharedMoments<V> sum{load<A, L>(m), load<A, L>(m + pairs)};
    sum.add(gi, gj, hi, hj);
    store<A, L>(m, sum.dot);
    store<A, L>(m + pairs, sum.cross);
  } else {
    PairMoments<V> sum{load<A, L>(m), load<A, L>(m + pairs), load<A, L>(m + 2 * pairs), load<A, L>(m + 3 * pairs)};
    sum.add(gi, gj, hi, hj);
    store<A, L>(m, sum.ii);
    store<A, L>(m + pairs, sum.ij);
    store<A, L>(m + 2 * pairs, sum.ji);
    store<A, L>(m + 3 * pairs, sum.jj);
  }
}

// From L pairs of the gradient of h = R x: those of gx, if it is wanted, and their share of the sums.
template <class T, class P, Has H, int L, class V>
ROAD_INLINE void finish_gradients(const V& gi, const V& gj, const T* x, T* gx, const Coefs& coefs, int64_t at,
                                  int64_t pair, int64_t half, int64_t pairs, Acc<T>* moments) {
  V i = gi, j = gj;
  if constexpr (H != Has::kNone) {
    P::template load<T, L>(x, at, half, i, j);
    add_moments<H == Has::kShared, Acc<T>, L>(moments, pair, pairs, gi, gj, i, j);
    if (!gx) return;
    PairCoefs<Acc<T>, L> c;
    load_coefs<P, H == Has::kShared>(coefs, at, pair, half, c);
    rotate_pair_transposed(gi, gj, c.r1i, c.r1j, c.r2i, c.r2j, i, j);
  }
  if (gx) P::template store<T, L>(gx, at, half, i, j);
}

// use(shared, pairing, flag), each as a type.
template <class Use>
auto with_flags(bool shared, bool adjacent, bool flag, const Use& use) {
  using yes = std::true_type;
  using no = std::false_type;
  const auto with_flag = [&](auto s, auto p) { return flag ? use(s, p, yes{}) : use(s, p, no{}); };
  const auto with_pairing = [&](auto s) { return adjacent ? with_flag(s, Adjacent{}) : with_flag(s, Halves{}); };
  return shared ? with_pairing(yes{}) : with_pairing(no{});
}

// use(has, pairing), each as a type.
template <class Use>
auto with_kinds(Has has, bool adjacent, const Use& use) {
  const auto with_pairing = [&](auto h) { return adjacent ? use(h, Adjacent{}) : use(h, Halves{}); };
  switch (has) {
    case Has::kNone: return with_pairing(std::integral_constant<Has, Has::kNone>{});
    case Has::kShared: return with_pairing(std::integral_constant<Has, Has::kShared>{});
    default: return with_pairing(std::integral_constant<Has, Has::kFull>{});
  }
}

}  // namespace ROAD_ISA
}  // namespace road
