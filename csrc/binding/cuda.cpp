// The CUDA kernels of the ops that road_kernels/ops/schemas.py declares.  Compiled by g++, never by nvcc.
#include <ATen/ops/empty.h>

#if defined(ROAD_CUDA_SHIM)  // the kernels on the host, as a module of their own for the tests
#include <pybind11/functional.h>
#include <torch/csrc/utils/pybind.h>
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>
#endif

#include "binding/fused_ops.h"
#include "binding/merge_ops.h"
#include "binding/rotate_ops.h"
#include "binding/tables_ops.h"
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

// The problem, its angles made into tables that `made` holds, if that is faster.
Problem with_tables(const Arguments& arguments, Tensor& made) {
  const Problem& problem = arguments.problem();
  if (!cuda::profits_from_tables(problem)) return problem;
  const bool wide = problem.dtype == DType::kFloat64;
  made =
      at::empty({2, problem.params.adapters, problem.dim}, arguments.options().dtype(wide ? at::kDouble : at::kFloat));
  char* r1 = static_cast<char*>(made.mutable_data_ptr());
  char* r2 = r1 + made.nbytes() / 2;
  check_launch(cuda::tables(problem, r1, r2, current_stream()));
  Problem found = problem;
  found.form = Form::kTable;
  const DType dtype = wide ? DType::kFloat64 : DType::kFloat32;
  found.params.p = r1, found.params.q = r2;
  found.params.p_dtype = found.params.q_dtype = dtype;
  found.params.p_stride = found.params.q_stride = problem.dim;
  return found;
}

// What gradients of parameters need beside their tensors: the rows sorted by adapter, and memory for sums.
struct Memory {
  template <class Count>
  Memory(const Arguments& arguments, const Gradients& out, const Count& scratch_numbers) {
    if (!out.gp && !out.gq) return;
    const Problem& problem = arguments.problem();
    if (problem.ids.data && problem.rows > 0) {
      order_ = at::empty({cuda::sort_rows_scratch(problem)}, arguments.options().dtype(at::kLong));
      check_launch(cuda::sort_rows(problem, order_.mutable_data_ptr<int64_t>(), sorted, current_stream()));
    }
    const auto dtype = problem.dtype == DType::kFloat64 ? at::kDouble : at::kFloat;
    scratch_ = at::empty({scratch_numbers()}, arguments.options().dtype(dtype));
    scratch = scratch_.mutable_data_ptr();
  }

  cuda::SortedRows sorted;
  void* scratch = nullptr;

 private:
  Tensor order_, scratch_;
};

struct Cuda {
  using Guard = DeviceGuard;

  static Tensor output(at::IntArrayRef sizes, const at::TensorOptions& options) {
    return at::empty(sizes, options.memory_format(at::MemoryFormat::Contiguous));
  }

  static void check_ids(const Problem&) {}  // the kernels assert: reading ids here would synchronise
  static void check_invertible(const Problem& problem) {
    check_launch(cuda::refuse_singular(problem, current_stream()));
  }

  static void rotate(const Arguments& arguments, const Rows& x, const Rows& z, bool overlap) {
    Tensor made;
    const Problem problem = with_tables(arguments, made);
    check_launch(cuda::rotate(problem, x, z, /*transposed=*/false, overlap, current_stream()));
  }

  static void backward(const Arguments& arguments, const Rows& gz, const Rows& saved, bool from_output,
                       const Gradients& out) {
    const Problem& problem = arguments.problem();
    Tensor made;
    const Memory memory(arguments, out, [&] { return cuda::backward_scratch(problem, gz, saved, out); });
    const Problem coefficients = out.gx.data ? with_tables(arguments, made) : problem;
    check_launch(cuda::backward(problem, coefficients, gz, saved, from_output, out, memory.sorted, memory.scratch,
                                current_stream()));
  }

  static void tables(const Problem& problem, void* r1, void* r2) {
    check_launch(cuda::tables(problem, r1, r2, current_stream()));
  }

  static void merge(const Problem& problem, const Matrix& w, const Matrix& z) {
    check_launch(cuda::merge(problem, w, z, current_stream()));
  }

  static void rotate_silu_mul(const Problem& problem, const Rows& x, const Rows& z) {
    check_launch(cuda::rotate_silu_mul(problem, x, z, current_stream()));
  }

