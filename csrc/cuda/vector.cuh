// Packs of numbers as one load or store moves them, and conversions; also what lets the kernels compile for the host
// (tests/support/cuda_shim).
#pragma once

#if defined(ROAD_CUDA_SHIM)
#include "cuda_shim.h"
#else
#undef NDEBUG  // the assertion on adapter ids keeps reads inside the bank: no build may drop it
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cassert>
#endif

#include <cstring>
#include <type_traits>

#include "core/dispatch.h"

namespace road::cuda {

#if defined(ROAD_CUDA_SHIM)
inline float widen(BFloat16 v) { return to_float(v); }
inline float widen(Half v) { return to_float(v); }
inline void narrow(float v, BFloat16& out) { out = to_bfloat16(v); }
inline void narrow(float v, Half& out) { out = to_half(v); }
#else
__device__ __forceinline__ float widen(BFloat16 v) { return __uint_as_float(uint32_t{v.bits} << 16); }
__device__ __forceinline__ float widen(Half v) { return __half2float(__ushort_as_half(v.bits)); }
__device__ __forceinline__ void narrow(float v, BFloat16& out) {
  out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(v));
}
__device__ __forceinline__ void narrow(float v, Half& out) { out.bits = __half_as_ushort(__float2half_rn(v)); }
#endif
__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ void narrow(float v, float& out) { out = v; }
__device__ __forceinline__ void narrow(double v, double& out) { out = v; }

template <class T, class A>
__device__ __forceinline__ void widen(const T* from, A (&to)[1]) {
  to[0] = widen(from[0]);
}
template <class T, class A>
__device__ __forceinline__ void narrow(const A (&from)[1], T* to) {
  narrow(from[0], to[0]);
}

// Two adjacent numbers at once: two 16-bit numbers share a register, and converting them one by one costs permutes and
// registers.
template <class T, class A>
__device__ __forceinline__ void widen(const T* from, A (&to)[2]) {
#if !defined(ROAD_CUDA_SHIM)
  if constexpr (sizeof(T) == 2) {
    uint32_t word;
    memcpy(&word, from, sizeof word);
    if constexpr (std::is_same_v<T, BFloat16>) {
      to[0] = __uint_as_float(word << 16);
      to[1] = __uint_as_float(word & 0xffff0000u);
    } else {
      const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&word));
      to[0] = both.x;
      to[1] = both.y;
    }
    return;
  }
#endif
  to[0] = widen(from[0]);
  to[1] = widen(from[1]);
}

template <class T, class A>
__device__ __forceinline__ void narrow(const A (&from)[2], T* to) {
#if !defined(ROAD_CUDA_SHIM)
  if constexpr (sizeof(T) == 2) {
    if constexpr (std::is_same_v<T, BFloat16>) {
      const __nv_bfloat162 both = __floats2bfloat162_rn(from[0], from[1]);
      memcpy(to, &both, sizeof both);
    } else {
      const __half2 both = __floats2half2_rn(from[0], from[1]);
      memcpy(to, &both, sizeof both);
    }
    return;
  }
#endif
  narrow(from[0], to[0]);
  narrow(from[1], to[1]);
}

// N numbers, moved by one instruction if they are aligned to their size.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

// 16 bytes, aligned, which the L2 cache gives up last (tables, which other rows need as well) or first.
enum class Keep { kFirst, kLast };
template <class T, int N, Keep keep>
__device__ __forceinline__ Pack<T, N> load_with(const T* p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint64_t policy;
  if constexpr (keep == Keep::kLast) asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  else asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  uint4 words;
  asm volatile("ld.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(p), "l"(policy));
  Pack<T, N> out;
  memcpy(&out, &words, sizeof out);
  return out;
#else
  return *reinterpret_cast<const Pack<T, N>*>(p);
#endif
}

// Once: they are not needed again, and leave the caches to others first.
template <class T, int N, bool Aligned, bool Once = false>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  if constexpr (Aligned && Once && sizeof(T) * N == 16) {
    return load_with<T, N, Keep::kFirst>(p);
  } else if constexpr (Aligned) {
    return *reinterpret_cast<const Pack<T, N>*>(p);
  } else {
    Pack<T, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k) out.v[k] = p[k];
    return out;
  }
}

template <class T, int N, bool Aligned, bool Once = false>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& pack) {
  if constexpr (Aligned) {
#if defined(__CUDA_ARCH__)
    if constexpr (Once && sizeof(T) * N == 16) {
      uint4 words;
      memcpy(&words, &pack, sizeof words);
      __stcs(reinterpret_cast<uint4*>(p), words);
      return;
    }
#endif
    *reinterpret_cast<Pack<T, N>*>(p) = pack;
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) p[k] = pack.v[k];
  }
}

// N numbers, aligned, that other rows need as well: they stay in the L2 cache while rows stream through it.  16384 rows
// by 1000 adapters at random took 1.06 of the time of one adapter so instead of 1.16 on an H100 (bfloat16 tables;
// float32 1.31 and 1.39), 64 requests 1.00 instead of 1.01.  Hints on the rows gain more where tables are many, and
// cost one adapter 1.5 %: see ROAD_STREAM_BYTES.
template <class T, int N>
__device__ __forceinline__ Pack<T, N> load_kept(const T* p) {
  if constexpr (sizeof(T) * N == 16) return load_with<T, N, Keep::kLast>(p);
  else return load_pack<T, N, true>(p);
}

// Brings what is there into the L2 cache.  Of memory that is still being written, this does no harm: the cache is where
// writes meet.
__device__ __forceinline__ void prefetch(const void* p) {
#if !defined(ROAD_CUDA_SHIM)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

// One number of any dtype.
template <class A>
__device__ __forceinline__ A load_as(const void* base, DType dtype, int64_t index) {
  return with_dtype(dtype, [&](auto t) -> A { return widen(static_cast<const decltype(t)*>(base)[index]); });
}

__device__ __forceinline__ void store_as(void* base, DType dtype, int64_t index, double v) {
  with_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    narrow(static_cast<Acc<T>>(v), static_cast<T*>(base)[index]);
  });
}

}  // namespace road::cuda
