// Calls of backward: inputs, outputs, and the comparison with the oracle.
#pragma once

#include "oracle.h"

// Outputs start as NaN.  gp and gq are contiguous, with a canary before and after.
struct Results {
  Stack gx, gp, gq;

  explicit Results(const Case& c, Layout layout = {})
      : gx(c.make_rows(layout)),
        gp(c.p.dtype(), c.p.count(), c.p.dim(), kUnaligned),
        gq(c.q.dtype(), c.q.count(), c.q.dim(), kUnaligned) {}

  road::Gradients wanted(bool want_gx = true, bool want_gp = true, bool want_gq = true) {
    road::Gradients out;
    if (want_gx) out.gx = gx.rows();
    if (want_gp) out.gp = gp.data();
    if (want_gq) out.gq = gq.data();
    return out;
  }

  bool same_as(const Results& other) const {
    return gx.same_rows(other.gx) && gp.same_rows(other.gp) && gq.same_rows(other.gq);
  }
  bool padding_untouched() const { return gx.padding_untouched() && gp.padding_untouched() && gq.padding_untouched(); }
};

inline int64_t most_rows_of_an_adapter(const Case& c) {
  std::vector<int64_t> rows(c.problem.params.adapters);
  for (int64_t r = 0; r < c.problem.rows; ++r)
    if (c.adapter(r) >= 0) ++rows[c.adapter(r)];
  return rows.empty() ? 0 : *std::max_element(rows.begin(), rows.end());
}

inline void compare_gx(Regime& regime, const Case& c, const Stack& gz, const Results& got) {
  compare(regime, c, got.gx, oracle_rotate(c, gz, /*transposed=*/true), rotation_roundings(c), "gx");
}

// A sum of n rows rounds n times, and the products of a pair twice more: the bound of a serial sum.
// Then sin or cos, the combination of the sums (in double), and the conversion to a narrow dtype through float.  From
// the output also r1 and r2, the determinant made of them, and the division.
inline void compare_parameters(Regime& regime, const Case& c, const Stack& gz, const Stack& saved, bool from_output,
                               const Results& got, bool want_gp = true, bool want_gq = true) {
  const double roundings = static_cast<double>(most_rows_of_an_adapter(c)) + (from_output ? 14 : 7);
  const ParameterGradients want = oracle_gradients(c, gz, saved, from_output);
  if (want_gp) compare(regime, c, got.gp, want.p, roundings, from_output ? "gp from z" : "gp");
  if (want_gq) compare(regime, c, got.gq, want.q, roundings, from_output ? "gq from z" : "gq");
}

// A training step: z from x, then the gradients from x or from z.
inline void check_gradients(Regime& regime, Case& c, Random& random, bool from_output,
                            const road::cpu::Parallel& parallel = kSerial) {
  Stack x = c.make_rows(), gz = c.make_rows();
  x.fill(random);
  gz.fill(random);
  if (from_output) road::cpu::rotate(c.problem, x.rows(), x.rows(), false, parallel);
  Results got(c);
  road::cpu::backward(c.problem, gz.rows(), x.rows(), from_output, got.wanted(), parallel);
  compare_gx(regime, c, gz, got);
  compare_parameters(regime, c, gz, x, from_output, got);
  CHECK(regime, got.padding_untouched(), c.describe(), " wrote outside its outputs");
}
