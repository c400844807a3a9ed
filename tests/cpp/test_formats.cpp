// The 16-bit conversions of core/float16.h and of the kernels, and sin and cos.
#include <string>

#include "oracle.h"
#include "test_road_cpu.h"

namespace {

using road::BFloat16;
using road::bit_cast;
using road::Half;
using road::to_float;

// A format given by its numbers of bits: 1 sign bit, `exponent_bits`, `mantissa_bits`.
struct Format {
  const char* name;
  DType dtype;
  int mantissa_bits, min_exponent, max_exponent;  // of normal numbers

  uint32_t infinity() const { return 0x7fffu >> mantissa_bits << mantissa_bits; }

  double decode(uint32_t bits) const {
    const uint32_t magnitude = bits & 0x7fff, mantissa = magnitude & ((1u << mantissa_bits) - 1);
    const int exponent = static_cast<int>(magnitude >> mantissa_bits);
    const int last_place = std::max(exponent, 1) - 1 + min_exponent - mantissa_bits;
    double v = std::ldexp(mantissa + (exponent == 0 ? 0 : 1u << mantissa_bits), last_place);
    if (magnitude == infinity()) v = std::numeric_limits<double>::infinity();
    if (magnitude > infinity()) v = std::numeric_limits<double>::quiet_NaN();
    return bits & 0x8000 ? -v : v;
  }

  // To nearest, ties to even, overflow to infinity.
  double round(double v) const {
    if (v == 0 || !std::isfinite(v)) return v;
    const int last_place = std::max(std::ilogb(v), min_exponent) - mantissa_bits;
    const double rounded = std::ldexp(std::nearbyint(std::ldexp(v, -last_place)), last_place);
    const bool overflows = std::fabs(rounded) >= std::ldexp(1, max_exponent + 1);
    return overflows ? std::copysign(std::numeric_limits<double>::infinity(), v) : rounded;
  }

  float widen(uint16_t bits) const {
    return dtype == DType::kFloat16 ? to_float(Half{bits}) : to_float(BFloat16{bits});
  }
  uint16_t narrow(float v) const {
    return dtype == DType::kFloat16 ? road::to_half(v).bits : road::to_bfloat16(v).bits;
  }
};
constexpr Format kFormats[] = {{"float16", DType::kFloat16, 10, -14, 15}, {"bfloat16", DType::kBFloat16, 7, -126, 127}};

// Equal, with the sign of zero; or both NaN.
bool same(double a, double b) { return a == b ? std::signbit(a) == std::signbit(b) : a != a && b != b; }

// Every value of the format, every midpoint between neighbours and the floats next to it, the first overflow, and
// random ones.
std::vector<float> telling_floats(const Format& f) {
  std::vector<float> out;
  for (uint32_t bits = 0; bits < f.infinity(); ++bits) {
    const double here = f.decode(bits),
                 next = bits + 1 == f.infinity() ? std::ldexp(1, f.max_exponent + 1) : f.decode(bits + 1);
    const float middle = static_cast<float>(here + (next - here) / 2);  // exact: it has one more bit than the format
    const float below = std::nextafter(middle, 0.0f), above = std::nextafter(middle, INFINITY);
    for (const float v : {static_cast<float>(here), below, middle, above}) out.insert(out.end(), {v, -v});
  }
  Random random(6);
  for (int k = 0; k < 150000; ++k) {
    const uint32_t any = static_cast<uint32_t>(random.bits());
    out.push_back(bit_cast<float>(any));
    out.push_back(static_cast<float>(random.uniform(-70000, 70000)));  // in the range of float16
    out.push_back(bit_cast<float>((any & 0x80ffffff) | 0x33000000));   // in the range of its subnormal numbers
  }
  const float limits[] = {65519.99f,   65519.996f, 65520.0f, 65536.0f,  0x1.fefffep127f,
                          0x1.ffp127f, INFINITY,   NAN,      0x1p-149f, 0x1p-25f};
  for (const float v : limits) out.insert(out.end(), {v, -v});
  out.insert(out.end(), {bit_cast<float>(0x7f800001u), bit_cast<float>(0xffffffffu), bit_cast<float>(0x7fc00000u)});
  return out;
}

void test_scalars(const Format& f) {
  {
    Regime regime(f.name, ": all 65536 values to float and back");
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const float v = f.widen(static_cast<uint16_t>(bits));
      CHECK(regime, same(v, f.decode(bits)), "bits ", bits, ": ", v, " instead of ", f.decode(bits));
      const uint16_t back = f.narrow(v);
      CHECK(regime, v == v ? back == bits : f.decode(back) != f.decode(back), "bits ", bits, " came back as ", back);
    }
  }
  Regime regime(f.name, ": floats are rounded to nearest even");
  for (const float v : telling_floats(f)) {
    const double got = f.decode(f.narrow(v)), want = f.round(v);
    CHECK(regime, same(got, want), v, " became ", got, " instead of ", want);
  }
}

