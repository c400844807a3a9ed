#pragma once

#include <torch/csrc/utils/pybind.h>

namespace road::binding {

// Whether a call may go ahead.  Takes whatever Python passed; never raises.
bool is_valid(pybind11::handle x, pybind11::handle p, pybind11::handle q, pybind11::handle adapter_ids,
              pybind11::handle form, pybind11::handle group_size, bool batched);

}  // namespace road::binding
