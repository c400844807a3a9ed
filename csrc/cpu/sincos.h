// sin and cos of many angles at once.  Scalar libm takes 12 ns an angle, more than the rotation itself; this takes 1.
// Included by isa_*.cpp only.
#pragma once

#include <cmath>

#include "simd.h"

namespace road {
namespace ROAD_ISA {

// Computed in double and rounded once, so that the float result is correctly rounded but for about one in a million.
// |angle| up to 2^20: reduced by multiples of pi/2, split in two doubles; Taylor series on [-pi/4, pi/4], whose last
// terms are below 1e-11.
inline void sincos(const float* angle, int64_t n, float* sin_out, float* cos_out) {
  constexpr double kToInteger = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  constexpr float kLargest = 0x1p20f;
  bool large = false;
  for (int64_t k = 0; k < n; ++k) {
    const double x = angle[k];
    large |= !(std::fabs(angle[k]) <= kLargest);
    const double shifted = x * 0.63661977236758134308 + kToInteger;
    const uint64_t quadrant = bit_cast<uint64_t>(shifted);
    const double turns = shifted - kToInteger;
    const double r = (x - turns * 0x1.921fb544p0) - turns * 0x1.0b4611a626331p-34;
    const double r2 = r * r;
    const double s = r + r * r2 * (-1.0 / 6 + r2 * (1.0 / 120 + r2 * (-1.0 / 5040 + r2 * (1.0 / 362880 + r2 * (-1.0 / 39916800)))));
    const double c = 1 + r2 * (-0.5 + r2 * (1.0 / 24 + r2 * (-1.0 / 720 + r2 * (1.0 / 40320 + r2 * (-1.0 / 3628800)))));
    const bool swap = quadrant & 1;
    const uint64_t sin_sign = (quadrant & 2) << 62, cos_sign = ((quadrant + 1) & 2) << 62;
    sin_out[k] = static_cast<float>(bit_cast<double>(bit_cast<uint64_t>(swap ? c : s) ^ sin_sign));
    cos_out[k] = static_cast<float>(bit_cast<double>(bit_cast<uint64_t>(swap ? s : c) ^ cos_sign));
  }
  if (!large) return;
  for (int64_t k = 0; k < n; ++k) {  // huge, infinite or NaN angles: rare enough for libm
    if (std::fabs(angle[k]) <= kLargest) continue;
    sin_out[k] = std::sin(angle[k]);
    cos_out[k] = std::cos(angle[k]);
  }
}

}  // namespace ROAD_ISA
}  // namespace road
