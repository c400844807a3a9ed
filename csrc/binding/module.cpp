// The Python module road_kernels._C: the ops as plain functions for eager calls, and what this build is.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "arguments.h"
#include "road_cpu.h"
#include "validate.h"

namespace py = pybind11;

namespace road::binding {
namespace {

// Calling the dispatcher from here takes 1 us less than torch.ops.road_kernels.rotate from Python, and still reaches
// fake tensors, modes and subclasses.  Autograd is below us: road_kernels/_autograd.py has already dealt with it.
template <class Op, class... Args>
auto call(const Op& op, const Args&... args) {
  py::gil_scoped_release unlocked;
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(args...);
}

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>();
}

Tensor rotate(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
              std::string_view form, int64_t group_size) {
  using Op = Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, std::string_view, int64_t);
  static const auto op = find<Op>("road_kernels::rotate");
  return call(op, x, p, q, adapter_ids, form, group_size);
}

void rotate_(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
             std::string_view form, int64_t group_size, bool check_invertible) {
  using Op = void(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, std::string_view, int64_t, bool);
  static const auto op = find<Op>("road_kernels::rotate_");
  call(op, x, p, q, adapter_ids, form, group_size, check_invertible);
}

std::tuple<Tensor, Tensor, Tensor> rotate_backward(const Tensor& grad, const Tensor& saved, const Tensor& p,
                                                   const Tensor& q, const OptionalTensor& adapter_ids,
                                                   std::string_view form, int64_t group_size, bool from_output,
                                                   std::array<bool, 3> output_mask) {
  using Op = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                const OptionalTensor&, std::string_view, int64_t, bool,
                                                std::array<bool, 3>);
  static const auto op = find<Op>("road_kernels::rotate_backward");
  return call(op, grad, saved, p, q, adapter_ids, form, group_size, from_output, output_mask);
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
  m.def("rotate", &road::binding::rotate);
  m.def("rotate_", &road::binding::rotate_);
  m.def("rotate_backward", &road::binding::rotate_backward);
  m.def("check_inplace", &road::binding::check_inplace);
  m.def("is_valid", &road::binding::is_valid);
  m.def("build_info", &road::binding::build_info);
}
