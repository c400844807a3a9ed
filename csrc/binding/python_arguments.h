// What the calls in one step (call.h, fused_call.h) read from the objects that Python passes.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <string_view>

namespace road::binding {

using at::Tensor;

// A tensor of PyTorch's own, or a parameter, whose numbers a kernel can reach: no subclass, wrapper or symbolic sizes.
bool is_plain(PyObject* object);

// Of forward-mode AD.
bool has_tangent(const Tensor& t);

// Those of torch.func.
bool are_transforms_active();

// By the compiled kernels of x's device, chosen automatically or asked for by name.
bool is_served(const Tensor& x, PyObject* backend);

// False for objects that are not an int of 64 bits; a str.
bool read_int(PyObject* object, int64_t& value);
bool read_string(PyObject* object, std::string_view& value);

// Which devices the compiled kernels serve; and +1 where set_backend or use_backend asks for a backend, -1 where that
// ends.
void set_served(bool cpu, bool cuda);
void count_choice(const std::string& backend, int change);

}  // namespace road::binding
