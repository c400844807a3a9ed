// silu(gate) * up of rotated rows.
#include "cuda/silu_mul.cuh"

namespace road::cuda {

cudaError_t rotate_silu_mul(const Problem& problem, const Rows& x, const Rows& z, cudaStream_t stream) {
  return launch_silu_mul</*Gradient=*/false>(problem, x, {}, z, stream);
}

}  // namespace road::cuda
