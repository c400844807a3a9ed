// The loops over one row, for one instruction set.  Included by isa_*.cpp only.
#pragma once

#include "kernels.h"
#include "simd.h"
#include "sincos.h"

namespace road {
namespace ROAD_ISA {

using cpu::Coefs;

// Feature k pairs with k + half inside a run of 2 * half features (Adjacent: half = 1, handled as one long run of
// interleaved pairs).  `at` is the element of the pair's first feature.
struct Halves {
  template <class A, class Body>
  static ROAD_INLINE void for_row(int64_t dim, int64_t half, const Body& body) {
    for (int64_t base = 0; base < dim; base += 2 * half)
      for_pairs<A>(half, [&](auto lanes, int64_t k) __attribute__((always_inline)) {
        body(lanes, base + k, base / 2 + k);
      });
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
struct PairCoefs { Lanes<A, L> r1i, r1j, r2i, r2j; };

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

template <class T, class P, bool Shared, bool Transposed>
void rotate_row(const void* x_, void* z_, const Coefs& coefs, int64_t dim, int64_t half) {
  using A = Acc<T>;
  const T* x = static_cast<const T*>(x_);
  T* z = static_cast<T*>(z_);
  P::template for_row<A>(dim, half, [&](auto lanes, int64_t at, int64_t pair) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    Lanes<A, L> i, j, zi, zj;
    PairCoefs<A, L> c;
    load_coefs<P, Shared>(coefs, at, pair, half, c);
    P::template load<T, L>(x, at, half, i, j);
    if constexpr (Transposed) rotate_pair_transposed(i, j, c.r1i, c.r1j, c.r2i, c.r2j, zi, zj);
    else rotate_pair(i, j, c.r1i, c.r1j, c.r2i, c.r2j, zi, zj);
    P::template store<T, L>(z, at, half, zi, zj);
  });
}

template <class T>
void mix_rows(const void* wi_, const void* wj_, void* zi_, void* zj_, int64_t n, const void* c_) {
  using A = Acc<T>;
  const T *wi = static_cast<const T*>(wi_), *wj = static_cast<const T*>(wj_);
  T *zi = static_cast<T*>(zi_), *zj = static_cast<T*>(zj_);
  A c[4];  // copied: for all the compiler knows, a store to z could change them
  std::memcpy(c, c_, sizeof c);
  for_pairs<A>(n, [&](auto lanes, int64_t k) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    using V = Lanes<A, L>;
    const V r1i = V{} + c[0], r1j = V{} + c[1], r2i = V{} + c[2], r2j = V{} + c[3];
    V i, j;
    rotate_pair<V>(load<T, L>(wi + k), load<T, L>(wj + k), r1i, r1j, r2i, r2j, i, j);
    store<T, L>(zi + k, i);
    store<T, L>(zj + k, j);
  });
}

template <class T, class P, bool Shared, bool NeedGx>
void backward_row(const void* gz_, const void* h_, void* gx_, const Coefs& coefs, int64_t dim, int64_t half,
                  void* moments_) {
  using A = Acc<T>;
  const T* gz = static_cast<const T*>(gz_);
  const T* h = static_cast<const T*>(h_);
  T* gx = static_cast<T*>(gx_);
  A* moments = static_cast<A*>(moments_);
  const int64_t pairs = dim / 2;
  P::template for_row<A>(dim, half, [&](auto lanes, int64_t at, int64_t pair) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    using V = Lanes<A, L>;
    V gi, gj, hi, hj;
    P::template load<T, L>(gz, at, half, gi, gj);
    P::template load<T, L>(h, at, half, hi, hj);
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
    if constexpr (NeedGx) {
      PairCoefs<A, L> c;
      load_coefs<P, Shared>(coefs, at, pair, half, c);
      rotate_pair_transposed(gi, gj, c.r1i, c.r1j, c.r2i, c.r2j, hi, hj);
      P::template store<T, L>(gx, at, half, hi, hj);
    }
  });
}

// --- choosing an instance ----------------------------------------------------------------------------------------

template <class Use>
auto with_dtype(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::kFloat16: return use(Half{});
    case DType::kBFloat16: return use(BFloat16{});
    case DType::kFloat32: return use(float{});
    default: return use(double{});
  }
}

template <class Use>
auto with_flags(bool shared, bool adjacent, bool third, const Use& use) {
  using std::bool_constant;
  const auto with_third = [&](auto s, auto p) { return third ? use(s, p, bool_constant<true>{}) : use(s, p, bool_constant<false>{}); };
  const auto with_pairing = [&](auto s) { return adjacent ? with_third(s, Adjacent{}) : with_third(s, Halves{}); };
  return shared ? with_pairing(bool_constant<true>{}) : with_pairing(bool_constant<false>{});
}

inline cpu::RotateRow choose_rotate(DType dtype, bool shared, bool adjacent, bool transposed) {
  return with_dtype(dtype, [&](auto t) {
    return with_flags(shared, adjacent, transposed, [&](auto s, auto p, auto tr) -> cpu::RotateRow {
      return &rotate_row<decltype(t), decltype(p), decltype(s)::value, decltype(tr)::value>;
    });
  });
}

inline cpu::BackwardRow choose_backward(DType dtype, bool shared, bool adjacent, bool need_gx) {
  return with_dtype(dtype, [&](auto t) {
    return with_flags(shared, adjacent, need_gx, [&](auto s, auto p, auto gx) -> cpu::BackwardRow {
      return &backward_row<decltype(t), decltype(p), decltype(s)::value, decltype(gx)::value>;
    });
  });
}

inline cpu::MixRows choose_mix_rows(DType dtype) {
  return with_dtype(dtype, [](auto t) -> cpu::MixRows { return &mix_rows<decltype(t)>; });
}

template <class A>
void widen(const void* src, DType dtype, int64_t n, A* dst) {
  with_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    const T* p = static_cast<const T*>(src);
    for_pairs<Acc<T>>(n, [&](auto lanes, int64_t k) __attribute__((always_inline)) {
      constexpr int L = decltype(lanes)::value;
      const auto v = convert<A, L>(load<T, L>(p + k));
      std::memcpy(dst + k, &v, sizeof v);
    });
  });
}

}  // namespace ROAD_ISA
}  // namespace road
