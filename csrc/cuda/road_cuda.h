// The CUDA backend: everything that a binding calls.  No torch, and nothing here waits for the device.
#pragma once

#include "problem.h"

#if defined(ROAD_CUDA_SHIM)
#include "cuda_shim.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace road::cuda {

// Every function returns the error of its launch, and cudaErrorInvalidValue where columns or adapters do not fit 32 bits.
constexpr int64_t kMostAdapters = (int64_t{1} << 31) - 2, kMostFeatures = (int64_t{1} << 31) - 1;
inline bool fits(const Problem& p) { return p.params.adapters <= kMostAdapters && p.dim <= kMostFeatures; }

// z = R x for every row, or R^T x if `transposed`; z may be x.  One kernel.
cudaError_t rotate(const Problem& problem, const Rows& x, const Rows& z, bool transposed, cudaStream_t stream);

// Ends the device's work with an assertion if a block, of an adapter in use, cannot be inverted.  One kernel.
cudaError_t refuse_singular(const Problem& problem, cudaStream_t stream);

// Z = R W, as road::cpu::mix_rows.  One kernel.
cudaError_t mix_rows(const Problem& problem, const Matrix& w, const Matrix& z, cudaStream_t stream);

// The rows of a mixed batch in the order of their adapters.  Not needed for a single adapter.
struct Order {
  const int64_t* ids = nullptr;        // [count]: adapter ids, ascending
  const int64_t* positions = nullptr;  // [count]: where each was in problem.ids; equal ids keep their order
  const int64_t* starts = nullptr;     // [adapters + 1]: the first position of each adapter's ids, and the end
};

// Makes it on the device, of ids that nobody rewrites meanwhile.  One kernel; every id is compared with every other, so it takes kMostOrdered ids and no more
// (orders() says so), and a caller with more sorts them otherwise.
constexpr int64_t kMostOrdered = 4096;
bool orders(const Problem& problem);
int64_t order_scratch(const Problem& problem);  // int64s that `order` needs, and that `out` then points into
cudaError_t order(const Problem& problem, int64_t* scratch, Order& out, cudaStream_t stream);

// Floats (doubles for float64) of scratch that backward needs: (row blocks + adapters) * sums, where sums is D, or
// 2 D if the rows of a pair do not share their coefficients, and row blocks is at most kBackwardWaves times what the
// device holds at once.  Its address is a multiple of 16.
int64_t backward_scratch(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out);

// As road::cpu::backward.  Two kernels, no atomics, bitwise repeatable; gradients of x alone are one kernel.
cudaError_t backward(const Problem& problem, const Rows& gz, const Rows& saved, bool from_output, const Gradients& out,
                     const Order& order, void* scratch, cudaStream_t stream);

}  // namespace road::cuda
