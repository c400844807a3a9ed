// tables, once for every compiled backend (see rotate_ops.h).
#pragma once

#include "binding/rotate_ops.h"

namespace road::binding {

template <class Backend>
std::tuple<Tensor, Tensor> tables_op(const Tensor& p, const Tensor& q, std::string_view form, int64_t group_size,
                                     at::ScalarType dtype) {
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, "dtype must be float32 or float64, got ", dtype);
  const typename Backend::Guard guard(p);
  const Arguments arguments(p, q, form, group_size, dtype_of(dtype));
  const Problem& problem = arguments.problem();
  const int64_t width = is_shared(problem.form) ? problem.dim / 2 : problem.dim;
  const auto options = p.options().dtype(dtype);
  const auto output = [&] {
    return p.dim() == 1 ? at::empty({width}, options) : at::empty({p.size(0), width}, options);
  };
  Tensor r1 = output(), r2 = output();
  Backend::tables(problem, r1.mutable_data_ptr(), r2.mutable_data_ptr());
  return {r1, r2};
}

}  // namespace road::binding
