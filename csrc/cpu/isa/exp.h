// exp of a vector of numbers, for one instruction set.
#pragma once

#include <cmath>

#include "cpu/isa/lanes.h"

namespace road {
namespace ROAD_ISA {

// x = n ln 2 + r with |r| <= ln 2 / 2, exp(r) by Cephes' polynomial, then two steps of 2^(n/2), so that results beyond
// float32 become infinite or, gradually, 0.  Within 1.5 units; 8192 values take 1.7 us (libm 60 us; AMD EPYC).
template <int L>
ROAD_INLINE Lanes<float, L> exp_lanes(const Lanes<float, L>& x_) {
  using V = Lanes<float, L>;
  using U = Lanes<uint32_t, L>;
  const V low = V{} - 104.0f, high = V{} + 104.0f;
  V x = x_ > high ? high : x_;  // NaN stays NaN
  x = x < low ? low : x;
  constexpr float kToInteger = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const V shifted = x * 1.44269504088896341f + kToInteger;
  const V n = shifted - kToInteger;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const V p = ((((r * 1.9875691500e-4f + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
               1.6666665459e-1f) *
                  r +
              5.0000001201e-1f;
  const V e = p * r * r + r + 1.0f;
  const U exponent = reinterpret<U>(shifted) - 0x4b400000 + 1024;  // positive, so that halving it rounds down
  const U first = exponent >> 1, second = exponent - first;
  return e * reinterpret<V>(U((first - 512 + 127) << 23)) * reinterpret<V>(U((second - 512 + 127) << 23));
}

template <int L>
ROAD_INLINE Lanes<double, L> exp_lanes(const Lanes<double, L>& x) {
  if constexpr (L == 1) {
    return std::exp(x);
  } else {
    Lanes<double, L> e;
    for (int k = 0; k < L; ++k) e[k] = std::exp(x[k]);
    return e;
  }
}

}  // namespace ROAD_ISA
}  // namespace road
