#pragma once

#include <torch/csrc/utils/pybind.h>

namespace road::binding {

// Whether a call may go ahead.  Takes whatever Python passed; never raises.
bool is_valid(pybind11::handle x, pybind11::handle p, pybind11::handle q, pybind11::handle adapter_ids,
              pybind11::handle form, pybind11::handle group_size, bool batched);

// Raises torch's own RuntimeError if autograd cannot record a write to x: a leaf, a view of one, one of several views
// that an op returned.  autograd.Function finds out only after the kernel has written.
void check_inplace(const at::Tensor& x);

}  // namespace road::binding
