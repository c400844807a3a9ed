// Raising the errors of road_kernels/ops, which has the messages.
#pragma once

#include <c10/util/Exception.h>
#include <torch/csrc/utils/pybind.h>

#include <string>

namespace road::binding {

// Calls a function of road_kernels.ops that raises, and raises its error as one that C++ callers know too.
template <class... Args>
[[noreturn]] void refuse(const char* module, const char* function, const Args&... args) {
  namespace py = pybind11;
  std::string message = "road_kernels: C++ refuses what Python accepts";
  enum { kValue, kType, kIndex } kind = kValue;
  {
    py::gil_scoped_acquire gil;
    try {
      py::object check = py::module_::import(module).attr(function);
      // Dynamo, if it runs the caller, would compile the check as well, which then believes that it is being traced.
      if (py::module_::import("sys").attr("modules").contains("torch._dynamo"))
        check = py::module_::import("torch._dynamo").attr("disable")(check);
      check(args...);
    } catch (py::error_already_set& error) {
      message = py::str(error.value());
      kind = error.matches(PyExc_IndexError) ? kIndex : error.matches(PyExc_TypeError) ? kType : kValue;
    }
  }
  TORCH_CHECK_INDEX(kind != kIndex, message);
  TORCH_CHECK_TYPE(kind != kType, message);
  TORCH_CHECK_VALUE(false, message);
}

}  // namespace road::binding
