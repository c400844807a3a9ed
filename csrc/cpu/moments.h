// From the moments of one adapter (sums of gz h^T, see core/rotate.h) to the gradients of its parameters.
#pragma once

#include <vector>

#include "cpu/coefficients.h"
#include "cpu/road_cpu.h"

namespace road::cpu {

template <class A>
class MomentsReduction {
 public:
  MomentsReduction(const Problem& problem, bool from_output, const Gradients& out)
      : problem_(problem), from_output_(from_output), out_(out) {}

  // Sums kept per adapter: 2 per pair when both rows share their coefficients, 4 otherwise.
  static int64_t size(const Problem& problem) { return (is_shared(problem.form) ? 2 : 4) * (problem.dim / 2); }

  // Adds `count` partial sums in order, in double, and writes the adapter's gradients (zeros if there are none).
  void finish(int64_t adapter, const A* partials, int64_t count) const {
    const int64_t n = size(problem_), width = param_width(problem_.form, problem_.dim);
    if (count == 0) return write_zeros(adapter * width, width);
    std::vector<double> sums(partials, partials + n);
    for (int64_t c = 1; c < count; ++c)
      for (int64_t k = 0; k < n; ++k) sums[k] += partials[c * n + k];

    AdapterCoefs<A> coefs(problem_);
    if (from_output_ && problem_.form != Form::kRoad1) undo_rotation(coefs.load(adapter), sums.data());
    Angles<A> angles;
    if (has_angles(problem_.form)) angles.load(problem_, adapter);
    if (is_shared(problem_.form)) write_shared(adapter * width, sums.data(), angles);
    else write_full(adapter * width, sums.data(), angles);
  }

 private:
  void write(int64_t index, double gp, double gq) const {
    if (out_.gp) store_rounded(out_.gp, problem_.params.p_dtype, index, gp);
    if (out_.gq) store_rounded(out_.gq, problem_.params.q_dtype, index, gq);
  }

  void write_zeros(int64_t at, int64_t width) const {
    for (int64_t k = 0; k < width; ++k) write(at + k, 0, 0);
  }

  void undo_rotation(const Coefs& coefs, double* sums) const {
    const A *r1 = static_cast<const A*>(coefs.r1), *r2 = static_cast<const A*>(coefs.r2);
    const int64_t pairs = problem_.dim / 2, half = problem_.group_size / 2;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      double* m = sums + pair;
      if (coefs.shared) {
        SharedMoments<double> s{m[0], m[pairs]};
        s.from_output(r1[pair], r2[pair]);
        m[0] = s.dot, m[pairs] = s.cross;
      } else {
        const auto [i, j] = features_of(pair, half);
        PairMoments<double> s{m[0], m[pairs], m[2 * pairs], m[3 * pairs]};
        s.from_output(r1[i], r1[j], r2[i], r2[j]);
        m[0] = s.ii, m[pairs] = s.ij, m[2 * pairs] = s.ji, m[3 * pairs] = s.jj;
      }
    }
  }

  // road_1 from its output needs no inverse: gtheta = cross, galpha = dot / alpha, both of z.
  void write_shared(int64_t at, const double* sums, const Angles<A>& angles) const {
    const int64_t pairs = problem_.dim / 2;
    for (int64_t k = 0; k < pairs; ++k) {
      const double dot = sums[k], cross = sums[pairs + k];
      if (problem_.form == Form::kTableHalf) {
        write(at + k, dot, cross);
      } else if (from_output_) {
        write(at + k, cross, dot / angles.alpha[k]);
      } else {
        write_angles(at, k, dot, cross, angles);
      }
    }
  }

  void write_full(int64_t at, const double* sums, const Angles<A>& angles) const {
    const int64_t pairs = problem_.dim / 2, half = problem_.group_size / 2;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const auto [i, j] = features_of(pair, half);
      write_feature(at, i, sums[pair], -sums[pairs + pair], angles);                 // ii, -ij
      write_feature(at, j, sums[3 * pairs + pair], sums[2 * pairs + pair], angles);  // jj, ji
    }
  }

  // gr1 and gr2 of one feature, and by the chain rule the gradients of the parameters that made r1 and r2.
  void write_feature(int64_t at, int64_t feature, double gr1, double gr2, const Angles<A>& angles) const {
    if (problem_.form == Form::kTable) return write(at + feature, gr1, gr2);
    if (problem_.form == Form::kRoad2) return write_angles(at, feature, gr1, gr2, angles);
    const int64_t g = problem_.group_size, slot0 = road4_slot0(feature, g);
    write_angles(at, slot0, gr1, 0, angles);
    write_angles(at, slot0 + g, 0, gr2, angles);
  }

  void write_angles(int64_t at, int64_t k, double gr1, double gr2, const Angles<A>& angles) const {
    const auto g = angle_gradients<double>(angles.alpha[k], angles.sin[k], angles.cos[k], gr1, gr2);
    write(at + k, g.theta, g.alpha);
  }

  const Problem& problem_;
  const bool from_output_;
  const Gradients& out_;
};

}  // namespace road::cpu
