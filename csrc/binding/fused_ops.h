// The rotation joined with what follows it, once for every compiled backend (see rotate_ops.h).  A backend also has
//   rotate_silu_mul(problem, x, z), rotate_silu_mul_backward(arguments, gz, x, out),
//   rotate_add_rms_norm(problem, x, residual, norm, y, s), add_rms_norm_backward(problem, gy, gs, s, norm, out),
//   check_positions(problem, rope),
//   rotate_rope(problem, qkv, rope, z), turns_in_place(problem, rope): whether z may be qkv
#pragma once

#include <tuple>

#include "binding/fused_arguments.h"
#include "binding/rotate_ops.h"

namespace road::binding {

template <class Backend>
Tensor rotate_silu_mul_op(const Tensor& x, const Tensor& r1, const Tensor& r2, const OptionalTensor& adapter_ids,
                          int64_t group_size) {
  check_silu_mul(x, r1, r2, adapter_ids, group_size);
  const typename Backend::Guard guard(x);
  const Arguments arguments(x, r1, r2, adapter_ids, group_size);
  Backend::check_ids(arguments.problem());
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() /= 2;
  Tensor z = Backend::output(sizes, x.options());
  Rows from, to;
  const Tensor source = with_rows(x, from);
  describe_rows(z, to);
  Backend::rotate_silu_mul(arguments.problem(), from, to);
  return z;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> rotate_silu_mul_backward_op(const Tensor& grad, const Tensor& x, const Tensor& r1,
                                                               const Tensor& r2, const OptionalTensor& adapter_ids,
                                                               int64_t group_size, std::array<bool, 3> output_mask) {
  check_silu_mul(x, r1, r2, adapter_ids, group_size);
  check_silu_mul_grad(grad, x);
  const typename Backend::Guard guard(x);
  const Arguments arguments(x, r1, r2, adapter_ids, group_size);
  Backend::check_ids(arguments.problem());
  Tensor gx, gr1, gr2;
  Gradients out;
  if (output_mask[0]) {
    gx = Backend::output(x.sizes(), x.options());
    describe_rows(gx, out.gx);
    if (gx.numel() == 0) out.gx = {};
  }
  if (output_mask[1]) gr1 = Backend::output(r1.sizes(), r1.options()), out.gp = gr1.data_ptr();
  if (output_mask[2]) gr2 = Backend::output(r2.sizes(), r2.options()), out.gq = gr2.data_ptr();
  Rows grad_rows, x_rows;
  const Tensor g = with_rows(grad, grad_rows), source = with_rows(x, x_rows);
  Backend::rotate_silu_mul_backward(arguments, grad_rows, x_rows, out);
  return {gx, gr1, gr2};
}

template <class Backend>
std::tuple<Tensor, Tensor> rotate_add_rms_norm_op(const Tensor& x, const Tensor& residual, const Tensor& weight,
                                                  const Tensor& r1, const Tensor& r2, const OptionalTensor& adapter_ids,
                                                  double eps, int64_t group_size) {
  check_add_rms_norm(x, residual, weight, r1, r2, adapter_ids, eps, group_size);
  const typename Backend::Guard guard(x);
  const Arguments arguments(x, r1, r2, adapter_ids, group_size);
  Backend::check_ids(arguments.problem());
  Tensor y = Backend::output(x.sizes(), x.options()), s = Backend::output(x.sizes(), x.options());
  Rows x_rows, residual_rows, y_rows, s_rows;
  const Tensor source = with_rows(x, x_rows), added = with_rows(residual, residual_rows);
  describe_rows(y, y_rows);
  describe_rows(s, s_rows);
  const Tensor scales = weight.contiguous();
  Backend::rotate_add_rms_norm(arguments.problem(), x_rows, residual_rows, norm_of(scales, eps), y_rows, s_rows);
  return {y, s};
}

template <class Backend>
void rotate_add_rms_norm_inplace_op(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& r1,
                                    const Tensor& r2, const OptionalTensor& adapter_ids, double eps,
                                    int64_t group_size) {
  check_add_rms_norm(x, residual, weight, r1, r2, adapter_ids, eps, group_size);
  check_written_apart(x, residual, weight, r1, r2);
  const typename Backend::Guard guard(x);
  const Arguments arguments(x, r1, r2, adapter_ids, group_size);
  Backend::check_ids(arguments.problem());
  x.unsafeGetTensorImpl()->bump_version();
  residual.unsafeGetTensorImpl()->bump_version();
  // Where no kernel walks a layout: a copy of it, written back.
  Rows x_rows, residual_rows;
  const Tensor y = describe_rows(x, x_rows) ? x : x.contiguous();
  const Tensor s = describe_rows(residual, residual_rows) ? residual : residual.contiguous();
  describe_rows(y, x_rows);
  describe_rows(s, residual_rows);
  const Tensor scales = weight.contiguous();
  Backend::rotate_add_rms_norm(arguments.problem(), x_rows, residual_rows, norm_of(scales, eps), x_rows, residual_rows);
  if (!y.is_same(x)) x.copy_(y);
  if (!s.is_same(residual)) residual.copy_(s);
}

template <class Backend>
Tensor add_rms_norm_backward_op(const Tensor& gy, const Tensor& gs, const Tensor& s, const Tensor& weight, double eps) {
  check_add_rms_norm_grads(gy, gs, s, weight, eps);
  const typename Backend::Guard guard(s);
  Problem problem;
  problem.dim = s.size(-1), problem.dtype = dtype_of(s.scalar_type());
  problem.rows = problem.dim == 0 ? 0 : s.numel() / problem.dim;
  Tensor out = Backend::output(s.sizes(), s.options());
  Rows gy_rows, gs_rows, s_rows, out_rows;
  const Tensor of_y = with_rows(gy, gy_rows), of_s = with_rows(gs, gs_rows), sums = with_rows(s, s_rows);
  describe_rows(out, out_rows);
  const Tensor scales = weight.contiguous();
  Backend::add_rms_norm_backward(problem, gy_rows, gs_rows, s_rows, norm_of(scales, eps), out_rows);
  return out;
}

template <class Backend>
Tensor rotate_rope_op(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin_cache, const Tensor& r1,
                      const Tensor& r2, const OptionalTensor& adapter_ids, int64_t num_heads, int64_t num_kv_heads,
                      int64_t head_dim, bool is_neox, int64_t group_size) {
  check_rope(qkv, positions, cos_sin_cache, r1, r2, adapter_ids, num_heads, num_kv_heads, head_dim, is_neox,
             group_size);
  const typename Backend::Guard guard(qkv);
  const Arguments arguments(qkv, r1, r2, adapter_ids, group_size);
  const RopeArguments rope(qkv, positions, cos_sin_cache, num_heads + num_kv_heads, head_dim, is_neox);
  Backend::check_ids(arguments.problem());
  Backend::check_positions(arguments.problem(), rope.rope());
  Tensor z = Backend::output(qkv.sizes(), qkv.options());
  Rows from, to;
  const Tensor source = with_rows(qkv, from);
  describe_rows(z, to);
  Backend::rotate_rope(arguments.problem(), from, rope.rope(), to);
  return z;
}

template <class Backend>
void rotate_rope_inplace_op(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin_cache, const Tensor& r1,
                            const Tensor& r2, const OptionalTensor& adapter_ids, int64_t num_heads,
                            int64_t num_kv_heads, int64_t head_dim, bool is_neox, int64_t group_size) {
  check_rope(qkv, positions, cos_sin_cache, r1, r2, adapter_ids, num_heads, num_kv_heads, head_dim, is_neox,
             group_size);
  check_not_shared("qkv", qkv, r1, r2);
  check_not_shared("qkv", qkv, cos_sin_cache, cos_sin_cache);
  const typename Backend::Guard guard(qkv);
  const Arguments arguments(qkv, r1, r2, adapter_ids, group_size);
  const RopeArguments rope(qkv, positions, cos_sin_cache, num_heads + num_kv_heads, head_dim, is_neox);
  Backend::check_ids(arguments.problem());
  Backend::check_positions(arguments.problem(), rope.rope());
  qkv.unsafeGetTensorImpl()->bump_version();
  Rows rows;
  if (describe_rows(qkv, rows) && Backend::turns_in_place(arguments.problem(), rope.rope()))
    return Backend::rotate_rope(arguments.problem(), rows, rope.rope(), rows);
  // Where no kernel walks this layout, or turns these heads in place: written back.
  const Tensor source = with_rows(qkv, rows), z = Backend::output(qkv.sizes(), qkv.options());
  Rows to;
  describe_rows(z, to);
  Backend::rotate_rope(arguments.problem(), rows, rope.rope(), to);
  qkv.copy_(z);
}

}  // namespace road::binding
