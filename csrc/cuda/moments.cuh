// Partial sums of gz h^T (see core/rotate.h): written by the blocks of a backward pass, reduced in a fixed order, and
// converted to the gradients of the parameters.
#pragma once

#include "cuda/coefficients.cuh"
#include "cuda/road_cuda.h"

namespace road::cuda {

template <bool Shared>
constexpr int kMoments = Shared ? 2 : 4;  // sums per pair

// The sums of one pair, as an array of kMoments numbers.
template <class A, bool Shared>
struct MomentsOf : PairMoments<A> {
  static constexpr int kCount = 4;
  __device__ __forceinline__ A& at(int m) {
    return m == 0 ? this->ii : m == 1 ? this->ij : m == 2 ? this->ji : this->jj;
  }
};
template <class A>
struct MomentsOf<A, true> : SharedMoments<A> {
  static constexpr int kCount = 2;
  __device__ __forceinline__ A& at(int m) { return m == 0 ? this->dot : this->cross; }
};

// Adds the sums of the threads of a column (threadIdx.y, in order); the first thread gets the totals.  `shared` holds
// the sums of one row of threads: at most kThreads / 2 of them where there is more than one row.
template <class A, int K, class Moments>
__device__ __forceinline__ void add_columns(Moments (&sums)[K], A* shared) {
#pragma unroll 1
  for (unsigned y = 1; y < blockDim.y; ++y) {
    __syncthreads();
#pragma unroll
    for (int n = 0; n < K * Moments::kCount; ++n)
      if (threadIdx.y == y) shared[n * blockDim.x + threadIdx.x] = sums[n % K].at(n / K);
    __syncthreads();
#pragma unroll
    for (int n = 0; n < K * Moments::kCount; ++n)
      if (threadIdx.y == 0) sums[n % K].at(n / K) += shared[n * blockDim.x + threadIdx.x];
  }
}

// Writes kCount arrays of `pairs` sums to `slot`, which is aligned to 16 bytes if Aligned.
template <bool Aligned, class A, int K, class Moments>
__device__ __forceinline__ void write_sums(Moments (&sums)[K], A* slot, int pairs) {
  constexpr int N = K * sizeof(A) <= 16 ? K : 16 / sizeof(A);
#pragma unroll
  for (int m = 0; m < Moments::kCount; ++m) {
#pragma unroll
    for (int k = 0; k < K; k += N) {
      Pack<A, N> pack;
#pragma unroll
      for (int n = 0; n < N; ++n) pack.v[n] = sums[k + n].at(m);
      store_pack<A, N, Aligned>(slot + int64_t{m} * pairs + k, pack);
    }
  }
}

constexpr int kReducePairs = 32, kReduceSlices = 16;

template <class A>
__device__ __forceinline__ void write_angles(const Problem& problem, const Gradients& out, int64_t adapter,
                                             int64_t index, double gr1, double gr2) {
  const Params& params = problem.params;
  A sin, cos;
  sin_cos(load_as<A>(params.p, params.p_dtype, adapter * params.p_stride + index), sin, cos);
  const A alpha = load_as<A>(params.q, params.q_dtype, adapter * params.q_stride + index);
  const auto g = angle_gradients<double>(alpha, sin, cos, gr1, gr2);
  const int64_t at = adapter * param_width(problem.form, problem.dim) + index;
  if (out.gp) store_as(out.gp, problem.params.p_dtype, at, g.theta);
  if (out.gq) store_as(out.gq, problem.params.q_dtype, at, g.alpha);
}

__device__ __forceinline__ void write_table(const Problem& problem, const Gradients& out, int64_t adapter,
                                            int64_t index, double gr1, double gr2) {
  const int64_t at = adapter * param_width(problem.form, problem.dim) + index;
  if (out.gp) store_as(out.gp, problem.params.p_dtype, at, gr1);
  if (out.gq) store_as(out.gq, problem.params.q_dtype, at, gr2);
}

// Gradients of a pair whose rows share their coefficients.
template <class A>
__device__ __forceinline__ void finish(const Problem& problem, const Gradients& out, bool from_output, int64_t adapter,
                                       int pair, SharedMoments<double> sums) {
  if (problem.form == Form::kRoad1 && from_output) {  // gtheta = cross, galpha = dot / alpha, both of z
    const double alpha = load_as<A>(problem.params.q, problem.params.q_dtype, adapter * problem.params.q_stride + pair);
    return write_table(problem, out, adapter, pair, sums.cross, sums.dot / alpha);
  }
  if (problem.form == Form::kRoad1) return write_angles<A>(problem, out, adapter, pair, sums.dot, sums.cross);
  if (from_output) {
    A r1[1], r2[1];
    load_coefs(problem, adapter, pair, 1, r1, r2);
    sums.from_output(r1[0], r2[0]);
  }
  write_table(problem, out, adapter, pair, sums.dot, sums.cross);
}

// Gradients of a pair whose rows have their own coefficients.
template <class A>
__device__ __forceinline__ void finish(const Problem& problem, const Gradients& out, bool from_output, int64_t adapter,
                                       int pair, PairMoments<double> sums) {
  const int g = static_cast<int>(problem.group_size);
  const auto [i, j] = features_of(pair, g / 2);
  if (from_output) {
    A r1i[1], r1j[1], r2i[1], r2j[1];
    load_coefs(problem, adapter, i, 1, r1i, r2i);
    load_coefs(problem, adapter, j, 1, r1j, r2j);
    sums.from_output(r1i[0], r1j[0], r2i[0], r2j[0]);
  }
  // Parameters of feature j are as far behind those of i as in a table, in road_4's packing too.
  const int64_t at_i = problem.form == Form::kRoad4 ? road4_slot0(i, g) : i, at[2] = {at_i, at_i + j - i};
  const double gr1[2] = {sums.ii, sums.jj}, gr2[2] = {-sums.ij, sums.ji};
#pragma unroll
  for (int f = 0; f < 2; ++f) {
    if (problem.form == Form::kTable) {
      write_table(problem, out, adapter, at[f], gr1[f], gr2[f]);
    } else if (problem.form == Form::kRoad2) {
      write_angles<A>(problem, out, adapter, at[f], gr1[f], gr2[f]);
    } else {
      write_angles<A>(problem, out, adapter, at[f], gr1[f], 0);
      write_angles<A>(problem, out, adapter, at[f] + g, 0, gr2[f]);
    }
  }
}

// Gradients of an adapter without a row: written as zeros, because computing them would give 0 * NaN = NaN where its
// parameters hold a NaN, and 0 / 0 where a block is singular.
__device__ __forceinline__ void write_zeros(const Problem& problem, const Gradients& out, int64_t adapter, int pair) {
  const int64_t pairs = problem.dim / 2, width = param_width(problem.form, problem.dim);
#pragma unroll 1
  for (int64_t index = pair; index < width; index += pairs) write_table(problem, out, adapter, index, 0, 0);
}

// One block per 32 pairs and adapter.  16 slices of threads each add every 16th of the adapter's partial sums, then the
// slices are added in order; all in double.
template <class A, bool Shared>
__global__ void __launch_bounds__(kReducePairs* kReduceSlices)
    reduce_kernel(Problem problem, SortedRows sorted, int64_t block_rows, bool from_output, const A* scratch,
                  Gradients out) {
  using Moments = MomentsOf<double, Shared>;
  __shared__ double slices[kReduceSlices][kReducePairs];
  const int pairs = static_cast<int>(problem.dim / 2);
  const int pair = static_cast<int>(blockIdx.x * kReducePairs + threadIdx.x);
  for (int64_t adapter = blockIdx.y; adapter < problem.params.adapters; adapter += gridDim.y) {
    int64_t begin = 0, end = problem.rows;
    if (sorted.starts) {
      begin = sorted.starts[adapter] * problem.ids.rows_per_id;
      end = sorted.starts[adapter + 1] * problem.ids.rows_per_id;
    }
    Moments sums = {};
    if (begin < end && pair < pairs) {
      const int64_t first = begin / block_rows, last = (end - 1) / block_rows;
      for (int64_t b = first + threadIdx.y; b <= last; b += kReduceSlices) {
        const A* slot = scratch + (b + adapter) * Moments::kCount * pairs + pair;
#pragma unroll
        for (int m = 0; m < Moments::kCount; ++m) sums.at(m) += slot[int64_t{m} * pairs];
      }
    }
#pragma unroll
    for (int m = 0; m < Moments::kCount; ++m) {
      __syncthreads();
      slices[threadIdx.y][threadIdx.x] = sums.at(m);
      __syncthreads();
      if (threadIdx.y == 0)
        for (int s = 1; s < kReduceSlices; ++s) sums.at(m) += slices[s][threadIdx.x];
    }
    if (threadIdx.y == 0 && pair < pairs) {
      if (begin < end) finish<A>(problem, out, from_output, adapter, pair, sums);
      else write_zeros(problem, out, adapter, pair);
    }
  }
}

template <class A>
void launch_reduce(const Problem& problem, const SortedRows& sorted, int64_t block_rows, bool from_output,
                   const A* scratch, const Gradients& out, cudaStream_t stream) {
  if (problem.params.adapters == 0) return;
  const int64_t adapters = problem.params.adapters < 65535 ? problem.params.adapters : 65535;
  const int64_t pair_blocks = (problem.dim / 2 + kReducePairs - 1) / kReducePairs;
  const dim3 grid(static_cast<unsigned>(pair_blocks), static_cast<unsigned>(adapters));
  const dim3 block(kReducePairs, kReduceSlices);
  if (is_shared(problem.form))
    ROAD_LAUNCH((reduce_kernel<A, true>), grid, block, stream, problem, sorted, block_rows, from_output, scratch, out);
  else
    ROAD_LAUNCH((reduce_kernel<A, false>), grid, block, stream, problem, sorted, block_rows, from_output, scratch, out);
}

}  // namespace road::cuda
