#include "binding/refuse.h"

#include <c10/util/Exception.h>
#include <torch/csrc/utils/pybind.h>

#include <string>

namespace py = pybind11;

namespace road::binding {

void refuse(const char* module, const char* function, std::initializer_list<RefusedArgument> args) {
  std::string message = "road_kernels: C++ refuses what Python accepts";
  enum { kValue, kType, kIndex } kind = kValue;
  {
    py::gil_scoped_acquire gil;
    try {
      py::object check = py::module_::import(module).attr(function);
      // Dynamo, if it runs the caller, would compile the check as well, which then believes that it is being traced.
      if (py::module_::import("sys").attr("modules").contains("torch._dynamo"))
        check = py::module_::import("torch._dynamo").attr("disable")(check);
      py::tuple objects(args.size());
      for (size_t k = 0; k < args.size(); ++k)
        objects[k] = std::visit([](const auto& arg) { return py::cast(arg); }, args.begin()[k]);
      check(*objects);
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
