// Sums over a row by the threads of a block: threadIdx.x along the row, threadIdx.y for several short rows.
#pragma once

#include "cuda/vector.cuh"

namespace road::cuda {

constexpr int kMostThreads = 1024, kFewThreads = 128;  // of a block: where a row has many, and where it has few

// As many threads for a row as it has packs, up to `most`, a multiple of 32.
struct RowBlocks {
  dim3 grid, block;

  RowBlocks(int64_t rows, int64_t packs) {
    int columns = 1;  // a power of two within a warp, or whole warps
    while (columns < packs && columns < 32) columns *= 2;
    if (packs > 32) columns = static_cast<int>((packs + 31) / 32 * 32);
    if (packs > kMostThreads) columns = kMostThreads;
    const int together = columns < kFewThreads ? kFewThreads / columns : 1;
    grid = dim3(static_cast<unsigned>((rows + together - 1) / together));
    block = dim3(columns, together);
  }
};

// N sums over the threads of a row (all threadIdx.x), in each of them: over the lanes of a warp, then over its warps.
// One barrier.  shared: 32 for each sum.
template <int N, class A>
__device__ __forceinline__ void add_row(A (&sums)[N], A* shared) {
  const int columns = blockDim.x;
  const auto add_lanes = [&](int step) {
#pragma unroll
    for (int n = 0; n < N; ++n) sums[n] += __shfl_xor_sync(0xffffffffu, sums[n], step);
  };
  if (columns <= 32) {
#pragma unroll 1
    for (int step = 1; step < columns; step *= 2) add_lanes(step);
    return;
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) add_lanes(step);
  const int warps = columns / 32, lane = threadIdx.x % 32, row = threadIdx.y * warps;
#pragma unroll
  for (int n = 0; n < N; ++n)
    if (lane == 0) shared[32 * n + row + threadIdx.x / 32] = sums[n];
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) sums[n] = lane < warps ? shared[32 * n + row + lane] : A{};
#pragma unroll
  for (int step = 1; step < 32; step *= 2) add_lanes(step);
}

template <class A>
__device__ __forceinline__ A add_row(A sum, A* shared) {
  A sums[1] = {sum};
  add_row(sums, shared);
  return sums[0];
}

}  // namespace road::cuda
