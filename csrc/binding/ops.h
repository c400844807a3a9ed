// The ops, once for every compiled backend.  A backend is a struct with
//   Guard(x)                                   selects x's device while it lives
//   output(like)                               an uninitialised contiguous tensor
//   check_ids(problem)                         refuses ids outside the bank, or leaves that to its kernels
//   check_invertible(problem)                  refuses singular blocks
//   rotate(problem, x, z, transposed), backward(arguments, gz, saved, from_output, out), mix_rows(problem, w, z)
#pragma once

#include <tuple>

#include "arguments.h"

namespace road::binding {

template <class Backend>
Tensor rotate_op(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                 std::string_view form, int64_t group_size) {
  const typename Backend::Guard guard(x);
  const Arguments arguments(x, p, q, adapter_ids, form, group_size);
  Backend::check_ids(arguments.problem());
  Tensor z = Backend::output(x);
  Rows from, to;
  const Tensor source = with_rows(x, from);
  describe_rows(z, to);
  Backend::rotate(arguments.problem(), from, to, /*transposed=*/false);
  return z;
}

template <class Backend>
void rotate_inplace_op(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                       std::string_view form, int64_t group_size, bool check_invertible) {
  TORCH_CHECK_VALUE(!may_share_memory(x, p) && !may_share_memory(x, q),
                    "x shares memory with its parameters, so it cannot be written in place: use inplace=False");
  const typename Backend::Guard guard(x);
  const Arguments arguments(x, p, q, adapter_ids, form, group_size);
  const Problem& problem = arguments.problem();
  Backend::check_ids(problem);
  if (check_invertible) Backend::check_invertible(problem);
  x.unsafeGetTensorImpl()->bump_version();
  Rows rows;
  if (describe_rows(x, rows)) return Backend::rotate(problem, rows, rows, /*transposed=*/false);
  const Tensor packed = x.contiguous();  // no kernel walks this layout: rotate a copy, write it back
  describe_rows(packed, rows);
  Backend::rotate(problem, rows, rows, /*transposed=*/false);
  x.copy_(packed);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> rotate_backward_op(const Tensor& grad, const Tensor& saved, const Tensor& p,
                                                      const Tensor& q, const OptionalTensor& adapter_ids,
                                                      std::string_view form, int64_t group_size, bool from_output,
                                                      std::array<bool, 3> output_mask) {
  TORCH_CHECK_VALUE(grad.sizes() == saved.sizes() && grad.scalar_type() == saved.scalar_type() &&
                        grad.device() == saved.device(),
                    "grad must match the saved tensor, ", saved.sizes(), " ", saved.scalar_type(), ", got ",
                    grad.sizes(), " ", grad.scalar_type());
  const typename Backend::Guard guard(saved);
  const Arguments arguments(saved, p, q, adapter_ids, form, group_size);
  Backend::check_ids(arguments.problem());
  Tensor gx, gp, gq;
  Gradients out;
  if (output_mask[0]) {
    gx = Backend::output(saved);
    describe_rows(gx, out.gx);
    if (gx.numel() == 0) out.gx = {};
  }
  if (output_mask[1]) gp = Backend::output(p), out.gp = gp.data_ptr();
  if (output_mask[2]) gq = Backend::output(q), out.gq = gq.data_ptr();
  Rows grad_rows, saved_rows;
  const Tensor g = with_rows(grad, grad_rows), s = with_rows(saved, saved_rows);
  Backend::backward(arguments, grad_rows, saved_rows, from_output, out);
  return {gx, gp, gq};
}

// The rows of w are the features: w^T is what rotate calls x.  Where w^T is the one with adjacent elements, rotate
// does the work, and z has the layout of w.
inline bool is_matrix(const Tensor& w) { return w.stride(1) == 1 || w.size(1) <= 1; }
inline bool is_transposed_matrix(const Tensor& w) { return !is_matrix(w) && w.stride(0) == 1; }
inline Matrix matrix_of(const Tensor& w) { return {w.data_ptr(), w.stride(0)}; }

template <class Backend>
Tensor mix_rows_op(const Tensor& w, const Tensor& r1, const Tensor& r2, int64_t group_size) {
  TORCH_CHECK_VALUE(w.dim() == 2, "w must be [D, N], got ", w.sizes());
  const Tensor x = w.t();
  if (is_transposed_matrix(w)) return rotate_op<Backend>(x, r1, r2, std::nullopt, "table", group_size).t();
  const typename Backend::Guard guard(w);
  const Arguments arguments(x, r1, r2, std::nullopt, "table", group_size);
  const Tensor source = is_matrix(w) ? w : w.contiguous();
  const Tensor z = Backend::output(w);
  Backend::mix_rows(arguments.problem(), matrix_of(source), matrix_of(z));
  return z;
}

template <class Backend>
void mix_rows_inplace_op(const Tensor& w, const Tensor& r1, const Tensor& r2, int64_t group_size) {
  TORCH_CHECK_VALUE(w.dim() == 2, "w must be [D, N], got ", w.sizes());
  const Tensor x = w.t();
  if (is_transposed_matrix(w))
    return rotate_inplace_op<Backend>(x, r1, r2, std::nullopt, "table", group_size, /*check_invertible=*/false);
  TORCH_CHECK_VALUE(!may_share_memory(w, r1) && !may_share_memory(w, r2), "w shares memory with r1 or r2");
  const typename Backend::Guard guard(w);
  const Arguments arguments(x, r1, r2, std::nullopt, "table", group_size);
  w.unsafeGetTensorImpl()->bump_version();
  const Tensor target = is_matrix(w) ? w : w.contiguous();
  Backend::mix_rows(arguments.problem(), matrix_of(target), matrix_of(target));
  if (!is_matrix(w)) w.copy_(target);
}

}  // namespace road::binding
