// Gradients of rotate.
#include "cuda/backward.cuh"
#include "cuda/road_cuda.h"

namespace road::cuda {

int64_t backward_scratch(const Problem& problem, const Rows& gz, const Rows& saved, const Gradients& out) {
  return scratch_of<Given>(problem, gz, saved, out);
}

cudaError_t backward(const Problem& problem, const Problem& coefficients, const Rows& gz, const Rows& saved,
                     bool from_output, const Gradients& out, const SortedRows& sorted, void* scratch,
                     cudaStream_t stream) {
  if (!fits(problem)) return cudaErrorInvalidValue;
  if (!out.gp && !out.gq)
    return out.gx.data ? rotate(coefficients, gz, out.gx, /*transposed=*/true, /*overlap=*/false, stream) : cudaSuccess;
  return launch_backward<Given>(problem, coefficients, gz, saved, from_output, out, sorted, scratch, stream);
}

}  // namespace road::cuda
