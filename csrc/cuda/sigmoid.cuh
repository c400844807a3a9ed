// sigmoid(gate) for core/silu_mul.h.
#pragma once

#include <cmath>

#include "core/silu_mul.h"
#include "cuda/vector.cuh"

namespace road::cuda {

// exp() of float32 is within 2 ulp.  1 + exp(-gate) is at least 1, which its reciprocal, within 1 ulp, needs no other
// path for; beyond 2^126 it gives 0 instead of a subnormal.
__device__ __forceinline__ float sigmoid(float gate) {
#if defined(ROAD_CUDA_SHIM)
  return sigmoid_of(std::exp(-gate));
#else
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1 + expf(-gate)));
  return result;
#endif
}

__device__ __forceinline__ double sigmoid(double gate) { return sigmoid_of(exp(-gate)); }

// From gate and up to their gradients, in place.
template <class A>
__device__ __forceinline__ void gradients_through_silu_mul(A gz, A& gate, A& up) {
  const SiluMulGradients<A> g = silu_mul_gradients(gz, gate, up, sigmoid(gate));
  gate = g.gate;
  up = g.up;
}

}  // namespace road::cuda
