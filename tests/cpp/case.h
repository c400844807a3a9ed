// Problems that own their memory, in the layouts of a caller's tensors, and ways to run them on threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/dispatch.h"
#include "cpu/road_cpu.h"

using road::DType;
using road::Form;

constexpr DType kDTypes[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64};
constexpr Form kForms[] = {Form::kRoad1, Form::kRoad2, Form::kRoad4, Form::kTable, Form::kTableHalf};

inline const char* name(DType dtype) {
  constexpr const char* names[] = {"float16", "bfloat16", "float32", "float64"};
  return names[static_cast<int>(dtype)];
}
inline const char* name(Form form) {
  constexpr const char* names[] = {"road_1", "road_2", "road_4", "table", "table_half"};
  return names[static_cast<int>(form)];
}

// splitmix64: the same numbers on every standard library.
class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  double uniform(double low, double high) { return low + (high - low) * (static_cast<double>(bits() >> 11) * 0x1p-53); }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  // Of either sign, over several binades, so that the terms of a sum have different exponents.
  double value() { return uniform(-1, 1) * static_cast<double>(1 << below(4)) * 0.25; }

 private:
  uint64_t state_;
};

// The layout of a stack of rows, in elements.
struct Layout {
  int64_t inner_rows = 1;    // > 1: the stack has two strides
  int64_t margin = 0;        // before the first row and after the last
  int64_t gap = 0;           // after every row
  int64_t outer_gap = 0;     // after every inner_rows rows
  bool interleaved = false;  // neighbouring rows are inner_rows apart, as in the transpose of a [T, B, D] tensor
};
constexpr Layout kDense{};  // ends with its last row, so that a sanitizer sees any access past it
constexpr Layout kUnaligned{1, 1, 0, 0, false};
constexpr Layout kSlice{1, 2, 7, 0, false};
constexpr Layout kTwoStrides{3, 2, 5, 11, false};
constexpr Layout kTransposed{3, 1, 4, 0, true};

// All bytes outside the rows are 0xff, which is NaN in every dtype: a read past a row shows in the result.
class Stack {
 public:
  Stack(DType dtype, int64_t rows, int64_t dim, Layout layout = {})
      : dtype_(dtype), count_(rows), dim_(dim), margin_(layout.margin) {
    const int64_t outer_rows = (rows + layout.inner_rows - 1) / layout.inner_rows;
    view_.inner_rows = layout.inner_rows;
    view_.inner_stride = (dim + layout.gap) * (layout.interleaved ? outer_rows : 1);
    view_.outer_stride = dim + layout.gap;
    if (!layout.interleaved) view_.outer_stride = view_.outer_stride * layout.inner_rows + layout.outer_gap;
    int64_t elements = 2 * margin_;
    for (int64_t r = 0; r < rows; ++r) elements = std::max(elements, 2 * margin_ + view_.offset(r) + dim + layout.gap);
    bytes_.assign(elements * road::size_of(dtype), 0xff);
  }

  DType dtype() const { return dtype_; }
  int64_t count() const { return count_; }
  int64_t dim() const { return dim_; }
  unsigned char* row(int64_t r) { return bytes_.data() + (margin_ + view_.offset(r)) * road::size_of(dtype_); }
  const unsigned char* row(int64_t r) const { return const_cast<Stack*>(this)->row(r); }
  int64_t row_bytes() const { return dim_ * road::size_of(dtype_); }

  road::Rows rows() {
    road::Rows rows = view_;
    rows.data = bytes_.data() + margin_ * road::size_of(dtype_);
    return rows;
  }
  void* data() { return rows().data; }

  void set(int64_t r, int64_t k, double v) { road::store_rounded(row(r), dtype_, k, v); }
  void fill(double v) {
    for (int64_t r = 0; r < count_; ++r)
      for (int64_t k = 0; k < dim_; ++k) set(r, k, v);
  }
  void fill(Random& random) {
    for (int64_t r = 0; r < count_; ++r)
      for (int64_t k = 0; k < dim_; ++k) set(r, k, random.value());
  }
  void fill(Random& random, double low, double high) {
    for (int64_t r = 0; r < count_; ++r)
      for (int64_t k = 0; k < dim_; ++k) set(r, k, random.uniform(low, high));
  }
  void copy_rows(const Stack& from) {
    for (int64_t r = 0; r < count_; ++r) std::memcpy(row(r), from.row(r), row_bytes());
  }

