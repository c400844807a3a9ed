// From the partial sums that the blocks of a backward pass wrote, added in a fixed order, to the gradients of the
// parameters.
#pragma once

#include "cuda/coefficients.cuh"
#include "cuda/launch.cuh"
#include "cuda/moments.cuh"
#include "cuda/plan.h"
#include "cuda/road_cuda.h"

namespace road::cuda {

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
    load_coefs(problem.params, problem.form, static_cast<int>(problem.group_size), adapter, pair, 1, r1, r2);
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
    load_coefs(problem.params, problem.form, static_cast<int>(problem.group_size), adapter, i, 1, r1i, r2i);
    load_coefs(problem.params, problem.form, static_cast<int>(problem.group_size), adapter, j, 1, r1j, r2j);
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

constexpr int kReduceThreads = 256;

// A block takes V * blockDim.x pairs of one adapter.  Each of its blockDim.y slices adds every blockDim.y-th of the
// adapter's partial sums, V of them with one load; then the slices are added pairwise; all in double.
template <class A, bool Shared, int V>
__global__ void __launch_bounds__(kReduceThreads, Shared ? 4 : 2)
    reduce_kernel(Problem problem, Partition partition, SortedRows sorted, int tiles, Divisor by_tiles,
                  bool from_output, const A* scratch, Gradients out) {
  using Moments = MomentsOf<double, Shared>;
  constexpr int kCount = Moments::kCount;
  __shared__ double shared[kReduceThreads * kCount * V];
  wait_for_inputs();
  const int pairs = static_cast<int>(problem.dim / 2), width = blockDim.x * V;
  const int adapter = static_cast<int>(by_tiles.divide(blockIdx.x));
  const int tile_pair = (static_cast<int>(blockIdx.x) - adapter * tiles) * width;
  const int pair = tile_pair + threadIdx.x * V;
  const SlotRange slots = slots_of(partition, sorted, adapter);

  double sums[kCount][V] = {};
  if (pair < pairs) {
    const A* slot = scratch + (slots.first + threadIdx.y) * kCount * pairs + pair;
#pragma unroll 4
    for (int64_t s = threadIdx.y; s < slots.count; s += blockDim.y, slot += int64_t{blockDim.y} * kCount * pairs) {
#pragma unroll
      for (int m = 0; m < kCount; ++m) {
        const Pack<A, V> pack = load_pack<A, V, true>(slot + int64_t{m} * pairs);
#pragma unroll
        for (int v = 0; v < V; ++v) sums[m][v] += pack.v[v];
      }
    }
  }
  double* mine = shared + (threadIdx.y * kCount * blockDim.x + threadIdx.x) * V;  // [y][m][x][v]
  for (unsigned half = blockDim.y;;) {
#pragma unroll
    for (int m = 0; m < kCount; ++m)
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (threadIdx.y < half) mine[m * width + v] = sums[m][v];
    __syncthreads();
    if (half == 1) break;
    half /= 2;
    if (threadIdx.y < half) {
#pragma unroll
      for (int m = 0; m < kCount; ++m)
#pragma unroll
        for (int v = 0; v < V; ++v) sums[m][v] += mine[(half * kCount + m) * width + v];
    }
    __syncthreads();
  }
  for (int p = threadIdx.y * blockDim.x + threadIdx.x; p < width && tile_pair + p < pairs;
       p += blockDim.x * blockDim.y) {
    if (slots.count == 0) {
      write_zeros(problem, out, adapter, tile_pair + p);
      continue;
    }
    Moments total;
#pragma unroll
    for (int m = 0; m < kCount; ++m) total.at(m) = shared[m * width + p];
    finish<A>(problem, out, from_output, adapter, tile_pair + p, total);
  }
}

template <class A>
void launch_reduce(const Problem& problem, const Partition& partition, const SortedRows& sorted, bool from_output,
                   const A* scratch, const Gradients& out, cudaStream_t stream) {
  const int64_t adapters = problem.params.adapters, pairs = problem.dim / 2;
  if (adapters == 0) return;
  const auto start = [&](auto kernel, int64_t vector) {
    // Enough slices that each adds about four partial sums, if adapters have equal shares.
    int64_t slices = 2;
    while (slices < 64 && slices * 4 * adapters < partition.row_blocks) slices *= 2;
    const int64_t columns = slices < 4 ? 64 : kReduceThreads / slices, width = columns * vector;
    const int64_t tiles = (pairs + width - 1) / width;
    launch(kernel, dim3(static_cast<unsigned>(tiles * adapters)),
           dim3(static_cast<unsigned>(columns), static_cast<unsigned>(slices)), stream, problem, partition, sorted,
           static_cast<int>(tiles), Divisor(tiles), from_output, scratch, out);
  };
  constexpr int kVector = 16 / sizeof(A);
  const bool wide = pairs % kVector == 0;
  if (is_shared(problem.form))
    wide ? start(&reduce_kernel<A, true, kVector>, kVector) : start(&reduce_kernel<A, true, 1>, 1);
  else wide ? start(&reduce_kernel<A, false, kVector>, kVector) : start(&reduce_kernel<A, false, 1>, 1);
}

}  // namespace road::cuda