// The same in the kernels.  With x = 1 and r2 = 0, z is the float r1, rounded; if r1 = 1 too, z is x.
void test_in_kernels(const Format& f) {
  std::vector<float> floats = telling_floats(f);
  floats.resize((floats.size() + 7) / 8 * 8, 1.0f);
  const int64_t dim = static_cast<int64_t>(floats.size());
  // Adjacent pairs; 4 pairs, one vector of 4 on every instruction set; the widest vectors.
  for (const int64_t group_size : {int64_t{2}, int64_t{8}, dim}) {
    Regime regime(f.name, ": rounded in the kernels, g=", group_size == dim ? "D" : text(group_size));
    Case c(f.dtype, Form::kTable, {1, dim, group_size});
    c.fill_identity();
    for (int64_t k = 0; k < dim; ++k) std::memcpy(c.p.row(0) + 4 * k, &floats[k], 4);
    Stack x = c.make_rows(), z = c.make_rows();
    x.fill(1);
    road::cpu::rotate(c.problem, x.rows(), z.rows(), false, kSerial);
    for (int64_t k = 0; k < dim; ++k) {
      const double got = static_cast<double>(get(z, 0, k)), want = f.round(floats[k]);
      CHECK(regime, same(got, want), floats[k], " became ", got, " instead of ", want, " at element ", k);
    }
  }
  for (const int64_t group_size : {2, 8, 64}) {
    Regime regime(f.name, ": widened in the kernels, g=", group_size);
    const int64_t half_range = f.infinity();  // the finite values of one sign, a multiple of 64
    const int64_t width = 2 * half_range;
    Case c(f.dtype, Form::kTable, {1, width, group_size});
    c.fill_identity();
    Stack x = c.make_rows(), z = c.make_rows();
    uint16_t* bits = reinterpret_cast<uint16_t*>(x.row(0));
    for (int64_t k = 0; k < width; ++k) bits[k] = static_cast<uint16_t>(k / 2 | (k % 2) << 15);
    road::cpu::rotate(c.problem, x.rows(), z.rows(), false, kSerial);
    const uint16_t* out = reinterpret_cast<const uint16_t*>(z.row(0));
    for (int64_t k = 0; k < width; ++k) CHECK(regime, out[k] == bits[k], "bits ", bits[k], " became ", out[k]);
  }
}

// With alpha = 1 and h = (1, 0), a road_1 block returns (cos theta, sin theta).
void check_angles(const char* what, DType dtype, const std::vector<double>& angles, double ulps) {
  Regime regime("angles, ", name(dtype), ": ", what);
  const int64_t pairs = static_cast<int64_t>(angles.size());
  Case c(dtype, Form::kRoad1, {1, 2 * pairs, 2}, 1, dtype, dtype);
  c.q.fill(1);
  for (int64_t k = 0; k < pairs; ++k) c.p.set(0, k, angles[k]);
  Stack x = c.make_rows(), z = c.make_rows();
  x.fill(0);
  for (int64_t k = 0; k < pairs; ++k) x.set(0, 2 * k, 1);
  road::cpu::rotate(c.problem, x.rows(), z.rows(), false, kSerial);
  int64_t misrounded = 0;
  for (int64_t k = 0; k < pairs; ++k) {
    const Wide theta = get(c.p, 0, k);
    const Wide want[] = {std::cos(theta), std::sin(theta)};
    for (int64_t part = 0; part < 2; ++part) {
      const Wide got = get(z, 0, 2 * k + part);
      if (!std::isfinite(theta)) {
        CHECK(regime, std::isnan(got), theta, " gives ", got, " instead of NaN");
        continue;
      }
      const double error = static_cast<double>(std::fabs(got - want[part]));
      const double bound = 2 * ulps * half_ulp(dtype, static_cast<double>(want[part]));
      CHECK(regime, error <= bound, part ? "sin " : "cos ", theta, " gives ", got, " instead of ", want[part], ", ",
            error / bound * ulps, " ulp");
      regime.note_error(error / bound);
      misrounded += std::fabs(theta) <= 0x1p20L && error > half_ulp(dtype, static_cast<double>(want[part]));
    }
  }
  // kernels.h promises that of the vector code, for all but about one value in ten thousand.
  if (dtype == DType::kFloat32 && pairs >= 10000)
    CHECK(regime, misrounded * 5000 <= 2 * pairs, misrounded, " of ", 2 * pairs, " misrounded");
}

void test_angles() {
  constexpr double kPi = 3.14159265358979323846, kInfinity = std::numeric_limits<double>::infinity();
  Random random(7);
  std::vector<double> small, multiples, large;
  for (int k = 0; k < 100000; ++k) small.push_back(random.uniform(-4, 4));
  for (int k = -20000; k < 20000; ++k) multiples.push_back(k * (kPi / 2));
  for (int k = 0; k < 50000; ++k)
    large.push_back(std::ldexp(random.uniform(-1, 1), static_cast<int>(random.below(128))));
  const std::vector<double> named = {1e6, -1e6, 1e8, -1e8, 1e30, 0x1p20, 0x1.000002p20, 0x1.fffffep19, 0x1p-149, 0.0};
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    const double ulps = 0.57;  // libm's own bound is 0.56
    check_angles("-4 to 4", dtype, small, ulps);
    check_angles("multiples of pi/2", dtype, multiples, ulps);
    check_angles("up to 2^127", dtype, large, ulps);
    check_angles("1e6, 1e8 and the limits of the fast path", dtype, named, ulps);
    check_angles("infinity and NaN", dtype, {1, kInfinity, -kInfinity, NAN, 2, 1e8, 3}, ulps);
  }
}

}  // namespace

void test_formats() {
  for (const Format& format : kFormats) {
    test_scalars(format);
    test_in_kernels(format);
  }
  test_angles();
}