  bool same_row(const Stack& other, int64_t r) const { return !std::memcmp(row(r), other.row(r), row_bytes()); }
  bool same_rows(const Stack& other) const {
    for (int64_t r = 0; r < count_; ++r)
      if (!same_row(other, r)) return false;
    return true;
  }
  bool padding_untouched() const {
    std::vector<bool> in_row(bytes_.size());
    for (int64_t r = 0; r < count_; ++r) std::fill_n(in_row.begin() + (row(r) - bytes_.data()), row_bytes(), true);
    for (size_t k = 0; k < bytes_.size(); ++k)
      if (!in_row[k] && bytes_[k] != 0xff) return false;
    return true;
  }

 private:
  DType dtype_;
  int64_t count_, dim_, margin_;
  road::Rows view_;
  std::vector<unsigned char> bytes_;
};

struct Shape {
  int64_t rows, dim, group_size;
};

// A problem and its parameters, which are padded: p_stride and q_stride exceed their width.
struct Case {
  road::Problem problem;
  Stack p, q;
  std::vector<int32_t> ids32;
  std::vector<int64_t> ids64;

  Case(DType dtype, Form form, Shape shape, int64_t adapters = 1, DType p_dtype = DType::kFloat32,
       DType q_dtype = DType::kFloat32)
      : p(p_dtype, adapters, road::param_width(form, shape.dim), Layout{1, 1, 3, 0, false}),
        q(q_dtype, adapters, road::param_width(form, shape.dim), Layout{1, 0, 5, 0, false}) {
    problem.rows = shape.rows, problem.dim = shape.dim, problem.group_size = shape.group_size;
    problem.dtype = dtype, problem.form = form;
    problem.params = {p.data(), q.data(), p_dtype, q_dtype, p.rows().outer_stride, q.rows().outer_stride, adapters};
  }
  Case(const Case&) = delete;

  // Angles all around the circle, or blocks far from singular: |theta| <= 0.3 and alpha near 1.
  void fill_parameters(Random& random, bool well_conditioned = false) {
    if (road::has_angles(problem.form)) {
      well_conditioned ? p.fill(random, -0.3, 0.3) : p.fill(random, -4, 4);
      well_conditioned ? q.fill(random, 0.75, 1.25) : q.fill(random, -1.5, 1.5);
    } else {
      well_conditioned ? p.fill(random, 0.75, 1.25) : p.fill(random, -2, 2);
      well_conditioned ? q.fill(random, -0.35, 0.35) : q.fill(random, -2, 2);
    }
  }
  void fill_identity(double zero = 0) {
    p.fill(road::has_angles(problem.form) ? zero : 1);
    q.fill(road::has_angles(problem.form) ? 1 : zero);
  }

  void use_ids(const std::vector<int64_t>& ids, bool is_int64, int64_t rows_per_id) {
    ids64 = ids;
    ids32.assign(ids.begin(), ids.end());
    const void* data = is_int64 ? static_cast<const void*>(ids64.data()) : ids32.data();
    problem.ids = {data, is_int64, static_cast<int64_t>(ids.size()), rows_per_id};
  }
  int64_t adapter(int64_t row) const { return problem.ids.data ? ids64[row / problem.ids.rows_per_id] : 0; }

  Stack make_rows(Layout layout = {}) const { return {problem.dtype, problem.rows, problem.dim, layout}; }

  std::string describe() const {
    return text(name(problem.dtype), " ", name(problem.form), " rows=", problem.rows, " D=", problem.dim,
                " g=", problem.group_size, " adapters=", problem.params.adapters, " p=", name(p.dtype()),
                " q=", name(q.dtype()));
  }
};

// --- ways to run the ranges of a loop ----------------------------------------------------------------------------

inline void run_serial(int64_t begin, int64_t end, int64_t, const void* context, road::cpu::Parallel::Body body) {
  body(context, begin, end);
}

// The smallest ranges allowed, the last one first.
inline void run_backwards(int64_t begin, int64_t end, int64_t grain, const void* context,
                          road::cpu::Parallel::Body body) {
  for (int64_t pieces = std::max<int64_t>(1, (end - begin) / grain); pieces > 0; --pieces, end -= grain)
    body(context, pieces == 1 ? begin : end - grain, end);
}

template <int kThreads>
void run_threads(int64_t begin, int64_t end, int64_t grain, const void* context, road::cpu::Parallel::Body body) {
  const int64_t pieces = std::min<int64_t>(kThreads, std::max<int64_t>(1, (end - begin) / grain));
  std::vector<std::thread> threads;
  for (int64_t k = 0; k < pieces; ++k)
    threads.emplace_back(body, context, begin + (end - begin) * k / pieces, begin + (end - begin) * (k + 1) / pieces);
  for (std::thread& thread : threads) thread.join();
}

constexpr road::cpu::Parallel kSerial{run_serial};
constexpr road::cpu::Parallel kBackwards{run_backwards};
constexpr road::cpu::Parallel kThreads2{run_threads<2>};
constexpr road::cpu::Parallel kThreads3{run_threads<3>};
