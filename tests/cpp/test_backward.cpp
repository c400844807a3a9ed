// Backward with one adapter.
#include "gradients.h"
#include "test_road_cpu.h"

namespace {

using road::cpu::backward;
using road::cpu::rotate;

// 130 rows make three blocks of sums; 64 and 65 are around the end of the first.
constexpr Shape kShapes[] = {{1, 2, 2},     {64, 6, 6},   {65, 6, 2},   {130, 24, 8},  {5, 140, 2},
                             {5, 140, 140}, {130, 72, 6}, {9, 192, 8},  {7, 192, 64},  {7, 192, 192},
                             {4200, 6, 2},  {3, 70, 70},  {4, 128, 64}, {1, 4096, 64}, {2, 4096, 4096}};

DType parameter_dtype(DType dtype) { return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

// Checks the oracle's gradients by central differences of its forward, so that not everything rests on one derivation.
void test_oracle(Form form) {
  Regime regime("the oracle agrees with finite differences, ", name(form));
  Random random(11);
  Case c(DType::kFloat64, form, {2, 12, 6}, 1, DType::kFloat64, DType::kFloat64);
  c.fill_parameters(random, /*well_conditioned=*/true);
  Stack x = c.make_rows(), gz = c.make_rows(), z = c.make_rows();
  x.fill(random);
  gz.fill(random);
  const auto loss = [&] {
    const Terms out = oracle_rotate(c, x, false);
    Wide sum = 0;
    for (int64_t r = 0; r < 2; ++r)
      for (int64_t k = 0; k < 12; ++k) sum += get(gz, r, k) * out[r * 12 + k].value;
    return sum;
  };
  const Terms forward = oracle_rotate(c, x, false), gx = oracle_rotate(c, gz, true);
  for (int64_t k = 0; k < 24; ++k) z.set(k / 12, k % 12, static_cast<double>(forward[k].value));
  const ParameterGradients from_x = oracle_gradients(c, gz, x, false), from_z = oracle_gradients(c, gz, z, true);
  const auto check = [&](Stack& stack, int64_t row, int64_t k, const Term& gradient, const char* what) {
    // A power of two, which adds exactly to values below 2; the error is h^2 / 6, about 1e-7.
    const double v = static_cast<double>(get(stack, row, k)), h = 0x1p-10;
    stack.set(row, k, v + h);
    const Wide above = loss();
    stack.set(row, k, v - h);
    const Wide slope = (above - loss()) / (2 * h);
    stack.set(row, k, v);
    CHECK(regime, std::fabs(slope - gradient.value) <= h * h / 3 * gradient.magnitude + 1e-5 * h, what, " ", k, ": ",
          gradient.value, ", slope ", slope);
  };
  for (int64_t k = 0; k < 24; ++k) check(x, k / 12, k % 12, gx[k], "gx");
  for (int64_t k = 0; k < c.p.dim(); ++k) {
    check(c.p, 0, k, from_x.p[k], "gp"), check(c.q, 0, k, from_x.q[k], "gq");
    check(c.p, 0, k, from_z.p[k], "gp of z"), check(c.q, 0, k, from_z.q[k], "gq of z");
  }
}

void test_values(DType dtype, Form form, bool from_output) {
  Regime regime(from_output ? "backward from the output, " : "backward, ", name(dtype), " ", name(form));
  Random random(12);
  for (const Shape& shape : kShapes) {
    Case c(dtype, form, shape, 1, parameter_dtype(dtype), parameter_dtype(dtype));
    c.fill_parameters(random, /*well_conditioned=*/from_output);
    check_gradients(regime, c, random, from_output);
  }
}

void test_parameter_dtypes(DType dtype, Form form) {
  Regime regime("gradients in any dtype, ", name(dtype), " ", name(form));
  Random random(13);
  for (const DType p : kDTypes)
    for (const DType q : kDTypes)
      for (const bool from_output : {false, true}) {
        Case c(dtype, form, {6, 60, 6}, 1, p, q);
        c.fill_parameters(random, from_output);
        check_gradients(regime, c, random, from_output);
      }
}

// Every choice of gx, gp and gq: the chosen ones equal those of a full backward, the others are not written.
void test_what_is_asked(DType dtype, Form form) {
  Regime regime("only what is asked for, ", name(dtype), " ", name(form));
  Random random(14);
  for (const Shape& shape : {Shape{70, 72, 2}, {5, 140, 140}}) {
    Case c(dtype, form, shape);
    c.fill_parameters(random);
    Stack x = c.make_rows(), gz = c.make_rows();
    x.fill(random);
    gz.fill(random);
    const Results untouched(c);
    for (int mask = 0; mask < 8; ++mask) {
      const bool want_gx = mask & 1, want_gp = mask & 2, want_gq = mask & 4;
      Results got(c);
      backward(c.problem, gz.rows(), x.rows(), false, got.wanted(want_gx, want_gp, want_gq), kSerial);
      if (want_gx) compare_gx(regime, c, gz, got);
      else CHECK(regime, got.gx.same_rows(untouched.gx), c.describe(), " wrote gx, mask ", mask);
      compare_parameters(regime, c, gz, x, false, got, want_gp, want_gq);
      CHECK(regime, want_gp || got.gp.same_rows(untouched.gp), c.describe(), " wrote gp, mask ", mask);
      CHECK(regime, want_gq || got.gq.same_rows(untouched.gq), c.describe(), " wrote gq, mask ", mask);
    }
  }
}

void test_layouts(DType dtype, Form form) {
  Regime regime("backward, layouts, ", name(dtype), " ", name(form));
  Random random(15);
  for (const Shape& shape : {Shape{67, 6, 6}, {7, 70, 2}, {7, 140, 140}, {7, 192, 64}}) {
    Case c(dtype, form, shape);
    c.fill_parameters(random);
    Stack x = c.make_rows(), gz = c.make_rows();
    x.fill(random);
    gz.fill(random);
    Results expected(c);
    backward(c.problem, gz.rows(), x.rows(), false, expected.wanted(), kSerial);
    constexpr Layout kLayouts[] = {kDense, kUnaligned, kSlice, kTwoStrides, kTransposed};
    for (int k = 0; k < 5; ++k) {
      Stack gz2 = c.make_rows(kLayouts[k]), x2 = c.make_rows(kLayouts[(k + 1) % 5]);
      gz2.copy_rows(gz);
      x2.copy_rows(x);
      Results got(c, kLayouts[(k + 3) % 5]);
      backward(c.problem, gz2.rows(), x2.rows(), false, got.wanted(), kSerial);
      CHECK(regime, got.same_as(expected), c.describe(), " differs from the dense result, layout ", k);
      CHECK(regime, got.padding_untouched(), c.describe(), " wrote outside its outputs, layout ", k);
      CHECK(regime, gz2.same_rows(gz) && gz2.padding_untouched(), c.describe(), " changed gz, layout ", k);
      CHECK(regime, x2.same_rows(x) && x2.padding_untouched(), c.describe(), " changed x, layout ", k);
    }
    // The gradient of a sum: one row, expanded by a stride of zero.
    for (int64_t r = 1; r < gz.count(); ++r) std::memcpy(gz.row(r), gz.row(0), gz.row_bytes());
    backward(c.problem, gz.rows(), x.rows(), false, expected.wanted(), kSerial);
    Results got(c);
    backward(c.problem, {gz.data(), 1, 0, 0}, x.rows(), false, got.wanted(), kSerial);
    CHECK(regime, got.same_as(expected), c.describe(), " differs with an expanded gz");
  }
}

void test_no_rows(Form form) {
  Regime regime("backward without rows gives zeros, ", name(form));
  Random random(16);
  for (const DType dtype : kDTypes)
    for (const bool with_ids : {false, true})
      for (const bool from_output : {false, true}) {
        Case c(dtype, form, {0, 24, 6}, 3, dtype, dtype);
        c.fill_parameters(random);
        if (with_ids) c.use_ids({}, false, 2);
        Results got(c);
        backward(c.problem, {}, {}, from_output, got.wanted(false), kThreads2);
        Results zeros(c);
        zeros.gp.fill(0);
        zeros.gq.fill(0);
        CHECK(regime, got.gp.same_rows(zeros.gp) && got.gq.same_rows(zeros.gq), c.describe());
        CHECK(regime, got.padding_untouched(), c.describe(), " wrote outside its outputs");
      }
}

}  // namespace

void test_backward() {
  for (const Form form : kForms) {
    test_oracle(form);
    test_no_rows(form);
  }
  for (const DType dtype : kDTypes)
    for (const Form form : kForms) {
      test_values(dtype, form, false);
      test_values(dtype, form, true);
      test_parameter_dtypes(dtype, form);
      test_what_is_asked(dtype, form);
      test_layouts(dtype, form);
    }
}
