// The coefficients of all adapters.
#include "oracle.h"
#include "test_road_cpu.h"

namespace {

void test_values(DType dtype, Form form) {
  Regime regime("tables, ", name(dtype), " ", name(form));
  Random random(31);
  constexpr int64_t adapters = 5;
  const int64_t copies = road::is_shared(form) ? 2 : 1;  // shared forms: [D/g, g/2], both rows of a pair
  for (const Shape& shape : {Shape{0, 2, 2}, Shape{0, 12, 6}, Shape{0, 4096, 64}})
    for (const DType from : {DType::kBFloat16, DType::kFloat32, DType::kFloat64}) {
      Case c(dtype, form, shape, adapters, from, DType::kFloat32);
      c.fill_parameters(random);
      const int64_t width = shape.dim / copies, half = shape.group_size / 2;
      Stack r1(dtype, adapters, width), r2(dtype, adapters, width);
      road::cpu::tables(c.problem, r1.data(), r2.data(), kThreads3);
      const std::vector<Table> want = tables(c);
      // sin and cos of float32 are correct to 1.5 units, and the product rounds once more.
      const Wide unit = dtype == DType::kFloat64 ? 0x1p-53L : 0x1p-24L;
      for (int64_t a = 0; a < adapters; ++a)
        for (int64_t k = 0; k < width; ++k) {
          const int64_t feature = copies == 1 ? k : k / half * shape.group_size + k % half;
          const Wide e1 = std::fabs(get(r1, a, k) - want[a].r1[feature]);
          const Wide e2 = std::fabs(get(r2, a, k) - want[a].r2[feature]);
          const Wide bound = 4 * unit * 1.5L;  // |alpha| < 1.5
          CHECK(regime, e1 <= bound && e2 <= bound, c.describe(), " adapter ", a, " entry ", k);
          regime.note_error(static_cast<double>(std::fmax(e1, e2) / bound));
        }
    }
}

void test_no_adapters() {
  Regime regime("tables of no adapters");
  Case c(DType::kFloat32, Form::kRoad2, {0, 6, 2}, 0);
  road::cpu::tables(c.problem, nullptr, nullptr, kSerial);
  CHECK(regime, true);
}

}  // namespace

void test_tables() {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64})
    for (const Form form : {Form::kRoad1, Form::kRoad2, Form::kRoad4}) test_values(dtype, form);
  test_no_adapters();
}
