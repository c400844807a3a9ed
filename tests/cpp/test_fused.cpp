// The rotation and what follows it: SiLU times up, add and RMSNorm, RoPE.
#include "oracle.h"
#include "test_road_cpu.h"

namespace {

constexpr Shape kShapes[] = {{3, 4, 2}, {5, 12, 6}, {2, 140, 70}, {7, 192, 32}, {70, 256, 64}};
// What of R x the magnitude of an oracle's term says, times what follows does to it.
constexpr double kRoundings = 10;

void use_some_ids(Case& c, Random& random) {
  std::vector<int64_t> ids(c.problem.rows);
  for (int64_t& id : ids) id = random.below(c.problem.params.adapters + 1) - 1;
  c.use_ids(ids, /*is_int64=*/random.below(2) == 0, 1);
}

// R x with a magnitude for rows without an adapter, too: what follows rounds them as well.
Terms rotated(const Case& c, const Stack& x) {
  Terms h = oracle_rotate(c, x, false);
  for (Term& term : h) term.magnitude = std::fmax(term.magnitude, std::fabs(term.value));
  return h;
}

Wide sigmoid(Wide v) { return 1 / (1 + std::exp(-v)); }

template <class Test>
void for_each_problem(DType dtype, uint64_t seed, const Test& test) {
  Random random(seed);
  for (const Form form : {Form::kTable, Form::kTableHalf})
    for (const Shape& shape : kShapes)
      for (const Layout layout : {kDense, kSlice, kTwoStrides})
        for (const bool batched : {false, true}) {
          Case c(dtype, form, shape, batched ? 3 : 1, batched ? DType::kBFloat16 : DType::kFloat32);
          c.fill_parameters(random, /*well_conditioned=*/true);
          if (batched) use_some_ids(c, random);
          test(c, layout, random);
        }
}

void test_silu_mul(DType dtype) {
  Regime regime("silu(gate) * up, ", name(dtype));
  for_each_problem(dtype, 41, [&](Case& c, Layout layout, Random& random) {
    const int64_t width = c.problem.dim / 2;
    if (width % c.problem.group_size != 0) return;
    Stack x = c.make_rows(layout), z(dtype, c.problem.rows, width, layout);
    x.fill(random);
    road::cpu::rotate_silu_mul(c.problem, x.rows(), z.rows(), kThreads3);
    const Terms h = rotated(c, x);
    Terms want(c.problem.rows * width);
    for (int64_t r = 0; r < c.problem.rows; ++r)
      for (int64_t k = 0; k < width; ++k) {
        const Term &gate = h[r * c.problem.dim + k], &up = h[r * c.problem.dim + width + k];
        const Wide s = sigmoid(gate.value), silu = gate.value * s;
        const Wide slope = std::fabs(s * (1 + gate.value * (1 - s)) * up.value);
        want[r * width + k] = {silu * up.value, slope * gate.magnitude + std::fabs(silu) * up.magnitude +
                                                    std::fabs(silu * up.value) * (1 + std::fabs(gate.value))};
      }
    compare(regime, c, z, want, kRoundings, "silu(gate) * up");
    CHECK(regime, z.padding_untouched(), c.describe());
  });
}

// By differences of the forward, in float64: the gradients of x and of the tables.
void test_silu_mul_gradients() {
  Regime regime("gradients of silu(gate) * up");
  Random random(42);
  Case c(DType::kFloat64, Form::kTableHalf, {6, 24, 6}, 3, DType::kFloat64, DType::kFloat64);
  c.fill_parameters(random, true);
  c.use_ids({2, -1, 0, 2, 2, 0}, true, 1);
  const auto loss = [&](const Stack& x, const Stack& gz) {
    Stack copy = x, z(DType::kFloat64, 6, 12);
    road::cpu::rotate_silu_mul(c.problem, copy.rows(), z.rows(), kSerial);
    double sum = 0;
    for (int64_t r = 0; r < 6; ++r)
      for (int64_t k = 0; k < 12; ++k) sum += static_cast<double>(get(z, r, k) * get(gz, r, k));
    return sum;
  };
  Stack x = c.make_rows(), gx = c.make_rows(), gz(DType::kFloat64, 6, 12), gp(DType::kFloat64, 3, 12),
        gq(DType::kFloat64, 3, 12);
  x.fill(random), gz.fill(random);
  const road::Gradients out{gx.rows(), gp.data(), gq.data()};
  road::cpu::rotate_silu_mul_backward(c.problem, gz.rows(), x.rows(), out, kBackwards);
  constexpr double step = 1e-6;
  const auto check = [&](Stack& of, const Stack& gradient, const char* what) {
    for (int64_t r = 0; r < of.count(); ++r)
      for (int64_t k = 0; k < of.dim(); ++k) {
        const double v = static_cast<double>(get(of, r, k));
        of.set(r, k, v + step);
        const double above = loss(x, gz);
        of.set(r, k, v - step);
        const double slope = (above - loss(x, gz)) / (2 * step);
        of.set(r, k, v);
        const double error = std::fabs(slope - static_cast<double>(get(gradient, r, k)));
        CHECK(regime, error < 1e-7, what, " row ", r, " element ", k, " off by ", error);
      }
  };
  check(x, gx, "gx"), check(c.p, gp, "gr1"), check(c.q, gq, "gr2");
}

void test_add_rms_norm(DType dtype) {
  Regime regime("add and RMSNorm, ", name(dtype));
  constexpr double eps = 1e-5;
  for_each_problem(dtype, 43, [&](Case& c, Layout layout, Random& random) {
    const int64_t dim = c.problem.dim;
    Stack x = c.make_rows(layout), residual = c.make_rows(layout), weight(DType::kFloat32, 1, dim);
    x.fill(random), residual.fill(random), weight.fill(random);
    const Terms h = rotated(c, x);
    Terms s(h.size()), y(h.size());
    for (int64_t r = 0; r < c.problem.rows; ++r) {
      Wide squares = 0, change = 0;
      for (int64_t k = r * dim; k < (r + 1) * dim; ++k) {
        const Wide added = get(residual, r, k - r * dim), sum = h[k].value + added;
        s[k] = {sum, h[k].magnitude + std::fabs(added) + std::fabs(sum)};
        squares += sum * sum, change += std::fabs(sum) * s[k].magnitude;
      }
      const Wide scale = 1 / std::sqrt(squares / dim + eps);
      for (int64_t k = r * dim; k < (r + 1) * dim; ++k) {
        const Wide w = get(weight, 0, k - r * dim);
        y[k] = {w * s[k].value * scale,
                std::fabs(w) * scale * (s[k].magnitude + std::fabs(s[k].value) * change / dim * scale * scale)};
      }
    }
    const road::RmsNorm norm{weight.data(), DType::kFloat32, eps};
    Stack out_y = c.make_rows(), out_s = c.make_rows();
    road::cpu::rotate_add_rms_norm(c.problem, x.rows(), residual.rows(), norm, out_y.rows(), out_s.rows(), kThreads2);
    compare(regime, c, out_s, s, kRoundings, "s");
    compare(regime, c, out_y, y, kRoundings, "y");
    road::cpu::rotate_add_rms_norm(c.problem, x.rows(), residual.rows(), norm, x.rows(), residual.rows(), kSerial);
    CHECK(regime, x.same_rows(out_y) && residual.same_rows(out_s), c.describe(), " in place");
    CHECK(regime, x.padding_untouched() && residual.padding_untouched(), c.describe());
  });
}

void test_add_rms_norm_backward(DType dtype) {
  Regime regime("gradient of add and RMSNorm, ", name(dtype));
  constexpr double eps = 1e-5;
  for_each_problem(dtype, 45, [&](Case& c, Layout layout, Random& random) {
    const int64_t dim = c.problem.dim;
    Stack gy = c.make_rows(layout), gs = c.make_rows(), s = c.make_rows(kSlice), weight(DType::kFloat32, 1, dim);
    gy.fill(random), gs.fill(random), s.fill(random), weight.fill(random);
    Terms want(c.problem.rows * dim);
    for (int64_t r = 0; r < c.problem.rows; ++r) {
      Wide squares = 0, products = 0, magnitude = 0;
      for (int64_t k = 0; k < dim; ++k) {
        const Wide v = get(s, r, k), product = get(gy, r, k) * get(weight, 0, k) * v;
        squares += v * v, products += product, magnitude += std::fabs(product);
      }
      const Wide scale = 1 / std::sqrt(squares / dim + eps), through = scale * scale * scale / dim;
      for (int64_t k = 0; k < dim; ++k) {
        const Wide v = get(s, r, k), given = get(gs, r, k), gn = get(gy, r, k) * get(weight, 0, k);
        want[r * dim + k] = {given + gn * scale - v * products * through,
                             std::fabs(given) + std::fabs(gn) * scale + std::fabs(v) * magnitude * through};
      }
    }
    const road::RmsNorm norm{weight.data(), DType::kFloat32, eps};
    Stack out = c.make_rows(layout);
    road::cpu::add_rms_norm_backward(c.problem, gy.rows(), gs.rows(), s.rows(), norm, out.rows(), kThreads2);
    compare(regime, c, out, want, kRoundings, "gradient of s");
    CHECK(regime, out.padding_untouched(), c.describe());
    road::cpu::add_rms_norm_backward(c.problem, gy.rows(), gs.rows(), s.rows(), norm, gs.rows(), kSerial);
    CHECK(regime, gs.same_rows(out), c.describe(), " into the gradient of s");
  });
}

void test_rope(DType dtype) {
  Regime regime("RoPE, ", name(dtype));
  Random random(44);
  struct Shape {
    int64_t head, group_size, rotary_dim;
  };
  // Pairs of both that cross in every way; heads of whole vectors on every instruction set.
  std::vector<Shape> shapes = {{128, 2, 128}, {128, 8, 128}, {128, 64, 128}, {128, 128, 128}};
  for (const int64_t group_size : {2, 6, 8, 24})
    for (const int64_t rotary_dim : {2, 10, 24}) shapes.push_back({24, group_size, rotary_dim});
  constexpr int64_t heads = 5, turned_heads = 4, max_position = 9, rows = 6;
  for (const Form form : {Form::kTable, Form::kTableHalf})
    for (const auto& [head, group_size, rotary_dim] : shapes)
      for (const bool adjacent : {false, true})
        for (const bool batched : {false, true}) {
          Case c(dtype, form, {rows, heads * head, group_size}, batched ? 3 : 1);
          c.fill_parameters(random, true);
          if (batched) use_some_ids(c, random);
          Stack cache(DType::kFloat32, max_position, rotary_dim, kSlice);
          cache.fill(random);
          std::vector<int64_t> positions(rows);
          for (int64_t& position : positions) position = random.below(max_position);
          road::Rope rope;
          rope.positions = {positions.data(), true, rows};
          rope.cache = cache.data(), rope.cache_dtype = DType::kFloat32;
          rope.cache_stride = cache.rows().inner_rows == 1 ? cache.rows().outer_stride : cache.rows().inner_stride;
          rope.max_position = max_position, rope.rotary_dim = rotary_dim, rope.head_dim = head;
          rope.turned_heads = turned_heads, rope.adjacent = adjacent;
          CHECK(regime, road::cpu::first_bad_position(rope) == -1);

          Stack x = c.make_rows(kSlice), z = c.make_rows();
          x.fill(random);
          const Terms h = rotated(c, x);
          Terms want = h;
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t n = 0; n < turned_heads; ++n)
              for (int64_t k = 0; k < rotary_dim / 2; ++k) {
                const int64_t first = r * c.problem.dim + n * head;
                const int64_t i = first + (adjacent ? 2 * k : k), j = adjacent ? i + 1 : i + rotary_dim / 2;
                const Wide cos = get(cache, positions[r], k), sin = get(cache, positions[r], rotary_dim / 2 + k);
                const auto turn = [&](const Term& a, const Term& b, Wide by) {
                  return Term{a.value * cos + b.value * by, a.magnitude * std::fabs(cos) + b.magnitude * std::fabs(by)};
                };
                want[i] = turn(h[i], h[j], -sin), want[j] = turn(h[j], h[i], sin);
              }
          road::cpu::rotate_rope(c.problem, x.rows(), rope, z.rows(), kThreads3);
          compare(regime, c, z, want, kRoundings, "RoPE");
          road::cpu::rotate_rope(c.problem, x.rows(), rope, x.rows(), kBackwards);
          CHECK(regime, x.same_rows(z) && x.padding_untouched(), c.describe(), " in place");
        }
}

void test_bad_positions() {
  Regime regime("positions outside the cache");
  const int32_t positions[] = {3, 0, 4, -1};
  road::Rope rope;
  rope.positions = {positions, false, 4};
  rope.max_position = 5;
  CHECK(regime, road::cpu::first_bad_position(rope) == 3);
  rope.max_position = 4;
  CHECK(regime, road::cpu::first_bad_position(rope) == 2);
  rope.max_position = 0;
  CHECK(regime, road::cpu::first_bad_position(rope) == 0);
}

}  // namespace

void test_fused() {
  for (const DType dtype : kDTypes) {
    test_silu_mul(dtype);
    test_add_rms_norm(dtype);
    test_add_rms_norm_backward(dtype);
    test_rope(dtype);
  }
  test_silu_mul_gradients();
  test_bad_positions();
}
