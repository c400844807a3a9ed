// The coefficients of all adapters, from their angles.
#include "core/divisor.h"
#include "cuda/coefficients.cuh"
#include "cuda/launch.cuh"
#include "cuda/road_cuda.h"
#include "cuda/tuning.h"

namespace road::cuda {

// An entry of both tables a thread.
template <class A>
__global__ void __launch_bounds__(kThreads)
    tables_kernel(Params params, Form form, int group_size, int width, Divisor by_width, A* r1, A* r2) {
  wait_for_inputs();
  const int64_t entry = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t adapter = static_cast<int64_t>(by_width.divide(static_cast<uint64_t>(entry)));
  if (adapter >= params.adapters) return;
  A c[1], s[1];
  load_coefs(params, form, group_size, adapter, static_cast<int>(entry - adapter * width), 1, c, s);
  r1[entry] = c[0];
  r2[entry] = s[0];
}

bool profits_from_tables(const Problem& problem) {
  const int64_t element = problem.dtype == DType::kFloat64 ? 8 : 4, dim = problem.dim;
  const int64_t rows = problem.rows * dim * size_of(problem.dtype), made = problem.params.adapters * dim * 2 * element;
  const bool own_angles = problem.form == Form::kRoad2 || problem.form == Form::kRoad4;
  return own_angles && rows > kTableBytes && made <= rows / 16;
}

cudaError_t tables(const Problem& problem, void* r1, void* r2, cudaStream_t stream) {
  const int64_t width = is_shared(problem.form) ? problem.dim / 2 : problem.dim;
  const int64_t blocks = (problem.params.adapters * width + kThreads - 1) / kThreads;
  if (!fits(problem) || blocks > 0x7fffffff) return cudaErrorInvalidValue;
  if (blocks == 0) return cudaSuccess;
  const auto start = [&](auto a) {
    using A = decltype(a);
    launch(&tables_kernel<A>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream, problem.params, problem.form,
           static_cast<int>(problem.group_size), static_cast<int>(width), Divisor(width), static_cast<A*>(r1),
           static_cast<A*>(r2));
  };
  with_arithmetic(problem.dtype, start);
  return cudaGetLastError();
}

}  // namespace road::cuda
