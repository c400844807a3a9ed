#include "binding/fused_call.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>

#include <tuple>

#include "binding/fused_arguments.h"
#include "binding/op.h"
#include "binding/python_arguments.h"

namespace road::binding {
namespace {

// The first `count` arguments are tensors, and the next is adapter_ids, which may be None; all plain, on a device that
// the compiled kernels serve, and none of them asks for a gradient.
template <size_t count>
bool may_go(PyObject* const* args, PyObject* backend, OptionalTensor& ids) {
  for (size_t k = 0; k < count; ++k)
    if (!is_plain(args[k])) return false;
  if (args[count] != Py_None) {
    if (!is_plain(args[count])) return false;
    ids = tensor_of(args[count]);
  }
  if (!is_served(tensor_of(args[0]), backend) || are_transforms_active()) return false;
  for (size_t k = 0; k < count; ++k) {
    if (has_tangent(tensor_of(args[k]))) return false;
    if (at::GradMode::is_enabled() && tensor_of(args[k]).requires_grad()) return false;
  }
  return true;
}

// Below the Autograd key, without Python's lock.
template <class Handle, class... Args>
auto call_below(const Handle& op, const Args&... args) {
  const WithoutLock unlocked;
  at::AutoDispatchBelowADInplaceOrView below;
  return op.call(args...);
}

PyObject* silu_mul(PyObject* const* args) {
  OptionalTensor ids;
  int64_t group_size;
  if (!may_go<3>(args, args[5], ids) || !read_int(args[4], group_size)) return elsewhere();
  const Tensor &x = tensor_of(args[0]), &r1 = tensor_of(args[1]), &r2 = tensor_of(args[2]);
  if (!is_silu_mul(x, r1, r2, ids, group_size)) return elsewhere();
  static const auto op =
      find<Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, int64_t)>("rotate_silu_mul");
  return to_python(call_below(op, x, r1, r2, ids, group_size));
}

PyObject* add_rms_norm(PyObject* const* args) {
  OptionalTensor ids;
  int64_t group_size;
  if (!may_go<5>(args, args[9], ids) || !PyFloat_CheckExact(args[6]) || !read_int(args[7], group_size) ||
      !PyBool_Check(args[8]))
    return elsewhere();
  const Tensor &x = tensor_of(args[0]), &residual = tensor_of(args[1]), &weight = tensor_of(args[2]),
               &r1 = tensor_of(args[3]), &r2 = tensor_of(args[4]);
  const double eps = PyFloat_AS_DOUBLE(args[6]);
  if (!is_add_rms_norm(x, residual, weight, r1, r2, ids, eps, group_size)) return elsewhere();
  if (args[8] == Py_False) {
    static const auto op =
        find<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                        const OptionalTensor&, double, int64_t)>("rotate_add_rms_norm");
    auto [y, s] = call_below(op, x, residual, weight, r1, r2, ids, eps, group_size);
    return Py_BuildValue("(NN)", to_python(std::move(y)), to_python(std::move(s)));
  }
  if (!x.is_contiguous() || !residual.is_contiguous() || !are_written_apart(x, residual, weight, r1, r2))
    return elsewhere();
  static const auto op = find<void(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                   const OptionalTensor&, double, int64_t)>("rotate_add_rms_norm_");
  call_below(op, x, residual, weight, r1, r2, ids, eps, group_size);
  return PyTuple_Pack(2, args[0], args[1]);
}

PyObject* rope(PyObject* const* args) {
  OptionalTensor ids;
  int64_t num_heads, num_kv_heads, head_dim, group_size;
  if (!may_go<5>(args, args[12], ids) || !read_int(args[6], num_heads) || !read_int(args[7], num_kv_heads) ||
      !read_int(args[8], head_dim) || !PyBool_Check(args[9]) || !read_int(args[10], group_size) ||
      !PyBool_Check(args[11]))
    return elsewhere();
  const Tensor &qkv = tensor_of(args[0]), &positions = tensor_of(args[1]), &cache = tensor_of(args[2]),
               &r1 = tensor_of(args[3]), &r2 = tensor_of(args[4]);
  const bool is_neox = args[9] == Py_True;
  if (!is_rope(qkv, positions, cache, r1, r2, ids, num_heads, num_kv_heads, head_dim, group_size)) return elsewhere();
  if (args[11] == Py_False) {
    static const auto op = find<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                       const OptionalTensor&, int64_t, int64_t, int64_t, bool, int64_t)>("rotate_rope");
    return to_python(
        call_below(op, qkv, positions, cache, r1, r2, ids, num_heads, num_kv_heads, head_dim, is_neox, group_size));
  }
  if (!qkv.is_contiguous() || share_memory(qkv, r1) || share_memory(qkv, r2) || share_memory(qkv, cache))
    return elsewhere();
  static const auto op = find<void(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                   const OptionalTensor&, int64_t, int64_t, int64_t, bool, int64_t)>("rotate_rope_");
  call_below(op, qkv, positions, cache, r1, r2, ids, num_heads, num_kv_heads, head_dim, is_neox, group_size);
  return Py_NewRef(args[0]);
}

PyMethodDef fused_calls[] = {method<&silu_mul, 6>("rotate_silu_mul"),
                             method<&add_rms_norm, 10>("rotate_add_rms_norm"),
                             method<&rope, 13>("rotate_rope"),
                             {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool define_fused_calls(PyObject* module) { return PyModule_AddFunctions(module, fused_calls) == 0; }

}  // namespace road::binding
