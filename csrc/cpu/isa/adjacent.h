// L adjacent pairs at a time: element 2k of a row is in lane k of `a`, element 2k + 1 in lane k of `b`.
#pragma once

#include "cpu/isa/lanes.h"

namespace road {
namespace ROAD_ISA {

// Lanes I... of a, or of b from the number of lanes of a on.  GCC has __builtin_shufflevector only since 12.
template <int... I, class V>
ROAD_INLINE V shuffle(const V& a, const V& b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  constexpr int bytes = sizeof(a[0]);
  using Index = std::conditional_t<bytes == 8, int64_t, std::conditional_t<bytes == 4, int32_t, int16_t>>;
  return __builtin_shuffle(a, b, Lanes<Index, sizeof...(I)>{I...});
#endif
}

template <class V, int... I>
ROAD_INLINE V every_second(const V& lo, const V& hi, int first, std::integer_sequence<int, I...>) {
  if constexpr (sizeof...(I) == 8 && sizeof(V) == 32) {  // in two instructions, where GCC makes three to five
    using Pairs = Lanes<int64_t, 4>;
    const Pairs pairs =
        (Pairs)(first == 0 ? shuffle<0, 2, 8, 10, 4, 6, 12, 14>(lo, hi) : shuffle<1, 3, 9, 11, 5, 7, 13, 15>(lo, hi));
    return (V)shuffle<0, 2, 1, 3>(pairs, pairs);
  }
  return first == 0 ? shuffle<(2 * I)...>(lo, hi) : shuffle<(2 * I + 1)...>(lo, hi);
}
template <class V, int... I>
ROAD_INLINE void interleave(const V& a, const V& b, V& lo, V& hi, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  lo = shuffle<(I / 2 + (I % 2) * n)...>(a, b);
  hi = shuffle<(n / 2 + I / 2 + (I % 2) * n)...>(a, b);
}

template <class V, int... I>
ROAD_INLINE V interleave_halves(const V& v, std::integer_sequence<int, I...>) {
  return shuffle<(I / 2 + (I % 2) * int(sizeof...(I) / 2))...>(v, v);
}

template <class T, int L>
ROAD_INLINE void load_adjacent(const T* p, Lanes<Acc<T>, L>& a, Lanes<Acc<T>, L>& b) {
  if constexpr (L == 1) {
    a = load<T, 1>(p);
    b = load<T, 1>(p + 1);
  } else if constexpr (std::is_same_v<T, BFloat16>) {  // one 32-bit word is a pair, already in place
    const auto word = load_raw<uint32_t, L>(p);
    a = reinterpret<Lanes<float, L>>(Lanes<uint32_t, L>(word << 16));
    b = reinterpret<Lanes<float, L>>(Lanes<uint32_t, L>(word & 0xffff0000));
  } else if constexpr (std::is_same_v<T, Half>) {
    const auto word = load_raw<uint32_t, L>(p);
    a = half_bits_to_float<L>(narrow_bits<L>(Lanes<uint32_t, L>(word & 0xffff)));
    b = half_bits_to_float<L>(narrow_bits<L>(Lanes<uint32_t, L>(word >> 16)));
  } else {
    constexpr auto lanes = std::make_integer_sequence<int, L>{};
    const auto lo = load<T, L>(p), hi = load<T, L>(p + L);
    a = every_second(lo, hi, 0, lanes);
    b = every_second(lo, hi, 1, lanes);
  }
}

template <class T, int L>
ROAD_INLINE void store_adjacent(T* p, const Lanes<Acc<T>, L>& a, const Lanes<Acc<T>, L>& b) {
  if constexpr (L == 1) {
    store<T, 1>(p, a);
    store<T, 1>(p + 1, b);
  } else if constexpr (sizeof(T) == 2) {
#if defined(ROAD_CONVERTS_BFLOAT16)
    if constexpr (std::is_same_v<T, BFloat16> && L == 16)
      if (__builtin_expect(!any_subnormal(a) && !any_subnormal(b), 1)) {
        const auto halves = (Lanes<uint16_t, 32>)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
        return store_raw<uint16_t, 32>(p, interleave_halves(halves, std::make_integer_sequence<int, 32>{}));
      }
#endif
    Lanes<uint32_t, L> word;
    if constexpr (std::is_same_v<T, BFloat16>) word = round_to_bfloat16_bits<L>(a) | round_to_bfloat16_bits<L>(b) << 16;
    else word = widen_bits<L>(float_to_half_bits<L>(a)) | widen_bits<L>(float_to_half_bits<L>(b)) << 16;
    store_raw<uint32_t, L>(p, word);
  } else {
    Lanes<Acc<T>, L> lo, hi;
    interleave(a, b, lo, hi, std::make_integer_sequence<int, L>{});
    store<T, L>(p, lo);
    store<T, L>(p + L, hi);
  }
}

}  // namespace ROAD_ISA
}  // namespace road
