// The Python module road_kernels._C: the ops as plain functions for eager calls, and what this build is.
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "binding/autograd.h"
#include "binding/call.h"
#include "binding/fused_call.h"
#include "binding/python_arguments.h"
#include "cpu/road_cpu.h"

namespace py = pybind11;

namespace road::binding {
namespace {

// The ops below the Autograd key, as the backends of Python call them.  1 us less than torch.ops.road_kernels.rotate
// from Python; still reaches fake tensors, modes and subclasses.
Tensor rotate(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
              std::string_view form, int64_t group_size, bool overlap) {
  py::gil_scoped_release unlocked;
  return rotate_below(x, p, q, adapter_ids, form, group_size, overlap);
}

void rotate_(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
             std::string_view form, int64_t group_size, bool check_invertible, bool overlap) {
  py::gil_scoped_release unlocked;
  rotate_inplace_below(x, p, q, adapter_ids, form, group_size, check_invertible, overlap);
}

std::tuple<Tensor, Tensor, Tensor> rotate_backward(const Tensor& grad, const Tensor& saved, const Tensor& p,
                                                   const Tensor& q, const OptionalTensor& adapter_ids,
                                                   std::string_view form, int64_t group_size, bool from_output,
                                                   std::array<bool, 3> output_mask) {
  py::gil_scoped_release unlocked;
  return rotate_backward_below(grad, saved, p, q, adapter_ids, form, group_size, from_output, output_mask);
}

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = __VERSION__;
  info["cpp_standard"] = __cplusplus / 100 % 100;
  info["cpu_isa"] = cpu::isa();
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#ifdef ROAD_CUDA_VERSION  // set by setup.py when the CUDA sources were compiled
  info["cuda"] = ROAD_CUDA_VERSION;
  info["cuda_architectures"] = ROAD_CUDA_ARCHITECTURES;
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = "";
#endif
  return info;
}

}  // namespace
}  // namespace road::binding

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of road_kernels.  Use the functions of the package, not these.";
  m.def("rotate", &road::binding::rotate, py::arg("x"), py::arg("p"), py::arg("q"), py::arg("adapter_ids"),
        py::arg("form"), py::arg("group_size"), py::arg("overlap") = false);
  m.def("rotate_", &road::binding::rotate_, py::arg("x"), py::arg("p"), py::arg("q"), py::arg("adapter_ids"),
        py::arg("form"), py::arg("group_size"), py::arg("check_invertible"), py::arg("overlap") = false);
  m.def("rotate_backward", &road::binding::rotate_backward);
  m.def("check_inplace", &road::binding::check_inplace);
  m.def("build_info", &road::binding::build_info);
  m.def("serve", &road::binding::set_served);
  m.def("count_choice", &road::binding::count_choice);
  if (!road::binding::define_calls(m.ptr()) || !road::binding::define_fused_calls(m.ptr()))
    throw py::error_already_set();
}
