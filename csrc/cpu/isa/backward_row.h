// gx = R^T gz and the sums of gz h^T, for one row and one instruction set.
#pragma once

#include "cpu/isa/pairs.h"

namespace road {
namespace ROAD_ISA {

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
    add_moments<Shared, A, L>(moments, pair, pairs, gi, gj, hi, hj);
    if constexpr (NeedGx) {
      PairCoefs<A, L> c;
      load_coefs<P, Shared>(coefs, at, pair, half, c);
      rotate_pair_transposed(gi, gj, c.r1i, c.r1j, c.r2i, c.r2j, hi, hj);
      P::template store<T, L>(gx, at, half, hi, hj);
    }
  });
}

template <class T>
cpu::BackwardRow choose_backward(bool shared, bool adjacent, bool need_gx) {
  return with_flags(shared, adjacent, need_gx, [](auto s, auto p, auto gx) -> cpu::BackwardRow {
    return &backward_row<T, decltype(p), decltype(s)::value, decltype(gx)::value>;
  });
}

}  // namespace ROAD_ISA
}  // namespace road
