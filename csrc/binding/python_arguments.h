// How the calls in one step (call.h, fused_call.h) are methods of the module, and what they read from the objects that
// Python passes.  Without the headers of torch that have these objects, which take several times as long to compile.
#pragma once

#include <Python.h>

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>

namespace road::binding {

using at::Tensor;

// A method that takes `count` arguments by position.  Errors of C++ become Python's.
using MethodBody = PyObject* (*)(PyObject* const* args);
PyObject* run_method(MethodBody body, PyObject* const* args, Py_ssize_t given, Py_ssize_t count);
template <MethodBody body, Py_ssize_t count>
PyMethodDef method(const char* name) {
  PyObject* (*call)(PyObject*, PyObject* const*, Py_ssize_t) = [](PyObject*, PyObject* const* args, Py_ssize_t given) {
    return run_method(body, args, given, count);
  };
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)), METH_FASTCALL, nullptr};
}

// What a method returns where Python must decide.
inline PyObject* elsewhere() { return Py_NewRef(Py_NotImplemented); }

// While it lives, other threads may run Python.
class WithoutLock {
 public:
  WithoutLock() : state_(PyEval_SaveThread()) {}
  ~WithoutLock() { PyEval_RestoreThread(state_); }
  WithoutLock(const WithoutLock&) = delete;
  WithoutLock& operator=(const WithoutLock&) = delete;

 private:
  PyThreadState* state_;
};

// A tensor of PyTorch's own, or a parameter, whose numbers a kernel can reach: no subclass, wrapper or symbolic sizes.
bool is_plain(PyObject* object);

// The tensor that an object is.  Of find_tensor, which takes any object, null unless its sizes are numbers.
const Tensor& tensor_of(PyObject* object);
const Tensor* find_tensor(PyObject* object);
PyObject* to_python(Tensor tensor);

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
