// sin and cos of many angles, for one instruction set.  Scalar libm takes 12 ns an angle, more than rotating 8 rows;
// this takes 2 ns.
#pragma once

#include <cmath>

#include "cpu/isa/lanes.h"

namespace road {
namespace ROAD_ISA {

// One vector of angles, |x| up to 2^20, in double: reduced by multiples of pi/2, split in two doubles, then Taylor
// series on [-pi/4, pi/4] whose terms left out are below 2e-10.
template <class V, class U>
ROAD_INLINE void sincos_lanes(const V& x, V& sin, V& cos) {
  constexpr double kToInteger = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  const V shifted = x * 0.63661977236758134308 + kToInteger;
  const V turns = shifted - kToInteger;
  const V r = (x - turns * 0x1.921fb544p0) - turns * 0x1.0b4611a626331p-34;
  const V t = r * r;
  const V s = r + r * t * (t * (t * (t * (t * (-1.0 / 39916800) + 1.0 / 362880) - 1.0 / 5040) + 1.0 / 120) - 1.0 / 6);
  const V c = t * (t * (t * (t * (t * (-1.0 / 3628800) + 1.0 / 40320) - 1.0 / 720) + 1.0 / 24) - 0.5) + 1.0;
  const U quadrant = reinterpret<U>(shifted);
  const U swap = U{} - (quadrant & 1);  // all ones in odd quadrants
  const U exchange = (reinterpret<U>(s) ^ reinterpret<U>(c)) & swap;
  sin = reinterpret<V>(U(reinterpret<U>(s) ^ exchange ^ ((quadrant & 2) << 62)));
  cos = reinterpret<V>(U(reinterpret<U>(c) ^ exchange ^ (((quadrant + 1) & 2) << 62)));
}

// Rounded once from double: correctly rounded but for about one float in ten thousand.
inline void sincos(const float* angle, int64_t n, float* sin_out, float* cos_out) {
  for_pairs<double>(n, [&](auto lanes, int64_t k) __attribute__((always_inline)) {
    constexpr int L = decltype(lanes)::value;
    Lanes<double, L> sin, cos;
    sincos_lanes<Lanes<double, L>, Lanes<uint64_t, L>>(convert<double, L>(load<float, L>(angle + k)), sin, cos);
    store<float, L>(sin_out + k, convert<float, L>(sin));
    store<float, L>(cos_out + k, convert<float, L>(cos));
  });
  int64_t large = 0;  // huge, infinite or NaN angles: rare enough for libm
  for (int64_t k = 0; k < n; ++k) large += !(std::fabs(angle[k]) <= 0x1p20f);
  for (int64_t k = 0; large && k < n; ++k) {
    if (std::fabs(angle[k]) <= 0x1p20f) continue;
    sin_out[k] = std::sin(angle[k]);
    cos_out[k] = std::cos(angle[k]);
  }
}

}  // namespace ROAD_ISA
}  // namespace road
