// The C++ library as its users call it.  No framework: prints a line per regime, and exits with 1 if one failed.
// ROAD_KERNELS_ISA=default|avx2|avx512|avx512_bf16 selects the instruction set under test.
#include "test_road_cpu.h"

#include <cstdlib>
#include <cstring>
#include <iostream>

#include "check.h"
#include "cpu/road_cpu.h"

static void test_isa() {
  Regime regime("instruction set ", road::cpu::isa());
  const char* wanted = std::getenv("ROAD_KERNELS_ISA");
  const std::string isa = road::cpu::isa();
  CHECK(regime, isa == "default" || isa == "avx2" || isa == "avx512" || isa == "avx512_bf16", isa);
  if (wanted) CHECK(regime, isa == wanted || isa == "default", isa, " instead of ", wanted);
  if (wanted && isa != wanted) std::cout << "note: this processor has no " << wanted << "\n";
}

int main() {
  test_isa();
  test_formats();
  test_forward();
  test_merge();
  test_tables();
  test_divisor();
  test_adapters();
  test_backward();
  test_fused();
  test_repeatable();
  std::cout << Regime::regimes << " regimes, " << Regime::failed_regimes << " failed, instruction set "
            << road::cpu::isa() << std::endl;
  return Regime::failed_regimes == 0 ? 0 : 1;
}
