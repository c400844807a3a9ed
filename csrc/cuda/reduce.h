// The second kernel of a backward pass.
#pragma once

#include "cuda/plan.h"
#include "cuda/road_cuda.h"

namespace road::cuda {

// Adds the sums that blocks wrote to `scratch` (see Partition and moments.cuh) and writes the gradients of the
// parameters.
void reduce(const Problem& problem, const Partition& partition, const SortedRows& sorted, bool from_output,
            const void* scratch, const Gradients& out, cudaStream_t stream);

}  // namespace road::cuda
