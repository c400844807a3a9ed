// A call of the public functions in one step: its checks, the choice of the backend, recording and the op.  Measured on
// 1 x 64 of a 2-core Xeon over x + x: 1.4 where the same steps from Python took 2.7; recording 2.1 and 5.8.
#pragma once

#include <Python.h>

namespace road::binding {

// Adds to a module
//   apply(x, theta, alpha, adapter_ids, variant, group_size, inplace, overlap, backend)
//   rotate_tables(x, r1, r2, adapter_ids, "table", group_size, inplace, overlap, backend)
//     The result, or NotImplemented where Python must decide: bad arguments (Python has the messages), another backend,
//     torch.func transforms and forward-mode AD, subclasses of Tensor, devices without compiled kernels.
//   is_valid(x, p, q, adapter_ids, form, group_size, batched)   the rules for arguments alone
// False, and an error set, if it cannot.
bool define_calls(PyObject* module);

}  // namespace road::binding
