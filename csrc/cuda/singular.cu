// Refuses blocks that a backward from the output could not invert, by an assertion on the device before they are used.
#include "core/singular.h"

#include "cuda/coefficients.cuh"
#include "cuda/launch.cuh"
#include "cuda/road_cuda.h"
#include "cuda/tuning.h"

namespace road::cuda {

// One or several blocks (grid.y) per adapter.  A is double, as on the CPU.
template <class A>
__global__ void __launch_bounds__(kThreads) singular_kernel(Problem problem, double epsilon) {
  wait_for_inputs();
  const int64_t adapter = blockIdx.x;
  if (problem.ids.data) {  // an adapter that no row uses may hold anything
    bool used = false;
    for (int64_t k = threadIdx.x; !used && k < problem.ids.count; k += kThreads) used = problem.ids[k] == adapter;
    if (!__syncthreads_or(used)) return;
  }
  const int half = static_cast<int>(problem.group_size / 2), pairs = static_cast<int>(problem.dim / 2);
  const bool shared = is_shared(problem.form);
#pragma unroll 1
  for (int pair = blockIdx.y * kThreads + threadIdx.x; pair < pairs; pair += gridDim.y * kThreads) {
    const auto [i, j] = table_entries(shared, pair, half);
    A r1i[1], r2i[1], r1j[1], r2j[1];
    load_coefs(problem.params, problem.form, 2 * half, adapter, i, 1, r1i, r2i);
    if (shared) r1j[0] = r1i[0], r2j[0] = r2i[0];
    else load_coefs(problem.params, problem.form, 2 * half, adapter, j, 1, r1j, r2j);
    assert(!is_singular(r1i[0], r1j[0], r2i[0], r2j[0], epsilon) &&
           "road_kernels: inplace=True recovers the input from the output, but a block is singular");
  }
}

cudaError_t refuse_singular(const Problem& problem, cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (problem.rows == 0 || problem.params.adapters == 0) return cudaSuccess;
  // As many blocks an adapter as it has pairs for, but about 1024 in all, because each reads the ids first.
  const int64_t most = 1024 / problem.params.adapters, wanted = (problem.dim / 2 + kThreads - 1) / kThreads;
  const int64_t parts = wanted < most ? wanted : most > 1 ? most : 1;
  const dim3 grid(static_cast<unsigned>(problem.params.adapters), static_cast<unsigned>(parts));
  launch(&singular_kernel<double>, grid, dim3(kThreads), stream, problem, epsilon_of(problem.dtype));
  return cudaGetLastError();
}

}  // namespace road::cuda
