// From the partial sums that the blocks of a backward pass wrote, added in a fixed order, to the gradients of the
// parameters.
#include "cuda/reduce.h"

#include "cuda/coefficients.cuh"
#include "cuda/launch.cuh"
#include "cuda/moments.cuh"

namespace road::cuda {
namespace {

// The parameters of a pair: those of both features, or of each, the second slots of road_4 behind the first.
template <class A, bool Shared>
struct PairParams {
  static constexpr int kMost = Shared ? 1 : 4;
  A p[kMost], q[kMost], sin[kMost], cos[kMost];  // sines only of angles

  // Of number n, within those of an adapter.
  static __device__ __forceinline__ int64_t index(const Problem& problem, int pair, int n) {
    if constexpr (Shared) return pair;
    const int g = static_cast<int>(problem.group_size);
    const auto [i, j] = features_of(pair, g / 2);
    // Those of feature j are as far behind those of i as in a table, in road_4's packing too.
    const int64_t at = (problem.form == Form::kRoad4 ? road4_slot0(i, g) : i) + (n % 2 ? j - i : 0);
    return n < 2 ? at : at + g;
  }
  __device__ __forceinline__ void load(const Problem& problem, int64_t adapter, int pair) {
    const Params& params = problem.params;
    const int count = Shared ? 1 : problem.form == Form::kRoad4 ? 4 : 2;
#pragma unroll
    for (int n = 0; n < kMost; ++n) {
      if (n >= count) break;
      const int64_t at = index(problem, pair, n);
      p[n] = load_as<A>(params.p, params.p_dtype, adapter * params.p_stride + at);
      q[n] = load_as<A>(params.q, params.q_dtype, adapter * params.q_stride + at);
      if (has_angles(problem.form)) sin_cos(p[n], sin[n], cos[n]);
    }
  }
};

__device__ __forceinline__ void write(const Problem& problem, const Gradients& out, int64_t adapter, int64_t index,
                                      double gp, double gq) {
  const int64_t at = adapter * param_width(problem.form, problem.dim) + index;
  if (out.gp) store_as(out.gp, problem.params.p_dtype, at, gp);
  if (out.gq) store_as(out.gq, problem.params.q_dtype, at, gq);
}

// Gradients of a pair whose features share their coefficients.
template <class A>
__device__ __forceinline__ void finish(const Problem& problem, const Gradients& out, bool from_output, int64_t adapter,
                                       int pair, const PairParams<A, true>& own, SharedMoments<double> sums) {
  if (problem.form != Form::kRoad1) {
    if (from_output) sums.from_output(own.p[0], own.q[0]);
    write(problem, out, adapter, pair, sums.dot, sums.cross);
  } else if (from_output) {  // gtheta = cross, galpha = dot / alpha, both of z
    write(problem, out, adapter, pair, sums.cross, sums.dot / static_cast<double>(own.q[0]));
  } else {
    const auto g = angle_gradients<double>(own.q[0], own.sin[0], own.cos[0], sums.dot, sums.cross);
    write(problem, out, adapter, pair, g.theta, g.alpha);
  }
}

// Gradients of a pair whose features have their own coefficients.
template <class A>
__device__ __forceinline__ void finish(const Problem& problem, const Gradients& out, bool from_output, int64_t adapter,
                                       int pair, const PairParams<A, false>& own, PairMoments<double> sums) {
  const bool angles = has_angles(problem.form), slots = problem.form == Form::kRoad4;
  const A(&sin)[4] = own.sin, (&cos)[4] = own.cos;
  if (from_output) {
    A r1[2], r2[2];
#pragma unroll
    for (int f = 0; f < 2; ++f) {
      r1[f] = angles ? own.q[f] * cos[f] : own.p[f];
      r2[f] = slots ? own.q[f + 2] * sin[f + 2] : angles ? own.q[f] * sin[f] : own.q[f];
    }
    sums.from_output(r1[0], r1[1], r2[0], r2[1]);
  }
  const double gr1[2] = {sums.ii, sums.jj}, gr2[2] = {-sums.ij, sums.ji};
#pragma unroll
  for (int f = 0; f < 2; ++f) {
    const int64_t at = own.index(problem, pair, f);
    if (!angles) {
      write(problem, out, adapter, at, gr1[f], gr2[f]);
      continue;
    }
    auto g = angle_gradients<double>(own.q[f], sin[f], cos[f], gr1[f], slots ? 0 : gr2[f]);
    write(problem, out, adapter, at, g.theta, g.alpha);
    if (!slots) continue;
    g = angle_gradients<double>(own.q[f + 2], sin[f + 2], cos[f + 2], 0, gr2[f]);
    write(problem, out, adapter, own.index(problem, pair, f + 2), g.theta, g.alpha);
  }
}

// Gradients of an adapter without a row: written as zeros, because computing them would give 0 * NaN = NaN where its
// parameters hold a NaN, and 0 / 0 where a block is singular.
__device__ __forceinline__ void write_zeros(const Problem& problem, const Gradients& out, int64_t adapter, int pair) {
  const int64_t pairs = problem.dim / 2, width = param_width(problem.form, problem.dim);
#pragma unroll 1
  for (int64_t index = pair; index < width; index += pairs) write(problem, out, adapter, index, 0, 0);
}

constexpr int kReduceThreads = 256;

// A block takes V * blockDim.x pairs of one adapter.  Each of its blockDim.y slices adds every blockDim.y-th of the
// adapter's partial sums, V of them with one load; then the slices are added; all in double, in a fixed order.
template <class A, bool Shared, int V>
__global__ void __launch_bounds__(kReduceThreads, Shared ? 4 : 2)
    reduce_kernel(Problem problem, Partition partition, SortedRows sorted, int tiles, Divisor by_tiles,
                  bool from_output, const A* scratch, Gradients out) {
  using Moments = MomentsOf<double, Shared>;
  constexpr int kCount = Moments::kCount;
  __shared__ double shared[kReduceThreads * kCount * V];
  const int pairs = static_cast<int>(problem.dim / 2), width = blockDim.x * V;
  const int adapter = static_cast<int>(by_tiles.divide(blockIdx.x));
  const int tile_pair = (static_cast<int>(blockIdx.x) - adapter * tiles) * width;
  const int pair = tile_pair + threadIdx.x * V;
  const SlotRange slots = slots_of(partition, sorted, adapter);

  // Of the pairs that a thread finishes.  All but the sums was there before the main kernel started, which is the only
  // one that this kernel may have to wait for: see wait_for_inputs.
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  constexpr int kOwn = Shared && V > 1 ? 2 : 1;  // as many as its registers hold
  PairParams<A, Shared> own[kOwn];
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const int p = thread + k * threads;
    if (p < width && tile_pair + p < pairs) own[k].load(problem, adapter, tile_pair + p);
  }
  wait_for_inputs();

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
  // The slices [y][m][x][v] are added eight at a time, each sum by a thread of its own.
#pragma unroll
  for (int m = 0; m < kCount; ++m)
#pragma unroll
    for (int v = 0; v < V; ++v) shared[((threadIdx.y * kCount + m) * blockDim.x + threadIdx.x) * V + v] = sums[m][v];
  __syncthreads();
  const int slice = kCount * width;
  for (int left = blockDim.y; left > 1;) {
    const int step = left > 8 ? left / 8 : 1;
    for (int k = thread; k < step * slice; k += threads) {
      double sum = shared[k];
#pragma unroll 7
      for (int s = step; s < left; s += step) sum += shared[k + s * slice];
      shared[k] = sum;
    }
    left = step;
    __syncthreads();
  }
  const auto finish_pair = [&](int p, const PairParams<A, Shared>& params) {
    if (slots.count == 0) return write_zeros(problem, out, adapter, tile_pair + p);
    Moments total;
#pragma unroll
    for (int m = 0; m < kCount; ++m) total.at(m) = shared[m * width + p];
    finish<A>(problem, out, from_output, adapter, tile_pair + p, params, total);
  };
#pragma unroll
  for (int k = 0; k < kOwn; ++k) {
    const int p = thread + k * threads;
    if (p < width && tile_pair + p < pairs) finish_pair(p, own[k]);
  }
  for (int p = thread + kOwn * threads; p < width && tile_pair + p < pairs; p += threads) {
    own[0].load(problem, adapter, tile_pair + p);
    finish_pair(p, own[0]);
  }
}

template <class A>
void launch_reduce(const Problem& problem, const Partition& partition, const SortedRows& sorted, bool from_output,
                   const A* scratch, const Gradients& out, cudaStream_t stream) {
  const int64_t adapters = problem.params.adapters, pairs = problem.dim / 2;
  if (adapters == 0) return;
  const auto start = [&](auto kernel, int64_t vector) {
    // Enough slices that each adds about four partial sums, if adapters have equal shares; one, without idle threads,
    // where most adapters have one or two.
    int64_t slices = partition.row_blocks < 2 * adapters ? 1 : 2;
    while (slices < 64 && slices * 4 * adapters < partition.row_blocks) slices *= 2;
    int64_t columns = slices == 2 ? 64 : kReduceThreads / slices;  // 128 would leave multiprocessors without a block
    while (columns > 32 && columns / 2 * vector >= pairs) columns /= 2;
    const int64_t width = columns * vector;
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

}  // namespace

void reduce(const Problem& problem, const Partition& partition, const SortedRows& sorted, bool from_output,
            const void* scratch, const Gradients& out, cudaStream_t stream) {
  if (problem.dtype == DType::kFloat64)
    launch_reduce(problem, partition, sorted, from_output, static_cast<const double*>(scratch), out, stream);
  else launch_reduce(problem, partition, sorted, from_output, static_cast<const float*>(scratch), out, stream);
}

}  // namespace road::cuda
