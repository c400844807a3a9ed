// The CPU kernels of the ops that road_kernels/ops/schemas.py declares.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "binding/fused_ops.h"
#include "binding/merge_ops.h"
#include "binding/output.h"
#include "binding/rotate_ops.h"
#include "binding/tables_ops.h"
#include "cpu/road_cpu.h"

namespace road::binding {
namespace {

const cpu::Parallel kTorchThreads{
    [](int64_t begin, int64_t end, int64_t grain, const void* context, cpu::Parallel::Body body) {
      at::parallel_for(begin, end, grain, [&](int64_t b, int64_t e) { body(context, b, e); });
    }};

struct Cpu {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  static Tensor output(at::IntArrayRef sizes, const at::TensorOptions& options) { return fresh_output(sizes, options); }

  static void check_ids(const Problem& problem) {
    const int64_t bad = cpu::first_bad_id(problem);
    if (bad >= 0) refuse_id(problem, bad);
  }

  static void check_invertible(const Problem& problem) {
    const cpu::Singular s = cpu::find_singular(problem);
    if (s.adapter < 0) return;
    refuse_singular(problem, s.adapter, s.feature, s.determinant);
  }

  static void rotate(const Arguments& arguments, const Rows& x, const Rows& z, bool) {
    cpu::rotate(arguments.problem(), x, z, /*transposed=*/false, kTorchThreads);
  }

  static void backward(const Arguments& arguments, const Rows& gz, const Rows& saved, bool from_output,
                       const Gradients& out) {
    cpu::backward(arguments.problem(), gz, saved, from_output, out, kTorchThreads);
  }

  static void tables(const Problem& problem, void* r1, void* r2) { cpu::tables(problem, r1, r2, kTorchThreads); }

  static void merge(const Problem& problem, const Matrix& w, const Matrix& z) {
    cpu::merge(problem, w, z, kTorchThreads);
  }

  static void rotate_silu_mul(const Problem& problem, const Rows& x, const Rows& z) {
    cpu::rotate_silu_mul(problem, x, z, kTorchThreads);
  }

  static void rotate_silu_mul_backward(const Arguments& arguments, const Rows& gz, const Rows& x,
                                       const Gradients& out) {
    cpu::rotate_silu_mul_backward(arguments.problem(), gz, x, out, kTorchThreads);
  }

  static void rotate_add_rms_norm(const Problem& problem, const Rows& x, const Rows& residual, const RmsNorm& norm,
                                  const Rows& y, const Rows& s) {
    cpu::rotate_add_rms_norm(problem, x, residual, norm, y, s, kTorchThreads);
  }

  static void add_rms_norm_backward(const Problem& problem, const Rows& gy, const Rows& gs, const Rows& s,
                                    const RmsNorm& norm, const Rows& out) {
    cpu::add_rms_norm_backward(problem, gy, gs, s, norm, out, kTorchThreads);
  }

  static void check_positions(const Problem& problem, const Rope& rope) {
    const int64_t bad = problem.rows == 0 ? -1 : cpu::first_bad_position(rope);
    if (bad >= 0) refuse_position(rope, bad);
  }

  static bool turns_in_place(const Problem&, const Rope&) { return true; }
  static void rotate_rope(const Problem& problem, const Rows& qkv, const Rope& rope, const Rows& z) {
    cpu::rotate_rope(problem, qkv, rope, z, kTorchThreads);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(ROAD_NAMESPACE, CPU, m) {
  m.impl("rotate", rotate_op<Cpu>);
  m.impl("rotate_", rotate_inplace_op<Cpu>);
  m.impl("rotate_backward", rotate_backward_op<Cpu>);
  m.impl("mix_rows", merge_op<Cpu>);
  m.impl("mix_rows_", merge_inplace_op<Cpu>);
  m.impl("tables", tables_op<Cpu>);
  m.impl("rotate_silu_mul", rotate_silu_mul_op<Cpu>);
  m.impl("rotate_silu_mul_backward", rotate_silu_mul_backward_op<Cpu>);
  m.impl("rotate_add_rms_norm", rotate_add_rms_norm_op<Cpu>);
  m.impl("rotate_add_rms_norm_", rotate_add_rms_norm_inplace_op<Cpu>);
  m.impl("add_rms_norm_backward", add_rms_norm_backward_op<Cpu>);
  m.impl("rotate_rope", rotate_rope_op<Cpu>);
  m.impl("rotate_rope_", rotate_rope_inplace_op<Cpu>);
}

}  // namespace road::binding
