// RMSNorm of a row, once for every backend: y = weight * s / sqrt(mean(s^2) + eps).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/problem.h"

namespace road {

struct RmsNorm {
  const void* weight = nullptr;  // [D], contiguous
  DType weight_dtype = DType::kFloat32;
  double eps = 0;
};

// A: float or double, the arithmetic type.  A GPU's float32 is within 2 ulp each, with no code for subnormals: all
// threads of a row wait for these.
template <class A>
ROAD_INLINE A mean_of(A sum, int64_t dim) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == 4) return __fdividef(sum, static_cast<A>(dim));
#endif
  return sum / static_cast<A>(dim);
}
template <class A>
ROAD_INLINE A inverse_root(A v) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == 4) return rsqrtf(v);
#endif
  return A(1) / std::sqrt(v);
}

template <class A>
ROAD_INLINE A inverse_rms(A sum_of_squares, int64_t dim, double eps) {
  return inverse_root(mean_of(sum_of_squares, dim) + static_cast<A>(eps));
}

template <class V>
ROAD_INLINE V normalized(const V& s, const V& scale, const V& weight) {
  return weight * (s * scale);
}

// The gradient of s from that of y, which times weight is gn, and its own gs.  `through`: what reaches s through the
// scale, of the sum over the row of gn s.
template <class A>
ROAD_INLINE A through_scale(A sum_of_products, int64_t dim, A scale) {
  return mean_of(sum_of_products, dim) * scale * scale * scale;
}
template <class V>
ROAD_INLINE V normalized_gradient(const V& gs, const V& gn, const V& s, const V& scale, const V& through) {
  return gs + gn * scale - s * through;
}

}  // namespace road
