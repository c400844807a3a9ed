// A call of the public functions in one step: its checks, the choice of the backend, recording and the op.  Measured on
// 1 x 64 of a 2-core Xeon over x + x: 1.4 where the same steps from Python took 2.7; recording 2.1 and 5.8.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace road::binding {

// Defines in `m`
//   apply(x, theta, alpha, adapter_ids, variant, group_size, inplace, overlap, backend) and rotate_tables(x, r1, r2,
//   ...)
//     the result, or NotImplemented where Python must decide: bad arguments (Python has the messages), a backend asked
//     for, torch.func transforms and forward-mode AD, subclasses of Tensor, devices without compiled kernels;
//   serve(cpu, cuda)          which devices the compiled kernels serve;
//   override_backend(change)  +1 and -1 around the time in which a backend is forced: all calls then go by Python.
void define_calls(pybind11::module_& m);

}  // namespace road::binding
