// The gradient of s, of which rotate_add_rms_norm stores the RMSNorm.  A row belongs to one block; where it has as many
// threads as packs, its numbers stay in registers between the sums and the end.
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

template <class T, int N, bool Aligned>
__global__ void __launch_bounds__(kMostThreads, 1)
    add_rms_norm_backward_kernel(const __grid_constant__ NormBackwardArguments a) {
  using A = Acc<T>;
  __shared__ A shared[2][32];
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const int packs = row < a.rows ? a.dim / N : 0;  // other rows are kept for the barriers
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
    with_dtype(a.norm.weight_dtype, [&](auto w) {
      load_run<Aligned>(static_cast<const decltype(w)*>(a.norm.weight) + pack * N, gn);
    });
#pragma unroll
    for (int k = 0; k < N; ++k) gn[k] *= widen(of_y.v[k]);
  };
  A squares = 0, products = 0;
#pragma unroll 1
  for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) {
    load(pack);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A v = widen(own.v[k]);
      squares += v * v;
      products += gn[k] * v;
    }
  }
  const A scale = inverse_rms(add_row(squares, shared[0]), a.dim, a.norm.eps);
  const A through = through_scale(add_row(products, shared[1]), a.dim, scale);
  T* out = row_of(a.out);
#pragma unroll 1
  for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) {
    if (packs > static_cast<int>(blockDim.x)) load(pack);
#pragma unroll
    for (int k = 0; k < N; ++k)
      narrow(normalized_gradient<A>(widen(given.v[k]), gn[k], widen(own.v[k]), scale, through), given.v[k]);
    store_pack<T, N, Aligned>(out + pack * N, given);
  }
}

}  // namespace

cudaError_t add_rms_norm_backward(const Problem& problem, const Rows& gy, const Rows& gs, const Rows& s,
                                  const RmsNorm& norm, const Rows& out, cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (problem.rows == 0) return cudaSuccess;
  const NormBackwardArguments a{RowMap(gy), RowMap(gs),   RowMap(s), RowMap(out), norm,
                                problem.rows, static_cast<int>(problem.dim)};
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = 16 / sizeof(T);
    const auto at_16_bytes = [&](const Rows& rows) {
      return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.outer_stride % N == 0 &&
             rows.inner_stride % N == 0;
    };
    const bool aligned = problem.dim % N == 0 && reinterpret_cast<uintptr_t>(norm.weight) % 16 == 0 &&
                         at_16_bytes(gy) && at_16_bytes(gs) && at_16_bytes(s) && at_16_bytes(out);
    const RowBlocks blocks(problem.rows, aligned ? problem.dim / N : problem.dim);
    if (aligned) launch(&add_rms_norm_backward_kernel<T, N, true>, blocks.grid, blocks.block, stream, a);
    else launch(&add_rms_norm_backward_kernel<T, 1, false>, blocks.grid, blocks.block, stream, a);
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
