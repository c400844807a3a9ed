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

// A: float or double, the arithmetic type.  In a GPU's float32 within 4 ulp, with no code for subnormals: every thread
// of a row waits for it.
template <class A>
ROAD_INLINE A inverse_rms(A sum_of_squares, int64_t dim, double eps) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == 4) return rsqrtf(__fdividef(sum_of_squares, static_cast<A>(dim)) + static_cast<A>(eps));
#endif
  return A(1) / std::sqrt(sum_of_squares / static_cast<A>(dim) + static_cast<A>(eps));
}

template <class V>
ROAD_INLINE V normalized(const V& s, const V& scale, const V& weight) {
  return weight * (s * scale);
}

// The gradient of s from that of y, which times weight is gn, and its own gs.  `through`: what reaches s through the
// scale, of the sum over the row of gn s.
template <class A>
ROAD_INLINE A through_scale(A sum_of_products, int64_t dim, A scale) {
  return sum_of_products / static_cast<A>(dim) * scale * scale * scale;
}
template <class V>
ROAD_INLINE V normalized_gradient(const V& gs, const V& gn, const V& s, const V& scale, const V& through) {
  return gs + gn * scale - s * through;
}

}  // namespace road
