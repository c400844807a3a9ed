// Forward with one adapter.
#include "oracle.h"
#include "test_road_cpu.h"

namespace {

using road::cpu::rotate;

// Widths around those of vectors: tails of every length, one pair, several groups, groups that are no power of two.
constexpr Shape kShapes[] = {
    {5, 2, 2},    {5, 6, 2},     {5, 6, 6},    {3, 8, 8},     {3, 24, 6},      {3, 24, 8},   {3, 140, 2},
    {3, 140, 70}, {3, 140, 140}, {3, 192, 2},  {3, 192, 6},   {3, 192, 8},     {3, 192, 64}, {3, 192, 192},
    {2, 70, 2},   {2, 70, 70},   {1, 4096, 2}, {1, 4096, 64}, {1, 4096, 4096}, {1, 128, 64},
};

void check_values(Regime& regime, Case& c, Random& random) {
  Stack x = c.make_rows(), z = c.make_rows();
  x.fill(random);
  c.fill_parameters(random);
  for (const bool transposed : {false, true}) {
    rotate(c.problem, x.rows(), z.rows(), transposed, kSerial);
    compare(regime, c, z, oracle_rotate(c, x, transposed), rotation_roundings(c), transposed ? "R^T x" : "R x");
  }
}

void test_values(DType dtype, Form form) {
  Regime regime("forward and transposed, ", name(dtype), " ", name(form));
  Random random(1);
  const DType parameters = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  for (const Shape& shape : kShapes) {
    Case c(dtype, form, shape, 1, parameters, parameters);
    check_values(regime, c, random);
  }
}

void test_parameter_dtypes(DType dtype, Form form) {
  Regime regime("parameters of any dtype, ", name(dtype), " ", name(form));
  Random random(2);
  for (const DType p : kDTypes)
    for (const DType q : kDTypes) {
      Case c(dtype, form, {2, 60, 6}, 1, p, q);
      check_values(regime, c, random);
    }
}

// Finite numbers of every kind: both zeros, the smallest and largest subnormal, the largest, random bits.
void fill_finite_bits(Stack& x, Random& random) {
  const int64_t size = road::size_of(x.dtype());
  constexpr int mantissa_bits[] = {10, 7, 23, 52};
  const int mantissa = mantissa_bits[static_cast<int>(x.dtype())];
  const uint64_t sign = uint64_t{1} << (8 * size - 1), normal = uint64_t{1} << mantissa, infinity = sign - normal;
  const uint64_t special[] = {0, 1, normal - 1, normal, infinity - 1};
  for (int64_t r = 0; r < x.count(); ++r)
    for (int64_t k = 0; k < x.dim(); ++k) {
      uint64_t bits = random.bits() & (sign - 1);
      if (random.below(3) == 0) bits = special[random.below(5)];
      if ((bits & infinity) == infinity) bits -= normal;
      if (random.below(2)) bits |= sign;
      std::memcpy(x.row(r) + k * size, &bits, size);
    }
}

void test_identity(DType dtype, Form form) {
  Regime regime("identity is bit for bit, ", name(dtype), " ", name(form));
  Random random(3);
  for (const Shape& shape : kShapes)
    for (const double zero : {0.0, -0.0})
      for (const bool transposed : {false, true}) {
        Case c(dtype, form, shape);
        c.fill_identity(zero);
        Stack x = c.make_rows(), z = c.make_rows();
        fill_finite_bits(x, random);
        rotate(c.problem, x.rows(), z.rows(), transposed, kSerial);
        for (int64_t r = 0; r < x.count(); ++r)
          for (int64_t k = 0; k < x.dim(); ++k) {
            const int64_t size = road::size_of(dtype);
            CHECK(regime, !std::memcmp(x.row(r) + k * size, z.row(r) + k * size, size), c.describe(), " row ", r,
                  " element ", k, ": ", get(x, r, k), " became ", get(z, r, k), " theta ", zero);
          }
      }
}

void test_layouts(DType dtype, Form form) {
  Regime regime("layouts and in place, ", name(dtype), " ", name(form));
  Random random(4);
  for (const Shape& shape : {Shape{7, 6, 6}, {7, 70, 2}, {7, 140, 140}, {7, 192, 64}})
    for (const bool transposed : {false, true}) {
      Case c(dtype, form, shape);
      c.fill_parameters(random);
      Stack x = c.make_rows(), expected = c.make_rows();
      x.fill(random);
      rotate(c.problem, x.rows(), expected.rows(), transposed, kSerial);
      for (const Layout& from : {kDense, kUnaligned, kSlice, kTwoStrides, kTransposed}) {
        Stack source = c.make_rows(from);
        source.copy_rows(x);
        for (const Layout& to : {kDense, kUnaligned, kSlice, kTwoStrides, kTransposed}) {
          Stack z = c.make_rows(to);
          rotate(c.problem, source.rows(), z.rows(), transposed, kSerial);
          CHECK(regime, z.same_rows(expected), c.describe(), " differs from the dense result");
          CHECK(regime, z.padding_untouched(), c.describe(), " wrote outside its rows");
        }
        CHECK(regime, source.same_rows(x) && source.padding_untouched(), c.describe(), " changed its input");
        rotate(c.problem, source.rows(), source.rows(), transposed, kSerial);
        CHECK(regime, source.same_rows(expected), c.describe(), " in place differs from out of place");
        CHECK(regime, source.padding_untouched(), c.describe(), " in place wrote outside its rows");
      }
    }
}

// An infinite or NaN input or parameter affects its own pair and nothing else.
void test_not_finite(DType dtype, Form form) {
  Regime regime("infinity and NaN stay in their pair, ", name(dtype), " ", name(form));
  Random random(5);
  for (const Shape& shape : {Shape{3, 140, 2}, {3, 140, 140}, {3, 192, 64}})
    for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()})
      for (int position = 0; position < 8; ++position) {
        // The first pair, one in the middle, one in the tail after vectors of 4, the last.
        const int64_t pairs = shape.dim / 2, half = shape.group_size / 2;
        const int64_t pair = std::vector<int64_t>{0, pairs / 2, pairs - 4, pairs - 1}[position / 2];
        const int64_t i = pair / half * shape.group_size + pair % half, j = i + half;
        const bool in_parameter = position % 2;
        Case c(dtype, form, shape);
        c.fill_parameters(random);
        Stack x = c.make_rows(), z = c.make_rows(), expected = c.make_rows();
        x.fill(random);
        rotate(c.problem, x.rows(), expected.rows(), false, kSerial);
        if (in_parameter) c.p.set(0, Table(c, 0).index1[i], bad);
        else x.set(1, i, bad);
        rotate(c.problem, x.rows(), z.rows(), false, kSerial);
        for (int64_t r = 0; r < x.count(); ++r)
          for (int64_t k = 0; k < x.dim(); ++k)
            if ((k == i || k == j) && (in_parameter || r == 1))
              CHECK(regime, k != i || !std::isfinite(get(z, r, k)), c.describe(), " element ", k, ": ", get(z, r, k));
            else
              CHECK(regime, get(z, r, k) == get(expected, r, k), c.describe(), " row ", r, " element ", k, ": ",
                    get(z, r, k), " instead of ", get(expected, r, k));
      }
}

void test_no_rows() {
  Regime regime("no rows");
  Case c(DType::kFloat32, Form::kRoad2, {0, 8, 2});
  c.fill_identity();
  Stack padding(DType::kFloat32, 0, 8, kUnaligned);
  rotate(c.problem, padding.rows(), padding.rows(), false, kThreads2);
  rotate(c.problem, {}, {}, true, kSerial);
  c.use_ids({}, true, 1);
  rotate(c.problem, padding.rows(), padding.rows(), false, kThreads2);
  CHECK(regime, padding.padding_untouched(), "wrote without a row");
}

}  // namespace

void test_forward() {
  for (const DType dtype : kDTypes)
    for (const Form form : kForms) {
      test_values(dtype, form);
      test_parameter_dtypes(dtype, form);
      test_identity(dtype, form);
      test_layouts(dtype, form);
      test_not_finite(dtype, form);
    }
  test_no_rows();
}
