// A call of the fused public functions in one step, as call.h has rotate's: calls that record no gradient.
#pragma once

#include <Python.h>

namespace road::binding {

// Adds to a module
//   rotate_silu_mul(x, r1, r2, adapter_ids, group_size, backend)
//   rotate_add_rms_norm(x, residual, weight, r1, r2, adapter_ids, eps, group_size, inplace, backend)
//   rotate_rope(qkv, positions, cos_sin_cache, r1, r2, adapter_ids, num_heads, num_kv_heads, head_dim, is_neox,
//               group_size, inplace, backend)
//     The result, or NotImplemented where Python must decide.
// False, and an error set, if it cannot.
bool define_fused_calls(PyObject* module);

}  // namespace road::binding
