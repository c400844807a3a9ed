// Z = R W for a matrix whose rows are the features.  Each element is read once and written once.
#include "core/divisor.h"
#include "cuda/coefficients.cuh"
#include "cuda/launch.cuh"
#include "cuda/road_cuda.h"
#include "cuda/tuning.h"

namespace road::cuda {

// A block takes kThreads packs of columns of one pair of rows; its four coefficients are the same for every thread.
template <class T, int N, bool Aligned>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(Problem problem, Matrix w, Matrix z, int64_t column_blocks, Divisor by_column_blocks) {
  using A = Acc<T>;
  wait_for_inputs();
  const int64_t pair = by_column_blocks.divide(blockIdx.x), half = problem.group_size / 2;
  const int64_t column = ((blockIdx.x - pair * column_blocks) * kThreads + threadIdx.x) * N;
  if (column >= problem.rows) return;
  const int narrow_pair = static_cast<int>(pair), narrow_half = static_cast<int>(half);
  const auto [i, j] = features_of(narrow_pair, narrow_half);
  const auto [ci, cj] = table_entries(is_shared(problem.form), narrow_pair, narrow_half);
  const Params& params = problem.params;
  const A r1i = load_as<A>(params.p, params.p_dtype, ci), r1j = load_as<A>(params.p, params.p_dtype, cj);
  const A r2i = load_as<A>(params.q, params.q_dtype, ci), r2j = load_as<A>(params.q, params.q_dtype, cj);

  const T* source = static_cast<const T*>(w.data) + column;
  T* target = static_cast<T*>(z.data) + column;
  Pack<T, N> a = load_pack<T, N, Aligned>(source + int64_t{i} * w.stride),
             b = load_pack<T, N, Aligned>(source + int64_t{j} * w.stride);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    A zi, zj;
    rotate_pair<A>(widen(a.v[k]), widen(b.v[k]), r1i, r1j, r2i, r2j, zi, zj);
    narrow(zi, a.v[k]);
    narrow(zj, b.v[k]);
  }
  store_pack<T, N, Aligned>(target + int64_t{i} * z.stride, a);
  store_pack<T, N, Aligned>(target + int64_t{j} * z.stride, b);
}

// Whether every row starts, and ends, on a 16-byte boundary.
static bool vectorizes(const Problem& problem, const Matrix& m, int64_t n) {
  return reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.stride % n == 0 && problem.rows % n == 0;
}

cudaError_t merge(const Problem& problem, const Matrix& w, const Matrix& z, cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (problem.rows == 0) return cudaSuccess;
  with_dtype(problem.dtype, [&](auto t) {
    using T = decltype(t);
    constexpr int N = 16 / sizeof(T);
    const auto start = [&](auto kernel, int64_t packs) {
      const int64_t column_blocks = (packs + kThreads - 1) / kThreads;
      const dim3 grid(static_cast<unsigned>(problem.dim / 2 * column_blocks)), block(kThreads);
      launch(kernel, grid, block, stream, problem, w, z, column_blocks, Divisor(column_blocks));
    };
    if (vectorizes(problem, w, N) && vectorizes(problem, z, N)) start(&merge_kernel<T, N, true>, problem.rows / N);
    else start(&merge_kernel<T, 1, false>, problem.rows);
  });
  return cudaGetLastError();
}

}  // namespace road::cuda
