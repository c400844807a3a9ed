// sin and cos of a float angle, within a few ulp.  CUDA's sincosf keeps an array in local memory for angles above 1e5,
// which gives every kernel that calls it a stack frame; this does not.
#pragma once

#include "cuda/vector.cuh"

namespace road::cuda {

// 2/pi in words of 32 bits after the point, behind one word of zeros before it.
__constant__ const uint32_t kTwoOverPi[8] = {0,          0xa2f9836e, 0x4e441529, 0xfc2757d1,
                                             0xf534ddc0, 0xdb629599, 0x3c439041, 0xfe5163ab};

// Brings a finite |angle| >= 2^15 to [-pi/4, pi/4] in integers (Payne and Hanek); the quadrant comes in the low two
// bits of `quadrant`.  angle = m 2^e with a 24-bit m, so bits of 2/pi of weight 2^(2 - e) and above make whole turns
// only and drop out.  The 96 bits from weight 2^(1 - e) on leave 94 bits behind the point of angle * 2/pi mod 4.
__device__ __forceinline__ float reduce_large(float angle, int& quadrant) {
  const uint32_t bits = bit_cast<uint32_t>(angle);
  const uint32_t m = (bits & 0x7fffff) | 0x800000;
  const int e = static_cast<int>(bits >> 23 & 0xff) - 150;
  const int start = e + 30, word = start / 32, shift = start % 32;
  uint32_t w[3];
#pragma unroll
  for (int k = 0; k < 3; ++k)
    w[k] = static_cast<uint32_t>((uint64_t{kTwoOverPi[word + k]} << 32 | kTwoOverPi[word + k + 1]) << shift >> 32);
  const uint64_t low = uint64_t{m} * w[2], middle = uint64_t{m} * w[1] + (low >> 32);
  const uint32_t high = m * w[0] + static_cast<uint32_t>(middle >> 32);
  const uint64_t turns = uint64_t{high} << 32 | static_cast<uint32_t>(middle);  // 2 bits of quadrant, 62 behind them
  const int64_t fraction = static_cast<int64_t>(turns << 2);                    // from -1/2 to 1/2
  const int nearest = static_cast<int>(turns >> 62) + (fraction < 0);
  const float r = static_cast<float>(fraction) * (1.57079637f * 0x1p-64f);
  quadrant = angle < 0 ? -nearest : nearest;
  return angle < 0 ? -r : r;
}

// Of several angles at once: one branch for all of them, so that their arithmetic interleaves.
template <int K>
__device__ __forceinline__ void sin_cos(const float (&angle)[K], float (&sin)[K], float (&cos)[K]) {
  int quadrant[K];
  float r[K];
  bool large = false;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    // The nearest multiple of pi/2.  Behind 1.5 * 2^23 it is rounded to an integer, which the low bits hold.
    constexpr float kShift = 12582912.0f;
    const float shifted = fmaf(angle[k], 0.636619747f, kShift), n = shifted - kShift;
    quadrant[k] = bit_cast<int>(shifted);
    r[k] = fmaf(n, -0x1.921fb6p0f, angle[k]);  // pi/2 in three floats
    r[k] = fmaf(n, 0x1.777a5cp-25f, r[k]);
    r[k] = fmaf(n, 0x1.ee59dap-50f, r[k]);
    large = large || !(fabsf(angle[k]) < 32768.0f);
  }
  if (large) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (fabsf(angle[k]) < 32768.0f) continue;
      if (fabsf(angle[k]) <= 3.40282347e38f) r[k] = reduce_large(angle[k], quadrant[k]);
      else r[k] = angle[k] - angle[k];  // NaN
    }
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    // Taylor series on [-pi/4, pi/4]; the terms left out are below 3e-9.
    const float t = r[k] * r[k];
    const float s = fmaf(r[k] * t, fmaf(t, fmaf(t, fmaf(t, 1.0f / 362880, -1.0f / 5040), 1.0f / 120), -1.0f / 6), r[k]);
    const float c =
        fmaf(t, fmaf(t, fmaf(t, fmaf(t, fmaf(t, -1.0f / 3628800, 1.0f / 40320), -1.0f / 720), 1.0f / 24), -0.5f), 1.0f);
    const bool odd = quadrant[k] & 1;
    sin[k] = quadrant[k] & 2 ? -(odd ? c : s) : odd ? c : s;
    cos[k] = (quadrant[k] + 1) & 2 ? -(odd ? s : c) : odd ? s : c;
  }
}

template <int K>
__device__ __forceinline__ void sin_cos(const double (&angle)[K], double (&sin)[K], double (&cos)[K]) {
#pragma unroll
  for (int k = 0; k < K; ++k) sincos(angle[k], &sin[k], &cos[k]);
}

template <class A>
__device__ __forceinline__ void sin_cos(A angle, A& sin, A& cos) {
  const A angles[1] = {angle};
  A sines[1], cosines[1];
  sin_cos(angles, sines, cosines);
  sin = sines[0];
  cos = cosines[0];
}

}  // namespace road::cuda
