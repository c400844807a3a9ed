#pragma once

#include "cuda/road_cuda.h"

namespace road::cuda {

// The gradient of x alone of rotate_silu_mul.  One kernel.
cudaError_t rotate_silu_mul_gradient(const Problem& problem, const Rows& gz, const Rows& x, const Rows& gx,
                                     cudaStream_t stream);

}  // namespace road::cuda
