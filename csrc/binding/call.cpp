#include "binding/call.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "binding/autograd.h"
#include "binding/check.h"
#include "binding/python_arguments.h"

namespace py = pybind11;

namespace road::binding {
namespace {

// Whether a call of the public functions may go ahead: are_valid for whatever Python passed.  Never raises.  0.9 us,
// where the same rules in Python take 4.3 us.
bool is_valid(py::handle x, py::handle p, py::handle q, py::handle ids, py::handle form_, py::handle group_size_,
              bool batched) {
  // A tensor whose sizes are numbers.
  const auto has_sizes = [](py::handle object) {
    return THPVariable_Check(object.ptr()) &&
           !THPVariable_Unpack(object.ptr()).unsafeGetTensorImpl()->has_symbolic_sizes_strides();
  };
  if (!has_sizes(x) || !has_sizes(p) || !has_sizes(q) || (batched && !has_sizes(ids))) return false;
  std::string_view form;
  int64_t group_size;
  if (!read_string(form_.ptr(), form) || !read_int(group_size_.ptr(), group_size)) return false;
  const OptionalTensor ids_of = batched ? OptionalTensor(THPVariable_Unpack(ids.ptr())) : std::nullopt;
  return are_valid(THPVariable_Unpack(x.ptr()), THPVariable_Unpack(p.ptr()), THPVariable_Unpack(q.ptr()), ids_of, form,
                   group_size);
}

// x, p, q, adapter_ids, form, group_size, inplace, overlap, backend.  `angles`: p and q are theta and alpha.
PyObject* call(PyObject* const* args, Py_ssize_t count, bool angles) {
  HANDLE_TH_ERRORS
  if (count != 9) {
    PyErr_SetString(PyExc_TypeError, "nine arguments are needed");
    return nullptr;
  }
  const auto elsewhere = [] { return Py_NewRef(Py_NotImplemented); };
  PyObject *ids_ = args[3], *inplace_ = args[6], *overlap_ = args[7];
  if (!is_plain(args[0]) || !is_plain(args[1]) || !is_plain(args[2])) return elsewhere();
  const bool batched = ids_ != Py_None;
  if (batched && !is_plain(ids_)) return elsewhere();
  if (!PyBool_Check(inplace_) || !PyBool_Check(overlap_)) return elsewhere();
  std::string_view form;
  int64_t group_size;
  if (!read_string(args[4], form) || !read_int(args[5], group_size)) return elsewhere();
  const Tensor &x = THPVariable_Unpack(args[0]), &p = THPVariable_Unpack(args[1]), &q = THPVariable_Unpack(args[2]);
  if (!is_served(x, args[8])) return elsewhere();
  if (angles == (form == "table")) return elsewhere();
  const OptionalTensor ids = batched ? OptionalTensor(THPVariable_Unpack(ids_)) : std::nullopt;
  if (!are_valid(x, p, q, ids, form, group_size)) return elsewhere();
  if (are_transforms_active() || has_tangent(x) || has_tangent(p) || has_tangent(q)) return elsewhere();

  const bool inplace = inplace_ == Py_True, overlap = overlap_ == Py_True;
  const bool trained = p.requires_grad() || q.requires_grad();
  const bool records = at::GradMode::is_enabled() && (trained || x.requires_grad());
  if (inplace) {
    if (!x.is_contiguous()) return elsewhere();  // may overlap itself
    if (records && x.is_leaf() && x.requires_grad()) return elsewhere();
    // Raises torch's own RuntimeError if autograd cannot record the write; the node would find out after it.
    if (records) torch::autograd::check_inplace(x, /*requires_grad=*/true);
  }
  Tensor z;
  {
    py::gil_scoped_release unlocked;
    if (records) {
      z = rotate_recorded(x, p, q, ids, form, group_size, inplace);
    } else if (inplace) {
      rotate_inplace_below(x, p, q, ids, form, group_size, /*check_invertible=*/false, overlap && !trained);
    } else {
      z = rotate_below(x, p, q, ids, form, group_size, overlap && !trained);
    }
  }
  return inplace ? Py_NewRef(args[0]) : THPVariable_Wrap(std::move(z));
  END_HANDLE_TH_ERRORS
}

PyObject* apply(PyObject*, PyObject* const* args, Py_ssize_t count) { return call(args, count, /*angles=*/true); }
PyObject* rotate(PyObject*, PyObject* const* args, Py_ssize_t count) { return call(args, count, /*angles=*/false); }

PyMethodDef methods[] = {
    {"apply", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&apply)), METH_FASTCALL, nullptr},
    {"rotate_tables", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&rotate)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void define_calls(py::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
  m.def("is_valid", &is_valid);
  m.def("serve", &set_served);
  m.def("count_choice", &count_choice);
}

}  // namespace road::binding
