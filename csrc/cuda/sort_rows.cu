// Sorts the rows of a mixed batch by adapter: a stable counting sort of the ids.
#include "cuda/coefficients.cuh"
#include "cuda/launch.cuh"
#include "cuda/road_cuda.h"

namespace road::cuda {
namespace {

// Few ids: one kernel.  Query k < count is id number k: its position is the number of smaller ids, plus that of equal
// ids before it.  The queries after those are the adapters 0 .. adapters: adapter a starts at the number of ids below
// a.
constexpr int kFewIds = 4096, kFewThreads = 128, kFewTile = 512;

__global__ void __launch_bounds__(kFewThreads)
    sort_few_kernel(Ids ids, int64_t adapters, int64_t* positions, int64_t* starts) {
  __shared__ int tile[kFewTile];
  wait_for_inputs();
  const int count = static_cast<int>(ids.count);
  const int64_t query = int64_t{blockIdx.x} * kFewThreads + threadIdx.x;
  const bool is_id = query < count, is_start = !is_id && query - count <= adapters;
  const int value = is_id ? checked_id(ids[query], adapters) : static_cast<int>(query - count);
  int before = 0;
  for (int first = 0; first < count; first += kFewTile) {
    const int n = count - first < kFewTile ? count - first : kFewTile;
    __syncthreads();
    for (int k = threadIdx.x; k < n; k += kFewThreads) tile[k] = checked_id(ids[first + k], adapters);
    __syncthreads();
    const int ties = is_id && query > first ? static_cast<int>(query - first) : 0;  // before which equal ids count
#pragma unroll 8
    for (int k = 0; k < n; ++k) before += tile[k] < value + (k < ties);
  }
  if (is_id) positions[before] = query;
  else if (is_start) starts[query - count] = before;
}

// Many ids: every block counts those of its chunk, one block adds the counts up, every block writes its positions.
constexpr int kTile = 512, kMostChunks = 256;
constexpr int64_t kMostCounters = int64_t{1} << 22;

struct Chunks {
  int64_t ids;  // of a chunk
  int count;
};
Chunks chunks_of(const Problem& problem) {
  const int64_t counters = problem.params.adapters + 1, tiles = (problem.ids.count + kTile - 1) / kTile;
  int64_t most = kMostCounters / counters < kMostChunks ? kMostCounters / counters : kMostChunks;
  if (most < 1) most = 1;
  const int64_t chunk = (tiles + most - 1) / most * kTile;
  return {chunk, static_cast<int>((problem.ids.count + chunk - 1) / chunk)};
}

// counts[c][a + 1]: ids of chunk c that are a, from -1 on.
__global__ void __launch_bounds__(kTile, 2) count_kernel(Ids ids, int64_t adapters, int64_t chunk, int* counts) {
  wait_for_inputs();
  int* mine = counts + blockIdx.x * (adapters + 1);
  for (int64_t a = threadIdx.x; a <= adapters; a += kTile) mine[a] = 0;
  __syncthreads();
  const int64_t begin = blockIdx.x * chunk, end = begin + chunk < ids.count ? begin + chunk : ids.count;
  for (int64_t k = begin + threadIdx.x; k < end; k += kTile) atomicAdd(mine + checked_id(ids[k], adapters) + 1, 1);
}

// Turns counts into the numbers of equal ids in the chunks before, and their sums into starts.  One block.
__global__ void __launch_bounds__(kTile) add_counts_kernel(int64_t adapters, int chunks, int* counts, int64_t* starts) {
  __shared__ int64_t sums[2][kTile];
  wait_for_inputs();
  int64_t total = 0;  // of the ids below the first of a round
  for (int64_t first = 0; first <= adapters; first += kTile) {
    const int64_t a = first + threadIdx.x;
    int64_t sum = 0;
    if (a <= adapters) {
#pragma unroll 8
      for (int c = 0; c < chunks; ++c) {
        int& count = counts[c * (adapters + 1) + a];
        const int before = static_cast<int>(sum);
        sum += count;
        count = before;
      }
    }
    const int thread = threadIdx.x;
    int from = 0;
    sums[from][thread] = sum;
    __syncthreads();
    for (int step = 1; step < kTile; step *= 2, from = 1 - from) {  // an inclusive scan
      sums[1 - from][thread] = sums[from][thread] + (thread >= step ? sums[from][thread - step] : 0);
      __syncthreads();
    }
    if (a <= adapters) starts[a] = total + sums[from][thread];  // adapter a follows the ids up to a - 1, counter a
    total += sums[from][kTile - 1];
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kTile)
    place_kernel(Ids ids, int64_t adapters, int64_t chunk, int* counts, const int64_t* starts, int64_t* positions) {
  __shared__ int tile[kTile];
  wait_for_inputs();
  int* before_chunk = counts + blockIdx.x * (adapters + 1);
  const int64_t begin = blockIdx.x * chunk, end = begin + chunk < ids.count ? begin + chunk : ids.count;
  for (int64_t first = begin; first < end; first += kTile) {
    const int thread = threadIdx.x;
    const int64_t k = first + thread;
    const int id = k < end ? checked_id(ids[k], adapters) : -2;
    tile[thread] = id;
    __syncthreads();
    int before = 0, after = 0;  // equal ids of this tile
#pragma unroll 8
    for (int n = 0; n < kTile; ++n) {
      const bool equal = tile[n] == id;
      before += equal && n < thread;
      after += equal && n > thread;
    }
    if (k < end) {
      const int64_t start = id < 0 ? 0 : starts[id];
      positions[start + before_chunk[id + 1] + before] = k;
    }
    __syncthreads();  // all have read what the last of each id now changes for the next tile
    if (k < end && after == 0) before_chunk[id + 1] += before + 1;
    __syncthreads();
  }
}

}  // namespace

int64_t sort_rows_scratch(const Problem& problem) {
  const int64_t adapters = problem.params.adapters, count = problem.ids.count;
  const int64_t counters = count <= kFewIds ? 0 : chunks_of(problem).count * (adapters + 1);
  return count + adapters + 1 + (counters + 1) / 2;
}

cudaError_t sort_rows(const Problem& problem, int64_t* scratch, SortedRows& out, cudaStream_t stream) {
  if (!fits(problem) || problem.ids.count >= int64_t{1} << 40) return cudaErrorInvalidValue;
  const int64_t adapters = problem.params.adapters, count = problem.ids.count;
  int64_t *positions = scratch, *starts = positions + count;
  int* counts = reinterpret_cast<int*>(starts + adapters + 1);
  out = {positions, starts};
  if (count <= kFewIds) {
    const int64_t queries = count + adapters + 1;
    const dim3 grid(static_cast<unsigned>((queries + kFewThreads - 1) / kFewThreads));
    launch(&sort_few_kernel, grid, dim3(kFewThreads), stream, problem.ids, adapters, positions, starts);
  } else {
    const Chunks chunks = chunks_of(problem);
    const dim3 grid(static_cast<unsigned>(chunks.count)), block(kTile);
    launch(&count_kernel, grid, block, stream, problem.ids, adapters, chunks.ids, counts);
    launch(&add_counts_kernel, dim3(1), block, stream, adapters, chunks.count, counts, starts);
    launch(&place_kernel, grid, block, stream, problem.ids, adapters, chunks.ids, counts, starts, positions);
  }
  return cudaGetLastError();
}

}  // namespace road::cuda
