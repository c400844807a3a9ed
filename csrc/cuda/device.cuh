// What the kernels need of the device language, so that their text also compiles for the host (see tests/cuda_shim).
#pragma once

#if defined(ROAD_CUDA_SHIM)
#include "cuda_shim.h"
#else
#undef NDEBUG  // the assertion on adapter ids is what keeps reads inside the bank: no build may drop it
#include <cassert>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define ROAD_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#endif

#include "float16.h"
#include "problem.h"

namespace road::cuda {

#if defined(ROAD_CUDA_SHIM)
inline float widen(BFloat16 v) { return to_float(v); }
inline float widen(Half v) { return to_float(v); }
inline void narrow(float v, BFloat16& out) { out = to_bfloat16(v); }
inline void narrow(float v, Half& out) { out = to_half(v); }
#else
__device__ __forceinline__ float widen(BFloat16 v) { return __uint_as_float(uint32_t{v.bits} << 16); }
__device__ __forceinline__ float widen(Half v) { return __half2float(__ushort_as_half(v.bits)); }
__device__ __forceinline__ void narrow(float v, BFloat16& out) { out.bits = __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
__device__ __forceinline__ void narrow(float v, Half& out) { out.bits = __half_as_ushort(__float2half_rn(v)); }
#endif
__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ void narrow(float v, float& out) { out = v; }
__device__ __forceinline__ void narrow(double v, double& out) { out = v; }

// The arithmetic type: double for double, float for everything else.
template <class T>
struct AccOf { using type = float; };
template <>
struct AccOf<double> { using type = double; };
template <class T>
using Acc = typename AccOf<T>::type;

// N numbers that one instruction moves, if they are aligned to their size.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack { T v[N]; };

template <class T, int N, bool Aligned>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p) {
  if constexpr (Aligned) {
    return *reinterpret_cast<const Pack<T, N>*>(p);
  } else {
    Pack<T, N> out;
#pragma unroll
    for (int k = 0; k < N; ++k) out.v[k] = p[k];
    return out;
  }
}

template <class T, int N, bool Aligned>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& pack) {
  if constexpr (Aligned) {
    *reinterpret_cast<Pack<T, N>*>(p) = pack;
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) p[k] = pack.v[k];
  }
}

// One number of any dtype.
template <class A>
__device__ __forceinline__ A load_as(const void* base, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kFloat16: return widen(static_cast<const Half*>(base)[index]);
    case DType::kBFloat16: return widen(static_cast<const BFloat16*>(base)[index]);
    case DType::kFloat32: return static_cast<A>(static_cast<const float*>(base)[index]);
    default: return static_cast<A>(static_cast<const double*>(base)[index]);
  }
}

__device__ __forceinline__ void store_as(void* base, DType dtype, int64_t index, double v) {
  switch (dtype) {
    case DType::kFloat16: return narrow(static_cast<float>(v), static_cast<Half*>(base)[index]);
    case DType::kBFloat16: return narrow(static_cast<float>(v), static_cast<BFloat16*>(base)[index]);
    case DType::kFloat32: static_cast<float*>(base)[index] = static_cast<float>(v); return;
    default: static_cast<double*>(base)[index] = v; return;
  }
}

}  // namespace road::cuda
