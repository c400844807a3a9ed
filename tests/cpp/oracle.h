// RoAd from its two formulas, pair by pair, in the widest floating-point type:
//     z_i = r1_i h_i - r2_i h_j
//     z_j = r1_j h_j + r2_j h_i
// It shares no code with the library except the two 16-bit formats, which test_formats.cpp checks value by value.
//
// Every result comes with its magnitude, the same sum with every term made positive.  Rounding errors are bounded by
// a few units of the magnitude, however much cancels in the result itself.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "case.h"

// Wider than double where possible: a double oracle would have errors as large as those of float64 results.
using Wide = long double;

struct Term {
  Wide value = 0, magnitude = 0;

  void add(Wide v, Wide m) { value += v, magnitude += m; }
  void add(Wide v) { add(v, std::fabs(v)); }
};
using Terms = std::vector<Term>;

inline Wide get(const Stack& stack, int64_t r, int64_t k) {
  const void* row = stack.row(r);
  switch (stack.dtype()) {
    case DType::kFloat16: return road::to_float(static_cast<const road::Half*>(row)[k]);
    case DType::kBFloat16: return road::to_float(static_cast<const road::BFloat16*>(row)[k]);
    case DType::kFloat32: return static_cast<const float*>(row)[k];
    default: return static_cast<const double*>(row)[k];
  }
}

// One adapter's table at full width, and the index in p and q from which each entry comes.
struct Table {
  std::vector<Wide> r1, r2;
  std::vector<int64_t> index1, index2;

  Table(const Case& c, int64_t adapter) {
    const int64_t g = c.problem.group_size;
    for (int64_t f = 0; f < c.problem.dim; ++f) {
      const int64_t group = f / g, k = f % g;
      switch (c.problem.form) {
        case Form::kRoad1:
        case Form::kTableHalf: add_index(group * (g / 2) + k % (g / 2), group * (g / 2) + k % (g / 2)); break;
        case Form::kRoad2:
        case Form::kTable: add_index(f, f); break;
        case Form::kRoad4: add_index(group * 2 * g + k, group * 2 * g + g + k); break;
      }
      const Wide p1 = parameter(c, c.p, adapter, index1[f]), p2 = parameter(c, c.p, adapter, index2[f]);
      const Wide q1 = parameter(c, c.q, adapter, index1[f]), q2 = parameter(c, c.q, adapter, index2[f]);
      const bool angles = road::has_angles(c.problem.form);
      r1.push_back(angles ? q1 * std::cos(p1) : p1);
      r2.push_back(angles ? q2 * std::sin(p2) : q2);
    }
  }

  // Parameters are rounded to the arithmetic type when they are loaded, as float64 angles are in a float32 problem.
  static Wide parameter(const Case& c, const Stack& stack, int64_t adapter, int64_t k) {
    const Wide v = get(stack, adapter, k);
    return c.problem.dtype == DType::kFloat64 ? v : static_cast<float>(v);
  }

 private:
  void add_index(int64_t i1, int64_t i2) { index1.push_back(i1), index2.push_back(i2); }
};

inline std::vector<Table> tables(const Case& c) {
  std::vector<Table> out;
  for (int64_t a = 0; a < c.problem.params.adapters; ++a) out.emplace_back(c, a);
  return out;
}

// Calls use(i, j) for every pair of features.
template <class Use>
void for_each_pair(const Case& c, const Use& use) {
  const int64_t half = c.problem.group_size / 2;
  for (int64_t base = 0; base < c.problem.dim; base += 2 * half)
    for (int64_t k = 0; k < half; ++k) use(base + k, base + k + half);
}

// z = R x, or R^T x.
inline Terms oracle_rotate(const Case& c, const Stack& x, bool transposed) {
  const std::vector<Table> bank = tables(c);
  Terms z(c.problem.rows * c.problem.dim);
  for (int64_t r = 0; r < c.problem.rows; ++r) {
    Term* out = z.data() + r * c.problem.dim;
    const int64_t adapter = c.adapter(r);
    for_each_pair(c, [&](int64_t i, int64_t j) {
      const Wide hi = get(x, r, i), hj = get(x, r, j);
      if (adapter < 0) {
        out[i].add(hi, 0), out[j].add(hj, 0);
        return;
      }
      const Table& t = bank[adapter];
      out[i].add(t.r1[i] * hi), out[i].add(transposed ? t.r2[j] * hj : -t.r2[i] * hj);
      out[j].add(t.r1[j] * hj), out[j].add(transposed ? -t.r2[i] * hi : t.r2[j] * hi);
    });
  }
  return z;
}

struct ParameterGradients {
  Terms p, q;
};

