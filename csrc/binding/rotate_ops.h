// rotate, rotate_ and rotate_backward, once for every compiled backend.  A backend is a struct with
//   Guard(x)                                   selects x's device while it lives
//   output(sizes, options)                     an uninitialised contiguous tensor
//   check_ids(problem)                         refuses ids outside the bank, or leaves that to its kernels
//   check_invertible(problem)                  refuses singular blocks
//   rotate(problem, x, z, overlap), backward(arguments, gz, saved, from_output, out), merge(problem, w, z),
//   tables(problem, r1, r2)
#pragma once

#include <tuple>

#include "binding/arguments.h"
#include "binding/check.h"

namespace road::binding {

template <class Backend>
Tensor rotate_op(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                 std::string_view form, int64_t group_size, bool overlap) {
  const typename Backend::Guard guard(x);
  const Arguments arguments(x, p, q, adapter_ids, form, group_size);
  Backend::check_ids(arguments.problem());
  Tensor z = Backend::output(x.sizes(), x.options());
  Rows from, to;
  const Tensor source = with_rows(x, from);
  describe_rows(z, to);
  Backend::rotate(arguments, from, to, overlap);
  return z;
}

template <class Backend>
void rotate_inplace_op(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                       std::string_view form, int64_t group_size, bool check_invertible, bool overlap) {
  check_not_shared("x", x, p, q);
  const typename Backend::Guard guard(x);
  const Arguments arguments(x, p, q, adapter_ids, form, group_size);
  const Problem& problem = arguments.problem();
  Backend::check_ids(problem);
  if (check_invertible) Backend::check_invertible(problem);
  x.unsafeGetTensorImpl()->bump_version();
  Rows rows;
  if (describe_rows(x, rows)) return Backend::rotate(arguments, rows, rows, overlap);
  const Tensor packed = x.contiguous();  // no kernel walks this layout: rotate a copy, write it back
  describe_rows(packed, rows);
  Backend::rotate(arguments, rows, rows, overlap);
  x.copy_(packed);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> rotate_backward_op(const Tensor& grad, const Tensor& saved, const Tensor& p,
                                                      const Tensor& q, const OptionalTensor& adapter_ids,
                                                      std::string_view form, int64_t group_size, bool from_output,
                                                      std::array<bool, 3> output_mask) {
  check_grad(grad, saved);
  const typename Backend::Guard guard(saved);
  const Arguments arguments(saved, p, q, adapter_ids, form, group_size);
  Backend::check_ids(arguments.problem());
  Tensor gx, gp, gq;
  Gradients out;
  if (output_mask[0]) {
    gx = Backend::output(saved.sizes(), saved.options());
    describe_rows(gx, out.gx);
    if (gx.numel() == 0) out.gx = {};
  }
  if (output_mask[1]) gp = Backend::output(p.sizes(), p.options()), out.gp = gp.data_ptr();
  if (output_mask[2]) gq = Backend::output(q.sizes(), q.options()), out.gq = gq.data_ptr();
  Rows grad_rows, saved_rows;
  const Tensor g = with_rows(grad, grad_rows), s = with_rows(saved, saved_rows);
  Backend::backward(arguments, grad_rows, saved_rows, from_output, out);
  return {gx, gp, gq};
}

}  // namespace road::binding
