// The CUDA backend: everything that a binding calls.  No torch, and nothing here waits for the device.
#pragma once

#include "problem.h"

#if defined(ROAD_CUDA_SHIM)
#include "cuda_shim.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace road::cuda {

// z = R x for every row, or R^T x if `transposed`; z may be x.  One kernel.  Returns the launch's error.
cudaError_t rotate(const Problem& problem, const Rows& x, const Rows& z, bool transposed, cudaStream_t stream);

// Z = R W, as road::cpu::mix_rows.  One kernel.
cudaError_t mix_rows(const Problem& problem, const Matrix& w, const Matrix& z, cudaStream_t stream);

// The rows of a mixed batch in the order of their adapters, made on the device by the caller (a stable sort).
// Not needed for a single adapter.
struct Order {
  const int64_t* ids = nullptr;        // [count]: adapter ids, ascending
  const int64_t* positions = nullptr;  // [count]: where each was in problem.ids
  const int64_t* starts = nullptr;     // [adapters + 1]: the first position of each adapter's ids, and the end
};

// Floats (doubles for float64) of scratch that backward needs: (row blocks + adapters) * sums, where sums is D, or
// 2 D if the rows of a pair do not share their coefficients, and row blocks is at most 4 per multiprocessor.
int64_t backward_scratch(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out);

// As road::cpu::backward.  Two kernels, no atomics, bitwise repeatable; gradients of x alone are one kernel.
cudaError_t backward(const Problem& problem, const Rows& gz, const Rows& saved, bool from_output, const Gradients& out,
                     const Order& order, void* scratch, cudaStream_t stream);

}  // namespace road::cuda
