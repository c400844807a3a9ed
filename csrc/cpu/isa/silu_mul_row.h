// silu(gate) * up for [gate, up] = R x, and its gradients, for one row and one instruction set.  A pair of gate and the
// pair of up as far into the other half of the row are done together.
#pragma once

#include "core/silu_mul.h"
#include "cpu/isa/exp.h"
#include "cpu/isa/pairs.h"

namespace road {
namespace ROAD_ISA {

template <class T, class P, Has H>
void silu_mul_row(const void* x_, void* z_, const Coefs& coefs, int64_t dim, int64_t half) {
  using A = Acc<T>;
  const T* x = static_cast<const T*>(x_);
  T* z = static_cast<T*>(z_);
  const int64_t width = dim / 2;
  P::template for_row<A>(width, half, [&](auto lanes, int64_t at, int64_t pair) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    using V = Lanes<A, L>;
    V gate_i, gate_j, up_i, up_j;
    load_rotated<T, P, H, L>(x, coefs, at, pair, half, gate_i, gate_j);
    load_rotated<T, P, H, L>(x, coefs, width + at, width / 2 + pair, half, up_i, up_j);
    const V zi = silu_mul<V>(gate_i, up_i, sigmoid_of<V>(exp_lanes<L>(V(-gate_i))));
    const V zj = silu_mul<V>(gate_j, up_j, sigmoid_of<V>(exp_lanes<L>(V(-gate_j))));
    P::template store<T, L>(z, at, half, zi, zj);
  });
}

// gz: a row of z's gradient, half as wide as x.
template <class T, class P, Has H>
void silu_mul_backward_row(const void* gz_, const void* x_, void* gx_, const Coefs& coefs, int64_t dim, int64_t half,
                           void* moments_) {
  using A = Acc<T>;
  const T *gz = static_cast<const T*>(gz_), *x = static_cast<const T*>(x_);
  T* gx = static_cast<T*>(gx_);
  A* moments = static_cast<A*>(moments_);
  const int64_t width = dim / 2;
  P::template for_row<A>(width, half, [&](auto lanes, int64_t at, int64_t pair) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    using V = Lanes<A, L>;
    V gi, gj, gate_i, gate_j, up_i, up_j;
    P::template load<T, L>(gz, at, half, gi, gj);
    load_rotated<T, P, H, L>(x, coefs, at, pair, half, gate_i, gate_j);
    load_rotated<T, P, H, L>(x, coefs, width + at, width / 2 + pair, half, up_i, up_j);
    const auto of_i = silu_mul_gradients<V>(gi, gate_i, up_i, sigmoid_of<V>(exp_lanes<L>(V(-gate_i))));
    const auto of_j = silu_mul_gradients<V>(gj, gate_j, up_j, sigmoid_of<V>(exp_lanes<L>(V(-gate_j))));
    finish_gradients<T, P, H, L>(of_i.gate, of_j.gate, x, gx, coefs, at, pair, half, dim / 2, moments);
    finish_gradients<T, P, H, L>(of_i.up, of_j.up, x, gx, coefs, width + at, width / 2 + pair, half, dim / 2, moments);
  });
}

template <class T>
cpu::RotateRow choose_silu_mul(Has has, bool adjacent) {
  return with_kinds(has, adjacent,
                    [](auto h, auto p) -> cpu::RotateRow { return &silu_mul_row<T, decltype(p), decltype(h)::value>; });
}

template <class T>
cpu::BackwardRow choose_silu_mul_backward(Has has, bool adjacent) {
  return with_kinds(has, adjacent, [](auto h, auto p) -> cpu::BackwardRow {
    return &silu_mul_backward_row<T, decltype(p), decltype(h)::value>;
  });
}

}  // namespace ROAD_ISA
}  // namespace road
