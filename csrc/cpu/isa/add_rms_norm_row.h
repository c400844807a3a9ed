// s = R x + residual and its RMSNorm, and the gradient of s, for one row and one instruction set.
#pragma once

#include "core/rms_norm.h"
#include "cpu/isa/pairs.h"

namespace road {
namespace ROAD_ISA {

// One sum for each width of vector that for_pairs uses.
template <class A>
struct LaneSums {
  Lanes<A, kWidest<A>> wide{};
  Lanes<A, 4> four{};
  A one{};

  template <int L>
  ROAD_INLINE void add(const Lanes<A, L>& v) {
    if constexpr (L == kWidest<A>) wide += v;
    else if constexpr (L == 4) four += v;
    else one += v;
  }
  A total() const {
    A sum = one;
    for (int k = 0; k < 4; ++k) sum += four[k];
    for (int k = 0; k < kWidest<A>; ++k) sum += wide[k];
    return sum;
  }
};

template <class T, class P, Has H>
void add_rms_norm_row(const void* x_, const void* residual_, void* y_, void* s_, const Coefs& coefs, int64_t dim,
                      int64_t half, const void* weight_, double eps, void* scratch) {
  using A = Acc<T>;
  const T *x = static_cast<const T*>(x_), *residual = static_cast<const T*>(residual_);
  T *y = static_cast<T*>(y_), *s = static_cast<T*>(s_);
  const A* weight = static_cast<const A*>(weight_);
  constexpr bool kRounds = !std::is_same_v<T, A>;  // otherwise what is stored is what is normalised
  A* unrounded = static_cast<A*>(kRounds ? scratch : s_);
  LaneSums<A> sum_i, sum_j;
  P::template for_row<A>(dim, half, [&](auto lanes, int64_t at, int64_t pair) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    Lanes<A, L> i, j, ri, rj;
    load_rotated<T, P, H, L>(x, coefs, at, pair, half, i, j);
    P::template load<T, L>(residual, at, half, ri, rj);
    i += ri, j += rj;
    sum_i.template add<L>(i * i);
    sum_j.template add<L>(j * j);
    if constexpr (kRounds) P::template store<A, L>(unrounded, at, half, i, j);
    P::template store<T, L>(s, at, half, i, j);
  });
  const A scale = inverse_rms<A>(sum_i.total() + sum_j.total(), dim, eps);
  for_pairs<A>(dim, [&](auto lanes, int64_t k) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    using V = Lanes<A, L>;
    store<T, L>(y + k, normalized<V>(load<A, L>(unrounded + k), V{} + scale, load<A, L>(weight + k)));
  });
}

template <class T>
void add_rms_norm_backward_row(const void* gy_, const void* gs_, const void* s_, void* out_, int64_t dim,
                               const void* weight_, double eps) {
  using A = Acc<T>;
  const T *gy = static_cast<const T*>(gy_), *gs = static_cast<const T*>(gs_), *s = static_cast<const T*>(s_);
  const A* weight = static_cast<const A*>(weight_);
  T* out = static_cast<T*>(out_);
  LaneSums<A> squares, products;
  for_pairs<A>(dim, [&](auto lanes, int64_t k) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    const Lanes<A, L> v = load<T, L>(s + k);
    squares.template add<L>(v * v);
    products.template add<L>(load<T, L>(gy + k) * load<A, L>(weight + k) * v);
  });
  const A scale = inverse_rms<A>(squares.total(), dim, eps), through = through_scale<A>(products.total(), dim, scale);
  for_pairs<A>(dim, [&](auto lanes, int64_t k) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    using V = Lanes<A, L>;
    const V gn = load<T, L>(gy + k) * load<A, L>(weight + k);
    store<T, L>(out + k, normalized_gradient<V>(load<T, L>(gs + k), gn, load<T, L>(s + k), V{} + scale, V{} + through));
  });
}

template <class T>
cpu::AddRmsNormRow choose_add_rms_norm(Has has, bool adjacent) {
  return with_kinds(has, adjacent, [](auto h, auto p) -> cpu::AddRmsNormRow {
    return &add_rms_norm_row<T, decltype(p), decltype(h)::value>;
  });
}

}  // namespace ROAD_ISA
}  // namespace road
