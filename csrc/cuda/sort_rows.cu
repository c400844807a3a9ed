// Sorts the rows of a mixed batch by adapter: a stable counting sort of the ids.
#include <climits>

#include "cuda/coefficients.cuh"
#include "cuda/launch.cuh"
#include "cuda/road_cuda.h"

namespace road::cuda {
namespace {

// Four ids as one load from shared memory takes them.
using Four = Pack<int, 4>;

// Few ids: one kernel.  Query k < count is id number k: its position is the number of smaller ids, plus that of equal
// ids before it.  The queries after those are the adapters 0 .. adapters: adapter a starts at the number of ids below
// a.  A block has kQueries of them, and all ids; each query is compared by kSlices threads.
constexpr int kFewIds = 4096, kFewThreads = 128, kSlices = 8, kQueries = kFewThreads / kSlices;

__global__ void __launch_bounds__(kFewThreads)
    sort_few_kernel(Ids ids, int64_t adapters, int64_t* positions, int64_t* starts) {
  constexpr int kAtOnce = 8;
  __shared__ Four tile[kFewIds / 4];
  __shared__ int sums[kFewThreads];
  int* all = tile[0].v;
  wait_for_inputs();
  const int count = static_cast<int>(ids.count), padded = (count + 4 * kSlices - 1) / (4 * kSlices) * (4 * kSlices);
  for (int first = threadIdx.x; first < padded; first += kAtOnce * kFewThreads) {
    int64_t loaded[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) loaded[n] = first + n * kFewThreads < count ? ids[first + n * kFewThreads] : -1;
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const int k = first + n * kFewThreads;
      if (k < padded) all[k] = k < count ? checked_id(loaded[n], adapters) : INT_MAX;  // above every id
    }
  }
  __syncthreads();
  const int slice = threadIdx.x % kSlices, mine = threadIdx.x / kSlices;
  const int64_t query = int64_t{blockIdx.x} * kQueries + mine;
  const bool is_id = query < count;
  const int value = is_id ? all[query] : static_cast<int>(query - count);
  const int ties = is_id ? static_cast<int>(query) : 0;  // before which equal ids count
  int before = 0;
#pragma unroll 4
  for (int k = 4 * slice; k < padded; k += 4 * kSlices) {
    const Four four = tile[k / 4];
#pragma unroll
    for (int n = 0; n < 4; ++n) before += four.v[n] < value + (k + n < ties);
  }
  sums[threadIdx.x] = before;
  __syncthreads();
  if (slice != 0) return;
#pragma unroll
  for (int n = 1; n < kSlices; ++n) before += sums[threadIdx.x + n];
  if (is_id) positions[before] = query;
  else if (query - count <= adapters) starts[query - count] = before;
}

// Many ids: every block counts those of its chunk; per id, the counts of the chunks are added up; every block adds up
// the totals of the ids and writes the positions of its chunk.  Small tiles, because place_kernel compares each id with
// those of its tile, and the more chunks, of which add_counts_kernel has kAtOnce in flight.
constexpr int kTile = 256, kMostChunks = 256, kAddThreads = 64;
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
__global__ void __launch_bounds__(kTile) count_kernel(Ids ids, int64_t adapters, int64_t chunk, int* counts) {
  wait_for_inputs();
  int* mine = counts + blockIdx.x * (adapters + 1);
  const int64_t begin = blockIdx.x * chunk, end = begin + chunk < ids.count ? begin + chunk : ids.count;
  int64_t k = begin + threadIdx.x, id = k < end ? ids[k] : -1;
  for (int64_t a = threadIdx.x; a <= adapters; a += kTile) mine[a] = 0;
  __syncthreads();
  for (; k < end; k += kTile, id = k < end ? ids[k] : -1) atomicAdd(mine + checked_id(id, adapters) + 1, 1);
}

// Turns counts into the numbers of equal ids in the chunks before, and their sums into totals.
__global__ void __launch_bounds__(kAddThreads)
    add_counts_kernel(int64_t adapters, int chunks, int* counts, int64_t* totals) {
  constexpr int kAtOnce = 16;
  wait_for_inputs();
  const int64_t a = int64_t{blockIdx.x} * kAddThreads + threadIdx.x;
  if (a > adapters) return;
  int64_t sum = 0;
  for (int chunk = 0; chunk < chunks; chunk += kAtOnce) {
    int* from = counts + chunk * (adapters + 1) + a;
    int count[kAtOnce];
#pragma unroll
    for (int c = 0; c < kAtOnce; ++c) count[c] = chunk + c < chunks ? from[c * (adapters + 1)] : 0;
#pragma unroll
    for (int c = 0; c < kAtOnce; ++c) {
      if (chunk + c < chunks) from[c * (adapters + 1)] = static_cast<int>(sum);
      sum += count[c];
    }
  }
  totals[a] = sum;
}

__global__ void __launch_bounds__(kTile) place_kernel(Ids ids, int64_t adapters, int64_t chunk, int* counts,
                                                      const int64_t* totals, int64_t* starts, int64_t* positions) {
  __shared__ Four tile[kTile / 4];
  __shared__ int64_t sums[2][kTile];
  wait_for_inputs();
  const int thread = threadIdx.x;
  const int64_t begin = blockIdx.x * chunk, end = begin + chunk < ids.count ? begin + chunk : ids.count;
  int64_t k = begin + thread, loaded = k < end ? ids[k] : -1;

  // A run of totals a thread; then an inclusive scan of the runs.
  const int64_t run = (adapters + kTile) / kTile, from = thread * run;
  const int64_t to = from + run < adapters + 1 ? from + run : adapters + 1;
  int64_t sum = 0;
  for (int64_t a = from; a < to; ++a) sum += totals[a];
  int now = 0;
  sums[now][thread] = sum;
  __syncthreads();
  for (int step = 1; step < kTile; step *= 2, now = 1 - now) {
    sums[1 - now][thread] = sums[now][thread] + (thread >= step ? sums[now][thread - step] : 0);
    __syncthreads();
  }
  const auto before_run = [&](int64_t r) { return r == 0 ? 0 : sums[now][r - 1]; };
  if (blockIdx.x == 0) {  // adapter a follows the ids up to a - 1, which is counter a
    int64_t start = before_run(thread);
    for (int64_t a = from; a < to; ++a) starts[a] = start += totals[a];
  }

  int* before_chunk = counts + blockIdx.x * (adapters + 1);
  for (int64_t first = begin; first < end; first += kTile) {
    const int id = k < end ? checked_id(loaded, adapters) : -2;
    tile[thread / 4].v[thread % 4] = id;
    __syncthreads();
    int64_t position = 0;
    if (k < end) {
      const int64_t r = (id + 1) / run;
      position = before_run(r) + before_chunk[id + 1];
      for (int64_t a = r * run; a <= id; ++a) position += totals[a];
    }
    int before = 0;  // equal ids of this tile
#pragma unroll 4
    for (int n = 0; n <= thread; n += 4) {
      const Four four = tile[n / 4];
#pragma unroll
      for (int m = 0; m < 4; ++m) before += four.v[m] == id && n + m < thread;
    }
    if (k < end) positions[position + before] = k;
    if (first + kTile >= end) return;
    __syncthreads();  // all have read what the next tile finds higher
    atomicAdd(before_chunk + id + 1, 1);
    k += kTile;
    loaded = k < end ? ids[k] : -1;
    __syncthreads();
  }
}

}  // namespace

