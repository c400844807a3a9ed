// merge and merge_, once for every compiled backend (see rotate_ops.h).  The rows of w are the features, so w^T is the
// x of rotate.  Where w^T is the one whose rows have adjacent elements, rotate does the work, and z has the layout of
// w.
#pragma once

#include "binding/rotate_ops.h"

namespace road::binding {

inline bool is_matrix(const Tensor& w) { return w.stride(1) == 1 || w.size(1) <= 1; }
inline bool is_transposed_matrix(const Tensor& w) { return !is_matrix(w) && w.stride(0) == 1; }
inline Matrix matrix_of(const Tensor& w) { return {w.data_ptr(), w.stride(0)}; }

template <class Backend>
Tensor merge_op(const Tensor& w, const Tensor& r1, const Tensor& r2, int64_t group_size) {
  check_matrix(w);
  const Tensor x = w.t();
  if (is_transposed_matrix(w))
    return rotate_op<Backend>(x, r1, r2, std::nullopt, "table", group_size, /*overlap=*/false).t();
  const typename Backend::Guard guard(w);
  const Arguments arguments(x, r1, r2, std::nullopt, "table", group_size);
  const Tensor source = is_matrix(w) ? w : w.contiguous();
  const Tensor z = Backend::output(w.sizes(), w.options());
  Backend::merge(arguments.problem(), matrix_of(source), matrix_of(z));
  return z;
}

template <class Backend>
void merge_inplace_op(const Tensor& w, const Tensor& r1, const Tensor& r2, int64_t group_size) {
  check_matrix(w);
  const Tensor x = w.t();
  if (is_transposed_matrix(w))
    return rotate_inplace_op<Backend>(x, r1, r2, std::nullopt, "table", group_size, /*check_invertible=*/false,
                                      /*overlap=*/false);
  check_not_shared("w", w, r1, r2);
  const typename Backend::Guard guard(w);
  const Arguments arguments(x, r1, r2, std::nullopt, "table", group_size);
  w.unsafeGetTensorImpl()->bump_version();
  const Tensor target = is_matrix(w) ? w : w.contiguous();
  Backend::merge(arguments.problem(), matrix_of(target), matrix_of(target));
  if (!is_matrix(w)) w.copy_(target);
}

}  // namespace road::binding
