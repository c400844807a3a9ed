// Refuses blocks that no backward from the output can invert, before they are used: by an assertion on the device.
#include "columns.cuh"
#include "plan.h"
#include "road_cuda.h"
#include "singular.h"

namespace road::cuda {

// One block per adapter.  A is double: the same numbers as on the CPU.
template <class A>
__global__ void __launch_bounds__(kThreads) singular_kernel(Problem problem, double epsilon) {
  const int64_t adapter = blockIdx.x;
  if (problem.ids.data) {  // one that no row uses may be anything
    bool used = false;
    for (int64_t k = threadIdx.x; k < problem.ids.count; k += kThreads) used = used || problem.ids[k] == adapter;
    if (!__syncthreads_or(used)) return;
  }
  const int half = static_cast<int>(problem.group_size / 2), pairs = static_cast<int>(problem.dim / 2);
  const bool shared = is_shared(problem.form);
#pragma unroll 1
  for (int pair = threadIdx.x; pair < pairs; pair += kThreads) {
    const int i = shared ? pair : pair / half * 2 * half + pair % half;
    A r1i[1], r2i[1], r1j[1], r2j[1];
    load_coefs(problem, adapter, i, 1, r1i, r2i);
    load_coefs(problem, adapter, shared ? i : i + half, 1, r1j, r2j);
    assert(!is_singular(r1i[0], r1j[0], r2i[0], r2j[0], epsilon) &&
           "road_kernels: inplace=True recovers the input from the output, but a block is singular");
  }
}

cudaError_t refuse_singular(const Problem& problem, cudaStream_t stream) {
  if (problem.params.adapters > kMostAdapters) return cudaErrorInvalidValue;
  if (problem.rows == 0 || problem.params.adapters == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(problem.params.adapters));
  ROAD_LAUNCH(singular_kernel<double>, grid, dim3(kThreads), stream, problem, epsilon_of(problem.dtype));
  return cudaGetLastError();
}

}  // namespace road::cuda
