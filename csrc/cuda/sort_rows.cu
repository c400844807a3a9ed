// Sorts the rows of a mixed batch by adapter: a stable sort of the ids by counting, in one kernel.
#include "cuda/coefficients.cuh"
#include "cuda/road_cuda.h"

namespace road::cuda {

constexpr int kSortThreads = 128, kSortTile = 512;

// Query k < count is id number k: its position is the number of smaller ids, plus that of equal ids before it.  The
// queries after those are the adapters 0 .. adapters: adapter a starts at the number of ids below a.
__global__ void __launch_bounds__(kSortThreads)
    sort_rows_kernel(Ids ids, int64_t adapters, int64_t* sorted, int64_t* positions, int64_t* starts) {
  __shared__ int tile[kSortTile];
  const int count = static_cast<int>(ids.count);
  const int64_t query = int64_t{blockIdx.x} * kSortThreads + threadIdx.x;
  const bool is_id = query < count, is_start = !is_id && query - count <= adapters;
  const int value = is_id ? checked_id(ids[query], adapters) : static_cast<int>(query - count);
  int before = 0;
  for (int first = 0; first < count; first += kSortTile) {
    const int n = count - first < kSortTile ? count - first : kSortTile;
    __syncthreads();
    for (int k = threadIdx.x; k < n; k += kSortThreads) tile[k] = checked_id(ids[first + k], adapters);
    __syncthreads();
    const int ties = is_id && query > first ? static_cast<int>(query - first) : 0;  // before which equal ids count
#pragma unroll 8
    for (int k = 0; k < n; ++k) before += tile[k] < value + (k < ties);
  }
  if (is_id) {
    sorted[before] = value;
    positions[before] = query;
  } else if (is_start) {
    starts[query - count] = before;
  }
}

bool can_sort_rows(const Problem& problem) { return problem.ids.count <= kMostSorted; }

int64_t sort_rows_scratch(const Problem& problem) { return 2 * problem.ids.count + problem.params.adapters + 1; }

cudaError_t sort_rows(const Problem& problem, int64_t* scratch, SortedRows& out, cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  int64_t *sorted = scratch, *positions = sorted + problem.ids.count, *starts = positions + problem.ids.count;
  out = {sorted, positions, starts};
  const int64_t adapters = problem.params.adapters, queries = problem.ids.count + adapters + 1;
  const dim3 grid(static_cast<unsigned>((queries + kSortThreads - 1) / kSortThreads));
  ROAD_LAUNCH(sort_rows_kernel, grid, dim3(kSortThreads), stream, problem.ids, adapters, sorted, positions, starts);
  return cudaGetLastError();
}

}  // namespace road::cuda