// The chain rule, row by row.  `saved` is the input h, or the output z, from which h is recovered.
inline ParameterGradients oracle_gradients(const Case& c, const Stack& gz, const Stack& saved, bool from_output) {
  const std::vector<Table> bank = tables(c);
  const int64_t dim = c.problem.dim, width = road::param_width(c.problem.form, dim);
  const int64_t adapters = c.problem.params.adapters;
  Terms gr1(adapters * dim), gr2(adapters * dim);
  std::vector<bool> used(adapters);
  for (int64_t r = 0; r < c.problem.rows; ++r) {
    const int64_t adapter = c.adapter(r);
    if (adapter < 0) continue;
    used[adapter] = true;
    const Table& t = bank[adapter];
    Term *g1 = gr1.data() + adapter * dim, *g2 = gr2.data() + adapter * dim;
    for_each_pair(c, [&](int64_t i, int64_t j) {
      const Wide gi = get(gz, r, i), gj = get(gz, r, j), si = get(saved, r, i), sj = get(saved, r, j);
      Term hi, hj;
      if (from_output) {
        const Wide diagonal = t.r1[i] * t.r1[j], off_diagonal = t.r2[i] * t.r2[j], det = diagonal + off_diagonal;
        // Cancellation in the determinant amplifies the relative error of everything divided by it.
        const Wide cancels = (std::fabs(diagonal) + std::fabs(off_diagonal)) / std::fabs(det);
        hi.add(t.r1[j] * si / det), hi.add(t.r2[i] * sj / det), hi.magnitude *= cancels;
        hj.add(t.r1[i] * sj / det), hj.add(-t.r2[j] * si / det), hj.magnitude *= cancels;
      } else {
        hi.add(si), hj.add(sj);
      }
      g1[i].add(gi * hi.value, std::fabs(gi) * hi.magnitude), g2[i].add(-gi * hj.value, std::fabs(gi) * hj.magnitude);
      g1[j].add(gj * hj.value, std::fabs(gj) * hj.magnitude), g2[j].add(gj * hi.value, std::fabs(gj) * hi.magnitude);
    });
  }

  ParameterGradients out{Terms(adapters * width), Terms(adapters * width)};
  const auto chain = [](Term& to, const Term& from, Wide by) {
    to.add(from.value * by, from.magnitude * std::fabs(by));
  };
  for (int64_t a = 0; a < adapters; ++a)
    for (int64_t f = 0; used[a] && f < dim; ++f) {  // unused: zeros, even if its parameters are NaN
      const int64_t k1 = bank[a].index1[f], k2 = bank[a].index2[f];
      const Term &g1 = gr1[a * dim + f], &g2 = gr2[a * dim + f];
      Term *p = out.p.data() + a * width, *q = out.q.data() + a * width;
      if (!road::has_angles(c.problem.form)) {
        chain(p[k1], g1, 1), chain(q[k2], g2, 1);
        continue;
      }
      const Wide theta1 = Table::parameter(c, c.p, a, k1), theta2 = Table::parameter(c, c.p, a, k2);
      chain(p[k1], g1, -Table::parameter(c, c.q, a, k1) * std::sin(theta1)), chain(q[k1], g1, std::cos(theta1));
      chain(p[k2], g2, Table::parameter(c, c.q, a, k2) * std::cos(theta2)), chain(q[k2], g2, std::sin(theta2));
    }
  return out;
}

// --- how far from the oracle a result may be -----------------------------------------------------------------------

// Half a unit in the last place of v: the error of one rounding to nearest.
inline double half_ulp(DType dtype, double v) {
  constexpr int min_exponents[] = {-14, -126, -126, -1022}, mantissa_bits[] = {10, 7, 23, 52};
  const int d = static_cast<int>(dtype);
  const int exponent = v == 0 ? min_exponents[d] : std::max(min_exponents[d], std::ilogb(v));
  return std::ldexp(0.5, exponent - mantissa_bits[d]);
}

// Roundings of one rotation: cos or sin (correctly rounded, or nearly) times alpha; one product; the sum, if the store
// rounds again.
inline double rotation_roundings(const Case& c) {
  return (road::has_angles(c.problem.form) ? 2.1 : 0) + 1.001 + (road::size_of(c.problem.dtype) == 2);
}

// Allows `roundings` of half an epsilon of the magnitude each, and one rounding to the dtype of the result.
inline void compare(Regime& regime, const Case& c, const Stack& got, const Terms& want, double roundings,
                    const char* what) {
  const double epsilon = c.problem.dtype == DType::kFloat64 ? std::numeric_limits<double>::epsilon()
                                                            : std::numeric_limits<float>::epsilon();
  const double unit = epsilon / 2 + static_cast<double>(std::numeric_limits<Wide>::epsilon());  // the oracle's own too
  for (int64_t r = 0; r < got.count(); ++r)
    for (int64_t k = 0; k < got.dim(); ++k) {
      const Term& term = want[r * got.dim() + k];
      const double arithmetic = roundings * unit * static_cast<double>(term.magnitude);
      const double bound = arithmetic + half_ulp(got.dtype(), static_cast<double>(std::fabs(term.value)) + arithmetic);
      const Wide value = get(got, r, k);
      const double error = static_cast<double>(std::fabs(value - term.value));
      CHECK(regime, error <= bound, what, " of ", c.describe(), " at row ", r, " element ", k, ": got ", value,
            ", want ", term.value, ", off by ", error, ", bound ", bound);
      regime.note_error(error / bound);
    }
}
