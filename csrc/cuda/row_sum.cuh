// Sums over a row by the threads of a block: threadIdx.x along the row, threadIdx.y for several short rows.
#pragma once

#include "cuda/vector.cuh"

namespace road::cuda {

constexpr int kMostThreads = 1024, kFewThreads = 128;  // of a block: where a row has many, and where it has few

// As many threads for a row as it has packs, up to kMostThreads.
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

// The sum over the threads of a row (all threadIdx.x), in each of them: over the lanes of a warp, then over its warps.
template <class A>
__device__ __forceinline__ A add_row(A sum, A* shared) {
  const int columns = blockDim.x;
  if (columns <= 32) {
#pragma unroll 1
    for (int lane = 1; lane < columns; lane *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    return sum;
  }
#pragma unroll
  for (int lane = 1; lane < 32; lane *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  const int warps = columns / 32, lane = threadIdx.x % 32;
  A* row = shared + threadIdx.y * warps;
  if (lane == 0) row[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = lane < warps ? row[lane] : A{};
#pragma unroll
  for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

}  // namespace road::cuda
