// Which row and which pairs a thread has, and which adapter its row uses: of kernels whose threads have one row or few.
#pragma once

#include "cuda/coefficients.cuh"
#include "cuda/rows.cuh"
#include "cuda/tuning.h"

namespace road::cuda {

// Up to so many threads, 32 bits suffice for their numbers.  Tests set it lower, to run the other code.
#ifndef ROAD_MOST_SMALL
#define ROAD_MOST_SMALL (int64_t{1} << 31)
#endif
constexpr int64_t kMostSmall = ROAD_MOST_SMALL;

// The rows that are read, what their adapters are, and how threads are numbered along them.
struct PairRows {
  RowMap x;
  IdMap ids;
  Params params;
  int64_t rows;
  Divisor threads_per_row, half_group;
  int row_threads, half;
  Form form;
  bool small;     // thread numbers are below 2^31
  bool prefetch;  // the rows are so few that the time is that of latencies
};

// `rows`: of each thread.
inline int64_t blocks_for(const Problem& problem, int64_t row_threads, int64_t rows) {
  return ((problem.rows + rows - 1) / rows * row_threads + kThreads - 1) / kThreads;
}

inline PairRows pair_rows(const Problem& problem, const Rows& x, int64_t row_threads, int64_t blocks, bool prefetch) {
  const int64_t half = problem.group_size / 2;
  return {RowMap(x),
          IdMap(problem),
          problem.params,
          problem.rows,
          Divisor(row_threads),
          Divisor(half),
          static_cast<int>(row_threads),
          static_cast<int>(half),
          problem.form,
          blocks * kThreads < kMostSmall,
          prefetch};
}

// A thread's number in its row, and the number of that row: of the first one, if a thread has several.
struct ThreadPlace {
  int64_t row;
  int number;
};

__device__ __forceinline__ ThreadPlace place_of_thread(const PairRows& a) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t row = a.small ? a.threads_per_row.divide(static_cast<uint32_t>(thread))
                              : static_cast<int64_t>(a.threads_per_row.divide(static_cast<uint64_t>(thread)));
  return {row, static_cast<int>(thread - row * a.row_threads)};
}

// The first feature of a pair.
template <class P>
__device__ __forceinline__ int first_feature(const PairRows& a, int pair) {
  return P::kAdjacent ? 2 * pair : pair + static_cast<int>(a.half_group.divide(static_cast<uint32_t>(pair))) * a.half;
}

// The number of a row's id among the ids; 0 without ids.
__device__ __forceinline__ int64_t id_number(const IdMap& ids, int64_t row) {
  return ids.data ? static_cast<int64_t>(ids.rows_per_id.divide(static_cast<uint64_t>(row))) : 0;
}

// Not checked yet, which waits for it: a kernel asks for it before it asks for rows, because tables wait for it, and
// checks it behind them.
__device__ __forceinline__ int64_t load_id(const IdMap& ids, int64_t number) {
  if (!ids.data) return 0;
  return ids.is_int64 ? static_cast<const int64_t*>(ids.data)[number] : static_cast<const int32_t*>(ids.data)[number];
}

__device__ __forceinline__ int adapter_of(const IdMap& ids, int64_t number) {
  return ids.data ? checked_id(load_id(ids, number), ids.adapters) : 0;
}

// The id while the kernel before this one still runs, which may be about to change it: past the L1 cache, and only to
// choose what to prefetch.  -1: nothing.
__device__ __forceinline__ int64_t early_id(const IdMap& ids, int64_t number) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  int64_t id = 0;
  if (ids.data)
    id = ids.is_int64 ? __ldcg(static_cast<const long long*>(ids.data) + number)
                      : __ldcg(static_cast<const int*>(ids.data) + number);
  return id < ids.adapters ? id : -1;
#else
  return -1;
#endif
}

template <class P>
__device__ __forceinline__ void prefetch_pairs(const typename P::Element* first, int half) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  prefetch(first);
  if (!P::kAdjacent) prefetch(first + half);
#endif
}

}  // namespace road::cuda
