// When a block counts as singular, so that its input cannot be recovered from its output.
#pragma once

#include <cmath>

#include "core/problem.h"

namespace road {

// Machine epsilon of the dtype that the output is stored in.
ROAD_INLINE double epsilon_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat16: return 0x1p-10;
    case DType::kBFloat16: return 0x1p-7;
    case DType::kFloat32: return 0x1p-23;
    default: return 0x1p-52;
  }
}

ROAD_INLINE double determinant(double r1i, double r1j, double r2i, double r2j) { return r1i * r1j + r2i * r2j; }

// Rows of the block that are parallel to within the rounding error of the stored output: the inverse would be noise.
ROAD_INLINE bool is_singular(double r1i, double r1j, double r2i, double r2j, double epsilon) {
  using std::fabs;
  using std::hypot;
  return fabs(determinant(r1i, r1j, r2i, r2j)) <= epsilon * hypot(r1i, r2i) * hypot(r1j, r2j);
}

}  // namespace road
