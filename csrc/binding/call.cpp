#include "binding/call.h"

#include <ATen/core/grad_mode.h>

#include "binding/autograd.h"
#include "binding/check.h"
#include "binding/python_arguments.h"

namespace road::binding {
namespace {

// Whether a call of the public functions may go ahead: are_valid for whatever Python passed.  Never raises.
PyObject* is_valid(PyObject* const* args) {
  const Tensor *x = find_tensor(args[0]), *p = find_tensor(args[1]), *q = find_tensor(args[2]);
  const bool batched = args[6] == Py_True;
  const Tensor* ids = batched ? find_tensor(args[3]) : nullptr;
  std::string_view form;
  int64_t group_size;
  if (!x || !p || !q || (batched && !ids) || !read_string(args[4], form) || !read_int(args[5], group_size))
    return Py_NewRef(Py_False);
  const OptionalTensor ids_of = batched ? OptionalTensor(*ids) : std::nullopt;
  return PyBool_FromLong(are_valid(*x, *p, *q, ids_of, form, group_size));
}

// x, p, q, adapter_ids, form, group_size, inplace, overlap, backend.  `angles`: p and q are theta and alpha.
template <bool angles>
PyObject* call_rotate(PyObject* const* args) {
  PyObject *ids_ = args[3], *inplace_ = args[6], *overlap_ = args[7];
  if (!is_plain(args[0]) || !is_plain(args[1]) || !is_plain(args[2])) return elsewhere();
  const bool batched = ids_ != Py_None;
  if (batched && !is_plain(ids_)) return elsewhere();
  if (!PyBool_Check(inplace_) || !PyBool_Check(overlap_)) return elsewhere();
  std::string_view form;
  int64_t group_size;
  if (!read_string(args[4], form) || !read_int(args[5], group_size)) return elsewhere();
  const Tensor &x = tensor_of(args[0]), &p = tensor_of(args[1]), &q = tensor_of(args[2]);
  if (!is_served(x, args[8])) return elsewhere();
  if (angles == (form == "table")) return elsewhere();
  const OptionalTensor ids = batched ? OptionalTensor(tensor_of(ids_)) : std::nullopt;
  if (!are_valid(x, p, q, ids, form, group_size)) return elsewhere();
  if (are_transforms_active() || has_tangent(x) || has_tangent(p) || has_tangent(q)) return elsewhere();

  const bool inplace = inplace_ == Py_True, overlap = overlap_ == Py_True;
  const bool trained = p.requires_grad() || q.requires_grad();
  const bool records = at::GradMode::is_enabled() && (trained || x.requires_grad());
  if (inplace) {
    if (!x.is_contiguous()) return elsewhere();  // may overlap itself
    if (records && x.is_leaf() && x.requires_grad()) return elsewhere();
    if (records && !can_record_inplace(x)) return elsewhere();
  }
  Tensor z;
  {
    const WithoutLock unlocked;
    if (records) {
      z = rotate_recorded(x, p, q, ids, form, group_size, inplace);
    } else if (inplace) {
      rotate_inplace_below(x, p, q, ids, form, group_size, /*check_invertible=*/false, overlap && !trained);
    } else {
      z = rotate_below(x, p, q, ids, form, group_size, overlap && !trained);
    }
  }
  return inplace ? Py_NewRef(args[0]) : to_python(std::move(z));
}

PyMethodDef calls[] = {method<&call_rotate<true>, 9>("apply"),
                       method<&call_rotate<false>, 9>("rotate_tables"),
                       method<&is_valid, 7>("is_valid"),
                       {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool define_calls(PyObject* module) { return PyModule_AddFunctions(module, calls) == 0; }

}  // namespace road::binding
