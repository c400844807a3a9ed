// RoPE on a rotated head, for one instruction set, where the halves of the head that RoPE pairs have the pairs of the
// rotation each: all four features of two pairs are in registers between the two.
#pragma once

#include "cpu/isa/pairs.h"

namespace road {
namespace ROAD_ISA {

template <class T, class P, Has H>
void rope_head(const void* x_, void* z_, const Coefs& coefs, int64_t dim, int64_t half, const void* cos_sin) {
  using A = Acc<T>;
  const T* x = static_cast<const T*>(x_);
  T* z = static_cast<T*>(z_);
  const int64_t apart = dim / 2;
  const A *cos = static_cast<const A*>(cos_sin), *sin = cos + apart;
  P::template for_row<A>(apart, half, [&](auto lanes, int64_t at, int64_t pair) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    Lanes<A, L> i, j, i_apart, j_apart, cos_i, cos_j, sin_i, sin_j;
    load_rotated<T, P, H, L>(x, coefs, at, pair, half, i, j);
    load_rotated<T, P, H, L>(x, coefs, apart + at, apart / 2 + pair, half, i_apart, j_apart);
    P::template load<A, L>(cos, at, half, cos_i, cos_j);
    P::template load<A, L>(sin, at, half, sin_i, sin_j);
    rotate_pair(i, i_apart, cos_i, cos_i, sin_i, sin_i, i, i_apart);
    rotate_pair(j, j_apart, cos_j, cos_j, sin_j, sin_j, j, j_apart);
    P::template store<T, L>(z, at, half, i, j);
    P::template store<T, L>(z, apart + at, half, i_apart, j_apart);
  });
}

template <class T>
cpu::RopeHead choose_rope_head(Has has, bool adjacent) {
  return with_kinds(has, adjacent,
                    [](auto h, auto p) -> cpu::RopeHead { return &rope_head<T, decltype(p), decltype(h)::value>; });
}

}  // namespace ROAD_ISA
}  // namespace road
