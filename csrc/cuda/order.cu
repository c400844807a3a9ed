// The rows of a mixed batch in the order of their adapters: a stable sort of the ids by counting, in one kernel.
#include "columns.cuh"
#include "road_cuda.h"

namespace road::cuda {

constexpr int kOrderThreads = 128, kOrderTile = 512;

// Query k < count is id number k: its place is the number of smaller ids, and of equal ones before it.  The queries
// after those are the adapters 0 .. adapters: adapter a starts at the number of ids below a.
__global__ void __launch_bounds__(kOrderThreads)
order_kernel(Ids ids, int64_t adapters, int64_t* sorted, int64_t* positions, int64_t* starts) {
  __shared__ int tile[kOrderTile];
  const int count = static_cast<int>(ids.count);
  const int64_t query = int64_t{blockIdx.x} * kOrderThreads + threadIdx.x;
  const bool is_id = query < count, is_start = !is_id && query - count <= adapters;
  const int value = is_id ? checked_id(ids[query], adapters) : static_cast<int>(query - count);
  int before = 0;
  for (int first = 0; first < count; first += kOrderTile) {
    const int n = count - first < kOrderTile ? count - first : kOrderTile;
    __syncthreads();
    for (int k = threadIdx.x; k < n; k += kOrderThreads) tile[k] = checked_id(ids[first + k], adapters);
    __syncthreads();
    const int ties = is_id && query > first ? static_cast<int>(query - first) : 0;  // equal ids that count
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

bool orders(const Problem& problem) { return problem.ids.count <= kMostOrdered; }

int64_t order_scratch(const Problem& problem) { return 2 * problem.ids.count + problem.params.adapters + 1; }

cudaError_t order(const Problem& problem, int64_t* scratch, Order& out, cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  int64_t *sorted = scratch, *positions = sorted + problem.ids.count, *starts = positions + problem.ids.count;
  out = {sorted, positions, starts};
  const int64_t queries = problem.ids.count + problem.params.adapters + 1;
  const dim3 grid(static_cast<unsigned>((queries + kOrderThreads - 1) / kOrderThreads));
  ROAD_LAUNCH(order_kernel, grid, dim3(kOrderThreads), stream, problem.ids, problem.params.adapters, sorted, positions, starts);
  return cudaGetLastError();
}

}  // namespace road::cuda
