#include "binding/python_arguments.h"

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <atomic>

namespace road::binding {
namespace {

// What Python's table of backends says of the compiled kernels of a device.
struct Kernels {
  const char* name;  // of the backend, and of the device type
  std::atomic<bool> usable{false};
  std::atomic<int> others{0};  // how many set_backend and use_backend, in any thread, ask for another backend
};
Kernels cpu_kernels{"cpu"}, cuda_kernels{"cuda"};

}  // namespace

PyObject* run_method(MethodBody body, PyObject* const* args, Py_ssize_t given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (given == count) return body(args);
  return PyErr_Format(PyExc_TypeError, "%zd arguments are needed, got %zd", count, given);
  END_HANDLE_TH_ERRORS
}

bool is_plain(PyObject* object) {
  if (!THPVariable_CheckTypeExact(Py_TYPE(object))) return false;
  const at::TensorImpl* impl = THPVariable_Unpack(object).unsafeGetTensorImpl();
  constexpr c10::DispatchKeySet kWrappers({c10::DispatchKey::Python, c10::DispatchKey::FuncTorchBatched,
                                           c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchGradWrapper,
                                           c10::DispatchKey::Functionalize});
  return !impl->key_set().has_any(kWrappers) && !impl->has_symbolic_sizes_strides();
}

const Tensor& tensor_of(PyObject* object) { return THPVariable_Unpack(object); }

const Tensor* find_tensor(PyObject* object) {
  if (!THPVariable_Check(object)) return nullptr;
  const Tensor& tensor = THPVariable_Unpack(object);
  return tensor.unsafeGetTensorImpl()->has_symbolic_sizes_strides() ? nullptr : &tensor;
}

PyObject* to_python(Tensor tensor) { return THPVariable_Wrap(std::move(tensor)); }

bool has_tangent(const Tensor& t) {
  return t.unsafeGetTensorImpl()->autograd_meta() && t._fw_grad(/*level=*/0).defined();
}

bool are_transforms_active() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

bool is_served(const Tensor& x, PyObject* backend) {
  const Kernels* kernels = x.is_cpu() ? &cpu_kernels : x.is_cuda() ? &cuda_kernels : nullptr;
  if (!kernels || !kernels->usable.load(std::memory_order_relaxed)) return false;
  if (backend == Py_None) return kernels->others.load(std::memory_order_relaxed) == 0;
  return PyUnicode_Check(backend) && PyUnicode_CompareWithASCIIString(backend, kernels->name) == 0;
}

bool read_int(PyObject* object, int64_t& value) {
  if (!PyLong_CheckExact(object)) return false;
  int overflow = 0;
  value = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow == 0;
}

bool read_string(PyObject* object, std::string_view& value) {
  if (!PyUnicode_Check(object)) return false;
  Py_ssize_t length = 0;
  const char* data = PyUnicode_AsUTF8AndSize(object, &length);
  if (!data) {
    PyErr_Clear();
    return false;
  }
  value = {data, static_cast<size_t>(length)};
  return true;
}

void set_served(bool cpu, bool cuda) { cpu_kernels.usable = cpu, cuda_kernels.usable = cuda; }

void count_choice(const std::string& backend, int change) {
  for (Kernels* kernels : {&cpu_kernels, &cuda_kernels})
    if (backend != kernels->name) kernels->others += change;
}

}  // namespace road::binding
