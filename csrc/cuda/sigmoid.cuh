// sigmoid(gate) for core/silu_mul.h.
#pragma once

#include <cmath>

#include "core/silu_mul.h"
#include "cuda/vector.cuh"

namespace road::cuda {

// Of rows of type T.  expf() is within 2 ulp and takes eight instructions; rows of 16 bits, which instructions hold up
// rather than memory, have two: 2^x within 2 ulp, of a product whose rounding makes |gate| / 2^24 of it.  1 +
// exp(-gate) is at least 1, which its reciprocal, within 1 ulp, needs no other path for; beyond 2^126 it gives 0
// instead of a subnormal.
template <class T>
__device__ __forceinline__ float sigmoid(float gate) {
#if defined(ROAD_CUDA_SHIM)
  return sigmoid_of(std::exp(-gate));
#else
  float power, result;
  if constexpr (sizeof(T) == 2) asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(gate * -1.44269504f));
  else power = expf(-gate);
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1 + power));
  return result;
#endif
}

template <class T>
__device__ __forceinline__ double sigmoid(double gate) {
  return sigmoid_of(exp(-gate));
}

// From gate and up to their gradients, in place.
template <class T, class A>
__device__ __forceinline__ void gradients_through_silu_mul(A gz, A& gate, A& up) {
  const SiluMulGradients<A> g = silu_mul_gradients(gz, gate, up, sigmoid<T>(gate));
  gate = g.gate;
  up = g.up;
}

}  // namespace road::cuda
