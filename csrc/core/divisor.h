// Division by a number that is fixed when a kernel is launched, as a multiplication and a shift.
#pragma once

#include <cstdint>

#include "core/rotate.h"

namespace road {

// n / d for n < 2^31 (32 bit) or n < 2^63 (64 bit): m = ceil(2^p / d) with p = 31 (63) + ceil(log2 d), and
// n / d = floor(n m / 2^p).  Granlund & Montgomery, "Division by Invariant Integers using Multiplication".
class Divisor {
 public:
  Divisor() : Divisor(1) {}

  explicit Divisor(int64_t d) {
    const uint64_t divisor = static_cast<uint64_t>(d);
    while (shift_ < 63 && (uint64_t{1} << shift_) < divisor) ++shift_;
    wide_ = reciprocal(divisor, 63 + shift_);
    narrow_ = divisor >> 31 ? 0 : static_cast<uint32_t>(reciprocal(divisor, 31 + shift_));
  }

  ROAD_INLINE uint32_t divide(uint32_t n) const { return high(n << 1, narrow_) >> shift_; }
  ROAD_INLINE uint64_t divide(uint64_t n) const { return high(n << 1, wide_) >> shift_; }

 private:
  // ceil(2^p / d).
  static uint64_t reciprocal(uint64_t d, int p) {
    if (p < 64) return ((uint64_t{1} << p) - 1) / d + 1;
#if defined(__SIZEOF_INT128__)
    return static_cast<uint64_t>((((unsigned __int128){1} << p) - 1) / d + 1);
#else
    uint64_t quotient = 0, rest = 1;  // long division
    for (int bit = 0; bit < p; ++bit) {
      quotient *= 2, rest *= 2;
      if (rest >= d) quotient += 1, rest -= d;
    }
    return quotient + (rest != 0);
#endif
  }

  static ROAD_INLINE uint32_t high(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
    return __umulhi(a, b);
#else
    return static_cast<uint32_t>(uint64_t{a} * b >> 32);
#endif
  }
  static ROAD_INLINE uint64_t high(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
    return __umul64hi(a, b);
#else
    const uint64_t al = a & 0xffffffff, ah = a >> 32, bl = b & 0xffffffff, bh = b >> 32;
    const uint64_t middle = ah * bl + (al * bl >> 32), other = al * bh + (middle & 0xffffffff);
    return ah * bh + (middle >> 32) + (other >> 32);
#endif
  }

  uint64_t wide_ = 0;
  uint32_t narrow_ = 0;
  int shift_ = 0;
};

}  // namespace road
