// z = R x, or R^T x, for one row and one instruction set; also between the stored and the arithmetic type, for a result
// that something else is done to before it is rounded.
#pragma once

#include "cpu/isa/pairs.h"

namespace road {
namespace ROAD_ISA {

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

// From is T and To its arithmetic type, or the other way round.
template <class From, class To, class P, Has H>
void rotate_converting_row(const void* x_, void* z_, const Coefs& coefs, int64_t dim, int64_t half) {
  using A = Acc<To>;
  const From* x = static_cast<const From*>(x_);
  To* z = static_cast<To*>(z_);
  P::template for_row<A>(dim, half, [&](auto lanes, int64_t at, int64_t pair) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    Lanes<A, L> i, j;
    load_rotated<From, P, H, L>(x, coefs, at, pair, half, i, j);
    P::template store<To, L>(z, at, half, i, j);
  });
}

template <class T>
cpu::RotateRow choose_rotate(bool shared, bool adjacent, bool transposed) {
  return with_flags(shared, adjacent, transposed, [](auto s, auto p, auto tr) -> cpu::RotateRow {
    return &rotate_row<T, decltype(p), decltype(s)::value, decltype(tr)::value>;
  });
}

template <class From, class To>
cpu::RotateRow choose_rotate_converting(Has has, bool adjacent) {
  return with_kinds(has, adjacent, [](auto h, auto p) -> cpu::RotateRow {
    return &rotate_converting_row<From, To, decltype(p), decltype(h)::value>;
  });
}

}  // namespace ROAD_ISA
}  // namespace road