int64_t sort_rows_scratch(const Problem& problem) {
  const int64_t count = problem.ids.count, starts = problem.params.adapters + 1;
  return count + starts + (count <= kFewIds ? 0 : starts + (chunks_of(problem).count * starts + 1) / 2);
}

cudaError_t sort_rows(const Problem& problem, int64_t* scratch, SortedRows& out, cudaStream_t stream) {
  if (!fits(problem) || problem.ids.count >= int64_t{1} << 40) return cudaErrorInvalidValue;
  const int64_t adapters = problem.params.adapters, count = problem.ids.count;
  int64_t *positions = scratch, *starts = positions + count, *totals = starts + adapters + 1;
  int* counts = reinterpret_cast<int*>(totals + adapters + 1);
  out = {positions, starts};
  if (count <= kFewIds) {
    const int64_t queries = count + adapters + 1;
    const dim3 grid(static_cast<unsigned>((queries + kQueries - 1) / kQueries));
    launch(&sort_few_kernel, grid, dim3(kFewThreads), stream, problem.ids, adapters, positions, starts);
  } else {
    const Chunks chunks = chunks_of(problem);
    const dim3 grid(static_cast<unsigned>(chunks.count)), block(kTile);
    launch(&count_kernel, grid, block, stream, problem.ids, adapters, chunks.ids, counts);
    const dim3 adding(static_cast<unsigned>((adapters + kAddThreads) / kAddThreads));
    launch(&add_counts_kernel, adding, dim3(kAddThreads), stream, adapters, chunks.count, counts, totals);
    launch(&place_kernel, grid, block, stream, problem.ids, adapters, chunks.ids, counts, totals, starts, positions);
  }
  return cudaGetLastError();
}

}  // namespace road::cuda
