// Scalar conversions between the 16-bit formats and float, rounding to nearest even, for any host compiler.
// All are forced inline: otherwise the linker may keep the copy that was compiled for AVX-512 for every caller.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/problem.h"

namespace road {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class To, class From>
ROAD_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

ROAD_INLINE float to_float(BFloat16 v) { return bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }

ROAD_INLINE BFloat16 to_bfloat16(float v) {
  const uint32_t u = bit_cast<uint32_t>(v);
  if (v != v) return {static_cast<uint16_t>((u >> 16) | 0x40)};  // keep a NaN a NaN when its payload is cut off
  return {static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}

ROAD_INLINE float to_float(Half v) {
  const uint32_t magnitude = static_cast<uint32_t>(v.bits & 0x7fff) << 13;
  // Multiplying by 2^112 rebiases the exponent and normalises subnormals in one step; infinities and NaN by hand.
  uint32_t u = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  if (magnitude >= 0x0f800000) u = magnitude | 0x7f800000;
  return bit_cast<float>(u | static_cast<uint32_t>(v.bits & 0x8000) << 16);
}

ROAD_INLINE Half to_half(float v) {
  const uint32_t u = bit_cast<uint32_t>(v);
  const uint32_t magnitude = u & 0x7fffffff;
  uint32_t h;
  if (magnitude >= 0x47800000) {  // 65536 and above, infinity, NaN
    h = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  } else if (magnitude < 0x38800000) {  // below 2^-14: the addition of 0.5 rounds the subnormal into the low bits
    h = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  } else {
    h = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  }
  return {static_cast<uint16_t>(h | (u >> 16 & 0x8000))};
}

}  // namespace road
