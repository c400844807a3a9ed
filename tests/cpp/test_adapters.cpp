// Mixed batches, and the two checks of ids and parameters that a caller makes.
#include "gradients.h"
#include "test_road_cpu.h"

namespace {

using road::cpu::find_singular;
using road::cpu::first_bad_id;

struct Batch {
  const char* name;
  int64_t adapters;
  std::vector<int64_t> ids;
};

// Several hundred ids, so that adapters have more than one block of 64 rows.
std::vector<int64_t> many_ids(int64_t adapters, int64_t count) {
  Random random(21);
  std::vector<int64_t> ids(count);
  for (int64_t& id : ids) id = random.below(adapters + 1) - 1;
  return ids;
}

const Batch kBatches[] = {
    {"unsorted, repeated, -1 first and last", 4, {-1, 3, 0, 3, 1, -1, 0, 3, -1}},
    {"no -1", 3, {2, 0, 1, 1, 0, 2, 2}},
    {"only -1", 2, {-1, -1, -1}},
    {"adapters 0, 2 and the last without a row", 5, {1, 3, 3, 1, -1, 3}},
    {"only the last adapter", 6, {5, 5}},
    {"one adapter, one id", 1, {0}},
    {"more adapters than rows", 40, {39, 0, 17}},
    {"hundreds of rows", 3, many_ids(3, 300)},
};

// NaN in every adapter that no row uses: whether it is read or not, it must not matter.
void spoil_unused(Case& c) {
  std::vector<bool> used(c.problem.params.adapters);
  for (const int64_t id : c.ids64)
    if (id >= 0) used[id] = true;
  for (int64_t a = 0; a < c.problem.params.adapters; ++a)
    for (int64_t k = 0; k < c.p.dim() && !used[a]; ++k) c.p.set(a, k, NAN), c.q.set(a, k, NAN);
}

void fill_any_bits(Stack& x, int64_t row, Random& random) {
  for (int64_t k = 0; k < x.row_bytes(); ++k) x.row(row)[k] = static_cast<unsigned char>(random.bits());
}

void check_batch(Regime& regime, Case& c, Random& random, bool from_output) {
  c.fill_parameters(random, from_output);
  spoil_unused(c);
  Stack x = c.make_rows(), gz = c.make_rows(kUnaligned), z = c.make_rows(kTwoStrides);
  x.fill(random);
  gz.fill(random);
  road::cpu::rotate(c.problem, x.rows(), z.rows(), false, kThreads2);
  compare(regime, c, z, oracle_rotate(c, x, false), rotation_roundings(c), "z");
  CHECK(regime, z.padding_untouched(), c.describe(), " wrote outside its rows");

  Results got(c, kSlice);
  Stack& saved = from_output ? z : x;
  road::cpu::backward(c.problem, gz.rows(), saved.rows(), from_output, got.wanted(), kThreads2);
  compare_gx(regime, c, gz, got);
  compare_parameters(regime, c, gz, saved, from_output, got);
  CHECK(regime, got.padding_untouched(), c.describe(), " wrote outside its outputs");

  // Pass-through rows are copied whatever they contain, and contribute to no gradient.
  Stack any_x = c.make_rows(), any_gz = c.make_rows(), in_place = c.make_rows(kTransposed);
  any_x.copy_rows(saved);
  any_gz.copy_rows(gz);
  for (int64_t r = 0; r < c.problem.rows; ++r)
    if (c.adapter(r) < 0) fill_any_bits(any_x, r, random), fill_any_bits(any_gz, r, random);
  Results again(c);
  road::cpu::backward(c.problem, any_gz.rows(), any_x.rows(), from_output, again.wanted(), kSerial);
  CHECK(regime, again.gp.same_rows(got.gp) && again.gq.same_rows(got.gq), c.describe(), " used a row without adapter");
  in_place.copy_rows(any_x);
  road::cpu::rotate(c.problem, any_x.rows(), z.rows(), true, kSerial);
  road::cpu::rotate(c.problem, in_place.rows(), in_place.rows(), true, kSerial);
  CHECK(regime, in_place.same_rows(z) && in_place.padding_untouched(), c.describe(), " in place differs");
  for (int64_t r = 0; r < c.problem.rows; ++r) {
    if (c.adapter(r) >= 0) continue;
    CHECK(regime, z.same_row(any_x, r) && again.gx.same_row(any_gz, r), c.describe(), " changed row ", r);
  }
}

void test_batch(const Batch& batch, Form form) {
  Regime regime("mixed batch, ", name(form), ": ", batch.name);
  Random random(22);
  for (const DType dtype : kDTypes)
    for (const bool is_int64 : {false, true})
      for (const bool from_output : {false, true}) {
        const int64_t rows_per_id = is_int64 == from_output ? 1 : 3;
        const int64_t rows = static_cast<int64_t>(batch.ids.size()) * rows_per_id;
        const DType parameters = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
        const Shape shape = rows > 200 ? Shape{rows, 6, 2} : Shape{rows, 36, is_int64 ? 6 : 36};
        Case c(dtype, form, shape, batch.adapters, parameters, parameters);
        c.use_ids(batch.ids, is_int64, rows_per_id);
        check_batch(regime, c, random, from_output);
      }
}

// A row's result equals, bit for bit, that of its adapter alone.
void test_independent_rows(DType dtype, Form form) {
  Regime regime("a row does not depend on the batch, ", name(dtype), " ", name(form));
  Random random(23);
  Case c(dtype, form, {9, 192, 64}, 4);
  c.fill_parameters(random);
  Stack x = c.make_rows(), z = c.make_rows(), alone = c.make_rows();
  x.fill(random);
  c.use_ids(kBatches[0].ids, true, 1);
  road::cpu::rotate(c.problem, x.rows(), z.rows(), false, kSerial);
  for (int64_t r = 0; r < 9; ++r) {
    if (c.adapter(r) < 0) continue;
    Case one(dtype, form, {1, 192, 64});
    std::memcpy(one.p.row(0), c.p.row(c.adapter(r)), c.p.row_bytes());
    std::memcpy(one.q.row(0), c.q.row(c.adapter(r)), c.q.row_bytes());
    const road::Rows from{x.row(r), 1, 0, 0}, to{alone.row(r), 1, 0, 0};
    road::cpu::rotate(one.problem, from, to, false, kSerial);
    CHECK(regime, z.same_row(alone, r), c.describe(), " row ", r);
  }
}

void test_bad_ids() {
  Regime regime("the first bad id");
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max(), kMin = std::numeric_limits<int64_t>::min();
  constexpr int64_t kMax32 = std::numeric_limits<int32_t>::max(), kMin32 = std::numeric_limits<int32_t>::min();
  constexpr int64_t k2To32 = int64_t{1} << 32;  // truncated to 32 bits, these are 0 and -1
  const auto check = [&](const std::vector<int64_t>& ids, int64_t want, bool fits32 = true) {
    Case c(DType::kFloat32, Form::kRoad1, {static_cast<int64_t>(ids.size()), 4, 2}, 3);
    for (const bool is_int64 : {true, false}) {
      if (!is_int64 && !fits32) continue;
      c.use_ids(ids, is_int64, 1);
      const int64_t got = first_bad_id(c.problem);
      CHECK(regime, got == want, "got ", got, ", want ", want, is_int64 ? " of int64" : " of int32");
    }
  };
  check({0, 1, 2, -1}, -1), check({}, -1), check({-1, -1}, -1);
  check({3}, 0), check({0, 3, -2}, 1), check({-2}, 0), check({2, 2, 2, -1, -2}, 4);
  check({0, kMax32}, 1), check({0, kMin32}, 1);
  check({0, kMax}, 1, false), check({kMin, 0}, 0, false);
  check({1, k2To32}, 1, false), check({1, k2To32 - 1}, 1, false), check({-1 - k2To32}, 0, false);
  Case c(DType::kFloat32, Form::kRoad1, {5, 4, 2}, 3);
  CHECK(regime, first_bad_id(c.problem) == -1, "a batch without ids has a bad one");
}

void test_singular(DType dtype) {
  Regime regime("singular blocks, ", name(dtype));
  const auto check = [&](const Case& c, road::cpu::Singular want, const char* what) {
    const road::cpu::Singular got = find_singular(c.problem);
    CHECK(regime, got.adapter == want.adapter && got.feature == want.feature, what, " in ", c.describe(), ": adapter ",
          got.adapter, " feature ", got.feature, ", want ", want.adapter, " and ", want.feature);
    CHECK(regime, std::fabs(got.determinant) <= 1e-6, what, ": determinant ", got.determinant);
  };
  Random random(24);
  const DType parameters = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  for (const Form form : kForms) {
    Case c(dtype, form, {4, 24, 8}, 3, parameters, parameters);
    c.fill_parameters(random, /*well_conditioned=*/true);
    check(c, {}, "nothing singular");
    // Pair (9, 13) of adapter 1: everything behind its r1 and r2 becomes zero.
    const Table table(c, 1);
    for (const int64_t f : {9, 13}) {
      if (!road::has_angles(form)) c.p.set(1, table.index1[f], 0);
      c.q.set(1, table.index1[f], 0), c.q.set(1, table.index2[f], 0);
    }
    c.use_ids({2, 1, -1, 0}, true, 1);
    check(c, {1, 9, 0}, "a zero block");
    c.use_ids({2, 0, -1, 0}, false, 1);
    check(c, {}, "a zero block that no row uses");
    c.problem.rows = 0;
    c.problem.ids = {};
    check(c, {}, "no rows");
  }
  // cos cos + sin sin with angles a quarter turn apart: no alpha is zero, the products cancel.
  for (const Form form : {Form::kRoad2, Form::kTable}) {
    Case c(dtype, form, {1, 12, 4}, 1, parameters, parameters);
    c.fill_parameters(random, /*well_conditioned=*/true);
    const bool angles = form == Form::kRoad2;
    c.p.set(0, 5, angles ? 0.78539816339744830962 : 0.5), c.p.set(0, 7, angles ? -0.78539816339744830962 : 0.5);
    c.q.set(0, 5, angles ? 2 : 0.5), c.q.set(0, 7, angles ? 1.5 : -0.5);
    check(c, {0, 5, 0}, "a determinant that cancels");
    c.p.set(0, 5, angles ? 0.7 : 0.55);
    check(c, {}, "a determinant that is small but sound");
  }
}

}  // namespace

void test_adapters() {
  for (const Form form : kForms)
    for (const Batch& batch : kBatches) test_batch(batch, form);
  for (const DType dtype : kDTypes) {
    for (const Form form : kForms) test_independent_rows(dtype, form);
    test_singular(dtype);
  }
  test_bad_ids();
}
