// The gradient of s, of which rotate_add_rms_norm stores the RMSNorm.  A row belongs to one block; where it has as many
// threads as packs, all that is loaded is in registers before the barrier.
//
// Which elements a thread adds up depends on the width of a row and not on how they can be loaded, so that a row's
// gradient is bitwise the same wherever it lies in memory.
#include "cuda/coefficients.cuh"
#include "cuda/launch.cuh"
#include "cuda/road_cuda.h"
#include "cuda/row_sum.cuh"
#include "cuda/rows.cuh"

namespace road::cuda {
namespace {

struct NormBackwardArguments {
  RowMap gy, gs, s, out;
  RmsNorm norm;
  int64_t rows;
  int dim;
};

// Short: every thread of a row has one pack.  Longer rows are loaded twice, by blocks of half as many threads.
template <class T, int N, bool Aligned, bool Short>
__global__ void __launch_bounds__(Short || !Aligned ? kMostThreads : kMostThreads / 2, 1)
    add_rms_norm_backward_kernel(const __grid_constant__ NormBackwardArguments a) {
  using A = Acc<T>;
  __shared__ A shared[2 * 32];
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const int packs = row < a.rows ? a.dim / N : 0;  // other rows are kept for the barrier
  const auto row_of = [&](const RowMap& rows) {
    return static_cast<T*>(rows.data) + (packs > 0 ? rows.offset(static_cast<uint64_t>(row)) : 0);
  };
  const T *gy = row_of(a.gy), *gs = row_of(a.gs), *s = row_of(a.s);
  wait_for_inputs();
  Pack<T, N> own, given;
  A gn[N];  // weight times the gradient of y
  const auto load = [&](int pack) {
    own = load_pack<T, N, Aligned>(s + pack * N);
    given = load_pack<T, N, Aligned>(gs + pack * N);
    const Pack<T, N> of_y = load_pack<T, N, Aligned>(gy + pack * N);
    asm volatile("" ::: "memory");  // or the compiler moves loads behind weight's branches
    with_dtype(a.norm.weight_dtype,
               [&](auto w) { load_run<Aligned>(static_cast<const decltype(w)*>(a.norm.weight) + pack * N, gn); });
#pragma unroll
    for (int k = 0; k < N; ++k) gn[k] *= widen(of_y.v[k]);
  };
  A sums[2] = {};  // of the squares of s, and of its products with gn
  const auto for_each_pack = [&](const auto& visit) {
    if constexpr (Short) {
      if (const int pack = threadIdx.x; pack < packs) visit(pack);
    } else {
#pragma unroll 1
      for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) visit(pack);
    }
  };
  for_each_pack([&](int pack) {
    load(pack);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A v = widen(own.v[k]);
      sums[0] += v * v;
      sums[1] += gn[k] * v;
    }
  });
  add_row(sums, shared);
  const A scale = inverse_rms(sums[0], a.dim, a.norm.eps), through = through_scale(sums[1], a.dim, scale);
  T* out = row_of(a.out);
  for_each_pack([&](int pack) {
    if (!Short && packs > static_cast<int>(blockDim.x)) load(pack);
#pragma unroll
    for (int k = 0; k < N; ++k)
      narrow(normalized_gradient<A>(widen(given.v[k]), gn[k], widen(own.v[k]), scale, through), given.v[k]);
    store_pack<T, N, Aligned>(out + pack * N, given);
  });
}

}  // namespace

cudaError_t add_rms_norm_backward(const Problem& problem, const Rows& gy, const Rows& gs, const Rows& s,
                                  const RmsNorm& norm, const Rows& out, cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (problem.rows == 0) return cudaSuccess;
  const NormBackwardArguments a{
      RowMap(gy), RowMap(gs), RowMap(s), RowMap(out), norm, problem.rows, static_cast<int>(problem.dim)};
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = 16 / sizeof(T);
    const auto start = [&](auto* kernel, int64_t packs) {
      const RowBlocks blocks(problem.rows, packs, packs > kMostThreads ? kMostThreads / 2 : kMostThreads);
      launch(kernel, blocks.grid, blocks.block, stream, a);
    };
    if (problem.dim % N != 0) return start(&add_rms_norm_backward_kernel<T, 1, false, false>, problem.dim);
    bool aligned = reinterpret_cast<uintptr_t>(norm.weight) % 16 == 0;
    for (const Rows* rows : {&gy, &gs, &s, &out})
      aligned = aligned && reinterpret_cast<uintptr_t>(rows->data) % 16 == 0 && rows->outer_stride % N == 0 &&
                rows->inner_stride % N == 0;
    const int64_t packs = problem.dim / N;
    if (!aligned) start(&add_rms_norm_backward_kernel<T, N, false, false>, packs);
    else if (packs > kMostThreads) start(&add_rms_norm_backward_kernel<T, N, true, false>, packs);
    else start(&add_rms_norm_backward_kernel<T, N, true, true>, packs);
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
