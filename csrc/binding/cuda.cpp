// The CUDA kernels of the ops that road_kernels/ops/schemas.py declares.  Compiled by g++, never by nvcc.
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>

#if defined(ROAD_CUDA_SHIM)  // the kernels on the host, as a module of their own for the tests
#include <torch/csrc/utils/pybind.h>
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>
#endif

#include "binding/merge_ops.h"
#include "binding/rotate_ops.h"
#include "cuda/road_cuda.h"

namespace road::binding {
namespace {

#if defined(ROAD_CUDA_SHIM)
struct DeviceGuard {
  explicit DeviceGuard(const Tensor&) {}
};
cudaStream_t current_stream() { return nullptr; }
void check_launch(cudaError_t error) { TORCH_CHECK(error == cudaSuccess); }
#else
struct DeviceGuard {
  explicit DeviceGuard(const Tensor& x) : guard(x.device()) {}
  c10::cuda::CUDAGuard guard;
};
cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }
void check_launch(cudaError_t error) { C10_CUDA_CHECK(error); }
#endif

struct Cuda {
  using Guard = DeviceGuard;

  static Tensor output(const Tensor& like) {
    return at::empty(like.sizes(), like.options().memory_format(at::MemoryFormat::Contiguous));
  }

  static void check_ids(const Problem&) {}  // the kernels assert: reading ids here would synchronise
  static void check_invertible(const Problem& problem) {
    check_launch(cuda::refuse_singular(problem, current_stream()));
  }

  static void rotate(const Problem& problem, const Rows& x, const Rows& z, bool transposed) {
    check_launch(cuda::rotate(problem, x, z, transposed, current_stream()));
  }

  static void backward(const Arguments& arguments, const Rows& gz, const Rows& saved, bool from_output,
                       const Gradients& out) {
    const Problem& problem = arguments.problem();
    Tensor ids, positions, starts, scratch;
    cuda::SortedRows sorted;
    const bool parameters = out.gp || out.gq;
    const bool needs_sorting = parameters && problem.ids.data && problem.rows > 0;
    if (needs_sorting && cuda::can_sort_rows(problem)) {
      ids = at::empty({cuda::sort_rows_scratch(problem)}, arguments.options().dtype(at::kLong));
      check_launch(cuda::sort_rows(problem, ids.mutable_data_ptr<int64_t>(), sorted, current_stream()));
    } else if (needs_sorting) {  // torch's sort: stable and without synchronising, but six kernels or more
      const Tensor flat = arguments.ids().reshape({-1}).to(at::kLong);
      std::tie(ids, positions) = at::sort(flat, /*stable=*/true, /*dim=*/0, /*descending=*/false);
      starts = at::searchsorted(ids, at::arange(problem.params.adapters + 1, ids.options()));
      sorted = {ids.const_data_ptr<int64_t>(), positions.const_data_ptr<int64_t>(), starts.const_data_ptr<int64_t>()};
    }
    if (parameters) {
      const auto dtype = problem.dtype == DType::kFloat64 ? at::kDouble : at::kFloat;
      scratch = at::empty({cuda::backward_scratch(problem, gz, saved, out)}, arguments.options().dtype(dtype));
    }
    check_launch(cuda::backward(problem, gz, saved, from_output, out, sorted,
                                parameters ? scratch.mutable_data_ptr() : nullptr, current_stream()));
  }

  static void merge(const Problem& problem, const Matrix& w, const Matrix& z) {
    check_launch(cuda::merge(problem, w, z, current_stream()));
  }
};

}  // namespace

#if defined(ROAD_CUDA_SHIM)
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("rotate", rotate_op<Cuda>);
  m.def("rotate_", rotate_inplace_op<Cuda>);
  m.def("rotate_backward", rotate_backward_op<Cuda>);
  m.def("merge", merge_op<Cuda>);
  m.def("merge_", merge_inplace_op<Cuda>);
}
#else
TORCH_LIBRARY_IMPL(ROAD_NAMESPACE, CUDA, m) {
  m.impl("rotate", rotate_op<Cuda>);
  m.impl("rotate_", rotate_inplace_op<Cuda>);
  m.impl("rotate_backward", rotate_backward_op<Cuda>);
  m.impl("mix_rows", merge_op<Cuda>);
  m.impl("mix_rows_", merge_inplace_op<Cuda>);
}
#endif

}  // namespace road::binding
