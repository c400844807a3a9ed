// From a DType to the C++ type of the stored numbers, and to the type that arithmetic on them is done in.
#pragma once

#include <type_traits>

#include "core/float16.h"
#include "core/problem.h"

namespace road {

// The arithmetic type: double for double, float for everything else.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// use(T{}) with the stored type of `dtype`.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // no warning for lambdas of the host, which host code passes
#endif
template <class Use>
ROAD_INLINE auto with_dtype(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::kFloat16: return use(Half{});
    case DType::kBFloat16: return use(BFloat16{});
    case DType::kFloat32: return use(float{});
    default: return use(double{});
  }
}

// use(A{}) with its arithmetic type.
template <class Use>
void with_arithmetic(DType dtype, const Use& use) {
  if (dtype == DType::kFloat64) use(double{});
  else use(float{});
}

// v, rounded to `dtype`, to element `index` of a buffer.
inline void store_rounded(void* base, DType dtype, int64_t index, double v) {
  switch (dtype) {
    case DType::kFloat16: static_cast<Half*>(base)[index] = to_half(static_cast<float>(v)); return;
    case DType::kBFloat16: static_cast<BFloat16*>(base)[index] = to_bfloat16(static_cast<float>(v)); return;
    case DType::kFloat32: static_cast<float*>(base)[index] = static_cast<float>(v); return;
    case DType::kFloat64: static_cast<double*>(base)[index] = v; return;
  }
}

// Bytes of an element.
ROAD_INLINE int64_t size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace road
