// Sums over a row by the threads of its block.
#pragma once

#include "cuda/vector.cuh"

namespace road::cuda {

constexpr int kMostThreads = 1024;                       // of a block
constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;  // of a grid: rows, as each has a block

// Threads of the block that has a row: one for each of `packs`, at most kMostThreads, in whole warps.
inline int threads_for_row(int64_t packs) {
  return packs < kMostThreads ? static_cast<int>((packs + 31) / 32 * 32) : kMostThreads;
}

// N sums over the threads of a block, in each of them: over the lanes of a warp, then over the warps.  One barrier.
// shared: 32 for each sum.
template <int N, class A>
__device__ __forceinline__ void add_row(A (&sums)[N], A* shared) {
  const auto add_lanes = [&] {
#pragma unroll
    for (int step = 1; step < 32; step *= 2)
#pragma unroll
      for (int n = 0; n < N; ++n) sums[n] += __shfl_xor_sync(0xffffffffu, sums[n], step);
  };
  add_lanes();
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
  if (warps == 1) return;
#pragma unroll
  for (int n = 0; n < N; ++n)
    if (lane == 0) shared[32 * n + threadIdx.x / 32] = sums[n];
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) sums[n] = lane < warps ? shared[32 * n + lane] : A{};
  add_lanes();
}

template <class A>
__device__ __forceinline__ A add_row(A sum, A* shared) {
  A sums[1] = {sum};
  add_row(sums, shared);
  return sums[0];
}

}  // namespace road::cuda
