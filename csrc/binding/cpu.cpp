// The CPU implementation of the ops that road_kernels/_ops.py declares.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "arguments.h"
#include "output.h"
#include "road_cpu.h"

namespace road::binding {
namespace {

const cpu::Parallel kTorchThreads{[](int64_t begin, int64_t end, int64_t grain, const void* context, cpu::Parallel::Body body) {
  at::parallel_for(begin, end, grain, [&](int64_t b, int64_t e) { body(context, b, e); });
}};

void check_ids(const Problem& problem) {
  const int64_t bad = cpu::first_bad_id(problem);
  if (bad >= 0) raise_bad_id(problem, bad);
}

Tensor rotate(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
              std::string_view form, int64_t group_size) {
  const Arguments arguments(x, p, q, adapter_ids, form, group_size);
  check_ids(arguments.problem());
  Tensor z = fresh_output(x);
  Rows from, to;
  const Tensor source = with_rows(x, from);
  describe_rows(z, to);
  cpu::rotate(arguments.problem(), from, to, /*transposed=*/false, kTorchThreads);
  return z;
}

void check_invertible_blocks(const Problem& problem, bool batched) {
  const cpu::Singular s = cpu::find_singular(problem);
  if (s.adapter < 0) return;
  const std::string who = batched ? "adapter " + std::to_string(s.adapter) + " has" : "the adapter has";
  TORCH_CHECK_VALUE(false, "inplace=True recovers the input from the output, but ", who, " a singular block: features (",
                    s.feature, ", ", s.feature + problem.group_size / 2, "), determinant ", s.determinant,
                    ". Use inplace=False, or keep alpha away from zero");
}

void rotate_(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
             std::string_view form, int64_t group_size, bool check_invertible) {
  const Arguments arguments(x, p, q, adapter_ids, form, group_size);
  const Problem& problem = arguments.problem();
  check_ids(problem);
  if (check_invertible) check_invertible_blocks(problem, adapter_ids.has_value());
  x.unsafeGetTensorImpl()->bump_version();
  Rows rows;
  if (describe_rows(x, rows)) return cpu::rotate(problem, rows, rows, /*transposed=*/false, kTorchThreads);
  const Tensor packed = x.contiguous();  // no kernel walks this layout: rotate a copy, write it back
  describe_rows(packed, rows);
  cpu::rotate(problem, rows, rows, /*transposed=*/false, kTorchThreads);
  x.copy_(packed);
}

std::tuple<Tensor, Tensor, Tensor> rotate_backward(const Tensor& grad, const Tensor& saved, const Tensor& p,
                                                   const Tensor& q, const OptionalTensor& adapter_ids,
                                                   std::string_view form, int64_t group_size, bool from_output,
                                                   std::array<bool, 3> output_mask) {
  TORCH_CHECK_VALUE(grad.sizes() == saved.sizes() && grad.scalar_type() == saved.scalar_type() && grad.device() == saved.device(),
                    "grad must match the saved tensor, ", saved.sizes(), " ", saved.scalar_type(), ", got ",
                    grad.sizes(), " ", grad.scalar_type());
  const Arguments arguments(saved, p, q, adapter_ids, form, group_size);
  check_ids(arguments.problem());
  Tensor gx, gp, gq;
  Gradients out;
  if (output_mask[0]) {
    gx = fresh_output(saved);
    describe_rows(gx, out.gx);
    if (gx.numel() == 0) out.gx = {};
  }
  if (output_mask[1]) gp = fresh_output(p), out.gp = gp.data_ptr();
  if (output_mask[2]) gq = fresh_output(q), out.gq = gq.data_ptr();
  Rows grad_rows, saved_rows;
  const Tensor g = with_rows(grad, grad_rows), s = with_rows(saved, saved_rows);
  cpu::backward(arguments.problem(), grad_rows, saved_rows, from_output, out, kTorchThreads);
  return {gx, gp, gq};
}

}  // namespace

TORCH_LIBRARY_IMPL(road_kernels, CPU, m) {
  m.impl("rotate", rotate);
  m.impl("rotate_", rotate_);
  m.impl("rotate_backward", rotate_backward);
}

}  // namespace road::binding
