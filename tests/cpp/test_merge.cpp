// The op on a matrix whose rows are the features, which must equal rotate on its transpose.
#include "oracle.h"
#include "test_road_cpu.h"

namespace {

// to(k, r) = from(r, k), bit for bit.
void transpose(const Stack& from, Stack& to) {
  const int64_t size = road::size_of(from.dtype());
  for (int64_t r = 0; r < from.count(); ++r)
    for (int64_t k = 0; k < from.dim(); ++k) std::memcpy(to.row(k) + r * size, from.row(r) + k * size, size);
}

road::Matrix matrix(Stack& stack) { return {stack.data(), stack.rows().outer_stride}; }

void test_values(DType dtype, Form form) {
  Regime regime("rows of a matrix, ", name(dtype), " ", name(form));
  Random random(7);
  // Columns (the shape's rows) around the vector widths, one, and enough for several threads.
  constexpr Shape shapes[] = {{1, 2, 2}, {15, 6, 2}, {16, 24, 6}, {67, 140, 70}, {33, 64, 64}, {5000, 24, 8}};
  for (const Shape& shape : shapes)
    for (const Layout layout : {kDense, kUnaligned, kSlice})
      for (const bool in_place : {false, true}) {
        Case c(dtype, form, shape);
        c.fill_parameters(random);
        Stack x = c.make_rows(), z = c.make_rows();
        x.fill(random);
        Stack w(dtype, shape.dim, shape.rows, layout), out(dtype, shape.dim, shape.rows, layout);
        transpose(x, w);
        Stack& target = in_place ? w : out;
        road::cpu::merge(c.problem, matrix(w), matrix(target), kThreads3);
        CHECK(regime, target.padding_untouched(), c.describe());
        transpose(target, z);
        compare(regime, c, z, oracle_rotate(c, x, false), rotation_roundings(c), "R W");
      }
}

void test_order_of_the_ranges() {
  Regime regime("rows of a matrix, any threads give the same bits");
  Random random(8);
  Case c(DType::kFloat32, Form::kRoad4, {70000, 12, 6});
  c.fill_parameters(random);
  Stack w(DType::kFloat32, 12, 70000), one(DType::kFloat32, 12, 70000), other(DType::kFloat32, 12, 70000);
  w.fill(random);
  road::cpu::merge(c.problem, matrix(w), matrix(one), kSerial);
  for (const road::cpu::Parallel& parallel : {kBackwards, kThreads2, kThreads3}) {
    road::cpu::merge(c.problem, matrix(w), matrix(other), parallel);
    CHECK(regime, one.same_rows(other));
  }
}

void test_no_columns() {
  Regime regime("rows of a matrix without columns");
  Case c(DType::kFloat32, Form::kTable, {0, 6, 2});
  road::cpu::merge(c.problem, {nullptr, 0}, {nullptr, 0}, kSerial);
  CHECK(regime, true);
}

}  // namespace

void test_merge() {
  for (const DType dtype : kDTypes)
    for (const Form form : kForms) test_values(dtype, form);
  test_order_of_the_ranges();
  test_no_columns();
}
