// The CUDA kernels, as a binding calls them.  No torch; no function synchronises with the device.
#pragma once

#include "core/problem.h"
#include "core/rms_norm.h"
#include "core/rope.h"

#if defined(ROAD_CUDA_SHIM)
#include "cuda_shim.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace road::cuda {

// Functions return the error of their launch, or cudaErrorInvalidValue where columns, adapters or the rows of a norm do
// not fit 32 bits.
constexpr int64_t kMostAdapters = (int64_t{1} << 31) - 2, kMostFeatures = (int64_t{1} << 31) - 1;
inline bool fits(const Problem& p) { return p.params.adapters <= kMostAdapters && p.dim <= kMostFeatures; }

// z = R x for every row, or R^T x if `transposed`; z may be x.  One kernel.  `overlap`: parameters and ids are not
// being written by work still in flight on the stream, and may be read while the kernel before this one still runs.
cudaError_t rotate(const Problem& problem, const Rows& x, const Rows& z, bool transposed, bool overlap,
                   cudaStream_t stream);

// Whether rotate, or backward, is faster with tables that tables() makes once from the angles, of which there are many
// per pair, than with angles.
bool profits_from_tables(const Problem& problem);

// Fails a device-side assertion if a block, of an adapter in use, cannot be inverted.  One kernel.
cudaError_t refuse_singular(const Problem& problem, cudaStream_t stream);

// Z = R W, as road::cpu::merge.  One kernel.
cudaError_t merge(const Problem& problem, const Matrix& w, const Matrix& z, cudaStream_t stream);

// As road::cpu::tables.  One kernel.
cudaError_t tables(const Problem& problem, void* r1, void* r2, cudaStream_t stream);

// The rows of a mixed batch sorted by adapter.  Not needed for a single adapter.
struct SortedRows {
  const int64_t* positions = nullptr;  // [count]: of the ids in the order of adapters; equal ids keep their order
  const int64_t* starts = nullptr;     // [adapters + 1]: where each adapter's ids start among them, and the end
};

// Sorts on the device ids that must not change during the call.  One kernel for up to 4096 ids, three for more.
int64_t sort_rows_scratch(const Problem& problem);  // int64s of scratch, which `out` then points into
cudaError_t sort_rows(const Problem& problem, int64_t* scratch, SortedRows& out, cudaStream_t stream);

// Floats (doubles for float64) of scratch that backward needs: blocks of rows (plus adapters + 1 in a mixed batch)
// times sums of each, D, or 2 D if the rows of a pair do not share their coefficients.  Its address is a multiple
// of 16.
int64_t backward_scratch(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out);

// As road::cpu::backward.  Two kernels, no atomics, bitwise reproducible; the gradient of x alone is one kernel.
// `coefficients`: the problem itself, or with the tables of its angles; what is done to rows takes them from there.
cudaError_t backward(const Problem& problem, const Problem& coefficients, const Rows& gz, const Rows& saved,
                     bool from_output, const Gradients& out, const SortedRows& sorted, void* scratch,
                     cudaStream_t stream);

// The fused ops.  Forms are those of tables; rows without an adapter are not rotated, and the rest happens to them.

// silu(gate) * up, for [gate, up] = R x with halves of equal width, a multiple of the group size.  One kernel.
cudaError_t rotate_silu_mul(const Problem& problem, const Rows& x, const Rows& z, cudaStream_t stream);

// Its gradients, from that of z and from x alone.  As backward.
int64_t silu_mul_backward_scratch(const Problem& problem, const Rows& gz, const Rows& x, const Gradients& out);
cudaError_t rotate_silu_mul_backward(const Problem& problem, const Rows& gz, const Rows& x, const Gradients& out,
                                     const SortedRows& sorted, void* scratch, cudaStream_t stream);

// s = R x + residual, and y its RMSNorm.  One kernel.  y may be x, and s the residual.
cudaError_t rotate_add_rms_norm(const Problem& problem, const Rows& x, const Rows& residual, const RmsNorm& norm,
                                const Rows& y, const Rows& s, cudaStream_t stream);

// The gradient of that s, as road::cpu::add_rms_norm_backward.  One kernel.
cudaError_t add_rms_norm_backward(const Problem& problem, const Rows& gy, const Rows& gs, const Rows& s,
                                  const RmsNorm& norm, const Rows& out, cudaStream_t stream);

// R x, then RoPE on the first heads.  One kernel.  z may be x where turns_in_place().
bool turns_in_place(const Problem& problem, const Rope& rope);
cudaError_t rotate_rope(const Problem& problem, const Rows& x, const Rope& rope, const Rows& z, cudaStream_t stream);

}  // namespace road::cuda
