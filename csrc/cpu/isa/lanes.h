// SIMD values by the compiler's vector extensions: L lanes are used like a float, and the same source becomes SSE2,
// AVX2, AVX-512 or NEON.  Everything is in a namespace per instruction set (ROAD_ISA): otherwise the linker would merge
// functions that were compiled for different processors.
//
// Included through body.h only, with ROAD_ISA and ROAD_VECTOR_BYTES defined.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if ROAD_VECTOR_BYTES >= 32  // implies F16C; gcc 12 defines no __F16C__ after a pragma
#include <immintrin.h>
#endif

#include "core/dispatch.h"

namespace road {
namespace ROAD_ISA {

template <class E, int L>
struct LanesOf {
  typedef E type __attribute__((vector_size(L * sizeof(E))));
  typedef type in_memory __attribute__((aligned(1), may_alias));
};
template <class E>
struct LanesOf<E, 1> {
  using type = E;
  typedef E in_memory __attribute__((aligned(1), may_alias));
};
template <class E, int L>
using Lanes = typename LanesOf<E, L>::type;

template <class A>
constexpr int kWidest = ROAD_VECTOR_BYTES / int(sizeof(A));

// Calls body(lanes, k) for k in [0, n) in steps of the widest vector, then of 4 lanes, then one by one.
// Which lanes an index falls into depends on n alone, so a row's result does not depend on the other rows.
template <class A, class Body>
ROAD_INLINE void for_pairs(int64_t n, const Body& body) {
  int64_t k = 0;
  for (constexpr int L = kWidest<A>; k + L <= n; k += L) body(std::integral_constant<int, L>{}, k);
  if constexpr (kWidest<A> > 4)
    for (; k + 4 <= n; k += 4) body(std::integral_constant<int, 4>{}, k);
  for (; k < n; ++k) body(std::integral_constant<int, 1>{}, k);
}

template <class To, class From>
ROAD_INLINE To reinterpret(const From& from) {
  if constexpr (std::is_arithmetic_v<To>) return bit_cast<To>(from);
  else return (To)from;
}

template <class E, int L, class From>
ROAD_INLINE Lanes<E, L> convert(const From& from) {
  if constexpr (L == 1) return static_cast<E>(from);
  else return __builtin_convertvector(from, Lanes<E, L>);
}

// GCC before 11 splits 32 bytes at any address in two, for processors older than AVX2.
#if ROAD_VECTOR_BYTES >= 32 && !defined(__clang__) && __GNUC__ < 11
constexpr int kSplit = 32;
#define ROAD_MOVE_UNSPLIT(to, from) asm("vmovups %1, %0" : to : from)
#else
constexpr int kSplit = 0;
#define ROAD_MOVE_UNSPLIT(to, from)
#endif

// At any address.  For memcpy, GCC before 12 goes through the stack, 16 bytes at a time.
template <class E, int L>
ROAD_INLINE Lanes<E, L> load_raw(const void* p) {
  using Memory = typename LanesOf<E, L>::in_memory;
  Lanes<E, L> v;
  if constexpr (L * sizeof(E) == kSplit) ROAD_MOVE_UNSPLIT("=x"(v), "m"(*static_cast<const Memory*>(p)));
  else v = *static_cast<const Memory*>(p);
  return v;
}
template <class E, int L>
ROAD_INLINE void store_raw(void* p, const Lanes<E, L>& v) {
  using Memory = typename LanesOf<E, L>::in_memory;
  if constexpr (L * sizeof(E) == kSplit) ROAD_MOVE_UNSPLIT("=m"(*static_cast<Memory*>(p)), "x"(v));
  else *static_cast<Memory*>(p) = v;
}

// --- 16-bit formats: bits in 32-bit lanes <-> float --------------------------------------------------------------

// gcc 12 turns __builtin_convertvector between 16 zmm lanes into four instructions; there is one for it.
template <int L>
ROAD_INLINE Lanes<uint32_t, L> widen_bits(const Lanes<uint16_t, L>& bits) {
#if ROAD_VECTOR_BYTES >= 64
  if constexpr (L == 16) return (Lanes<uint32_t, L>)_mm512_cvtepu16_epi32((__m256i)bits);
#endif
  return convert<uint32_t, L>(bits);
}

template <int L>
ROAD_INLINE Lanes<uint16_t, L> narrow_bits(const Lanes<uint32_t, L>& bits) {
#if ROAD_VECTOR_BYTES >= 64
  if constexpr (L == 16) return (Lanes<uint16_t, L>)_mm512_cvtepi32_epi16((__m512i)bits);
#endif
  return convert<uint16_t, L>(bits);
}

template <int L>
ROAD_INLINE Lanes<float, L> half_bits_to_float(const Lanes<uint16_t, L>& bits) {
#if ROAD_VECTOR_BYTES >= 32
#if ROAD_VECTOR_BYTES >= 64
  if constexpr (L == 16) return (Lanes<float, L>)_mm512_cvtph_ps((__m256i)bits);
#endif
  if constexpr (L == 8) return (Lanes<float, L>)_mm256_cvtph_ps((__m128i)bits);
#endif
  using U = Lanes<uint32_t, L>;
  using F = Lanes<float, L>;
  const U wide = convert<uint32_t, L>(bits);
  const U magnitude = (wide & 0x7fff) << 13;
  const U finite = reinterpret<U>(F(reinterpret<F>(magnitude) * 0x1p112f));
  const U u = magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : finite;
  return reinterpret<F>(U(u | (wide & 0x8000) << 16));
}

template <int L>
ROAD_INLINE Lanes<uint16_t, L> float_to_half_bits(const Lanes<float, L>& v) {
#if ROAD_VECTOR_BYTES >= 32
#if ROAD_VECTOR_BYTES >= 64
  if constexpr (L == 16) return (Lanes<uint16_t, L>)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#endif
  if constexpr (L == 8) return (Lanes<uint16_t, L>)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#endif
  if constexpr (L == 1) {
    return to_half(v).bits;
  } else {  // the three cases of to_half, chosen per lane
    using U = Lanes<uint32_t, L>;
    using F = Lanes<float, L>;
    const U u = reinterpret<U>(v);
    const U magnitude = u & 0x7fffffff;
    const U special = magnitude > 0x7f800000 ? U{} + 0x7e00 : U{} + 0x7c00;
    const U subnormal = reinterpret<U>(F(reinterpret<F>(magnitude) + 0.5f)) - 0x3f000000;
    const U normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const U small = magnitude < 0x38800000 ? subnormal : normal;
    const U h = magnitude >= 0x47800000 ? special : small;
    return convert<uint16_t, L>(U(h | (u >> 16 & 0x8000)));
  }
}

template <int L>
ROAD_INLINE Lanes<uint32_t, L> round_to_bfloat16_bits(const Lanes<float, L>& v) {
  using U = Lanes<uint32_t, L>;
  const U u = reinterpret<U>(v);
  const U rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  return (u & 0x7fffffff) > 0x7f800000 ? (u >> 16) | 0x40 : rounded;
}

#if defined(ROAD_CONVERTS_BFLOAT16)
// The instruction differs from the code above only in flushing subnormal numbers to zero.  4096 x 4096 in place,
// group_size 64, takes 0.72 x the time with it (AMD EPYC, one thread; 0.68 x where the data is in L2).
ROAD_INLINE bool any_subnormal(const Lanes<float, 16>& v) { return _mm512_fpclass_ps_mask((__m512)v, 0x20) != 0; }
#endif

// --- L consecutive numbers ---------------------------------------------------------------------------------------

template <class T, int L>
ROAD_INLINE Lanes<Acc<T>, L> load(const T* p) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return reinterpret<Lanes<float, L>>(Lanes<uint32_t, L>(widen_bits<L>(load_raw<uint16_t, L>(p)) << 16));
  } else if constexpr (std::is_same_v<T, Half>) {
    return half_bits_to_float<L>(load_raw<uint16_t, L>(p));
  } else {
    return load_raw<T, L>(p);
  }
}

template <class T, int L>
ROAD_INLINE void store(T* p, const Lanes<Acc<T>, L>& v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
#if defined(ROAD_CONVERTS_BFLOAT16)
    if constexpr (L == 16)
      if (__builtin_expect(!any_subnormal(v), 1)) {
        return store_raw<uint16_t, 16>(p, (Lanes<uint16_t, 16>)_mm512_cvtneps_pbh((__m512)v));
      }
#endif
    store_raw<uint16_t, L>(p, narrow_bits<L>(round_to_bfloat16_bits<L>(v)));
  } else if constexpr (std::is_same_v<T, Half>) {
    store_raw<uint16_t, L>(p, float_to_half_bits<L>(v));
  } else {
    store_raw<T, L>(p, v);
  }
}

}  // namespace ROAD_ISA
}  // namespace road