  static void rotate_silu_mul_backward(const Arguments& arguments, const Rows& gz, const Rows& x,
                                       const Gradients& out) {
    const Problem& problem = arguments.problem();
    const Memory memory(arguments, out, [&] { return cuda::silu_mul_backward_scratch(problem, gz, x, out); });
    check_launch(cuda::rotate_silu_mul_backward(problem, gz, x, out, memory.sorted, memory.scratch, current_stream()));
  }

  static void rotate_add_rms_norm(const Problem& problem, const Rows& x, const Rows& residual, const RmsNorm& norm,
                                  const Rows& y, const Rows& s) {
    check_launch(cuda::rotate_add_rms_norm(problem, x, residual, norm, y, s, current_stream()));
  }

  static void add_rms_norm_backward(const Problem& problem, const Rows& gy, const Rows& gs, const Rows& s,
                                    const RmsNorm& norm, const Rows& out) {
    check_launch(cuda::add_rms_norm_backward(problem, gy, gs, s, norm, out, current_stream()));
  }

  static void check_positions(const Problem&, const Rope&) {}  // as ids
  static bool turns_in_place(const Problem& problem, const Rope& rope) { return cuda::turns_in_place(problem, rope); }
  static void rotate_rope(const Problem& problem, const Rows& qkv, const Rope& rope, const Rows& z) {
    check_launch(cuda::rotate_rope(problem, qkv, rope, z, current_stream()));
  }
};

}  // namespace

#if defined(ROAD_CUDA_SHIM)
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  namespace py = pybind11;
  m.def("rotate", rotate_op<Cuda>, py::arg("x"), py::arg("p"), py::arg("q"), py::arg("adapter_ids"), py::arg("form"),
        py::arg("group_size"), py::arg("overlap") = false);
  m.def("rotate_", rotate_inplace_op<Cuda>, py::arg("x"), py::arg("p"), py::arg("q"), py::arg("adapter_ids"),
        py::arg("form"), py::arg("group_size"), py::arg("check_invertible"), py::arg("overlap") = false);
  m.def("rotate_backward", rotate_backward_op<Cuda>);
  m.def("merge", merge_op<Cuda>);
  m.def("merge_", merge_inplace_op<Cuda>);
  m.def("tables", tables_op<Cuda>);
  m.def("rotate_silu_mul", rotate_silu_mul_op<Cuda>);
  m.def("rotate_silu_mul_backward", rotate_silu_mul_backward_op<Cuda>);
  m.def("rotate_add_rms_norm", rotate_add_rms_norm_op<Cuda>);
  m.def("rotate_add_rms_norm_", rotate_add_rms_norm_inplace_op<Cuda>);
  m.def("add_rms_norm_backward", add_rms_norm_backward_op<Cuda>);
  m.def("rotate_rope", rotate_rope_op<Cuda>);
  m.def("rotate_rope_", rotate_rope_inplace_op<Cuda>);
  m.def("launches", [] { return shim::Device::get().launches; });
  m.def("before_wait", [](std::function<void()> write) { shim::Device::get().before_wait = std::move(write); });
}
#else
TORCH_LIBRARY_IMPL(ROAD_NAMESPACE, CUDA, m) {
  m.impl("rotate", rotate_op<Cuda>);
  m.impl("rotate_", rotate_inplace_op<Cuda>);
  m.impl("rotate_backward", rotate_backward_op<Cuda>);
  m.impl("mix_rows", merge_op<Cuda>);
  m.impl("mix_rows_", merge_inplace_op<Cuda>);
  m.impl("tables", tables_op<Cuda>);
  m.impl("rotate_silu_mul", rotate_silu_mul_op<Cuda>);
  m.impl("rotate_silu_mul_backward", rotate_silu_mul_backward_op<Cuda>);
  m.impl("rotate_add_rms_norm", rotate_add_rms_norm_op<Cuda>);
  m.impl("rotate_add_rms_norm_", rotate_add_rms_norm_inplace_op<Cuda>);
  m.impl("add_rms_norm_backward", add_rms_norm_backward_op<Cuda>);
  m.impl("rotate_rope", rotate_rope_op<Cuda>);
  m.impl("rotate_rope_", rotate_rope_inplace_op<Cuda>);
}
#endif

}  // namespace road::binding
