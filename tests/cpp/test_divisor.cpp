// Division by a launch's constants, as a multiplication and a shift.
#include "case.h"
#include "core/divisor.h"
#include "test_road_cpu.h"

namespace {

// Dividends where a wrong reciprocal shows: around multiples of the divisor, and the largest.
template <class N>
void check_around(Regime& regime, uint64_t d, N multiple) {
  constexpr N kLargest = static_cast<N>(~N{0}) >> 1;
  const road::Divisor divisor(static_cast<int64_t>(d));
  for (const N n : {static_cast<N>(multiple - 1), multiple, static_cast<N>(multiple + 1), N{0}, kLargest})
    if (n <= kLargest) CHECK(regime, divisor.divide(n) == n / d, n, " / ", d, " gives ", divisor.divide(n));
}

}  // namespace

void test_divisor() {
  Random random(41);
  {
    Regime regime("division, 32 bits");
    for (const uint32_t d : {1u, 2u, 3u, 7u, 641u, 65535u, 65536u, 0x7ffffffeu, 0x7fffffffu})
      check_around<uint32_t>(regime, d, d);
    for (int k = 0; k < 20000; ++k) {
      const auto d = static_cast<uint32_t>(random.bits() >> (33 + random.below(31)));
      const auto n = static_cast<uint32_t>(random.bits() >> (33 + random.below(31)));
      if (d > 0) check_around<uint32_t>(regime, d, n / d * d);
    }
  }
  Regime regime("division, 64 bits");
  for (const uint64_t d : {uint64_t{1}, uint64_t{2}, uint64_t{3}, uint64_t{1} << 31, (uint64_t{1} << 62) - 1})
    check_around<uint64_t>(regime, d, d);
  for (int k = 0; k < 20000; ++k) {
    const uint64_t d = random.bits() >> (2 + random.below(61)), n = random.bits() >> (1 + random.below(62));
    if (d > 0) check_around<uint64_t>(regime, d, n / d * d);
  }
}
