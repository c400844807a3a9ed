#include "cpu/kernels.h"

#include <cstdlib>
#include <cstring>

namespace road::cpu {

using Set = const Kernels& (*)(DType dtype);

static Set choose() {
#if defined(ROAD_X86_DISPATCH)
  const char* wanted = std::getenv("ROAD_KERNELS_ISA");
  const auto allowed = [&](const char* isa) { return !wanted || !std::strcmp(wanted, isa); };
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
#if defined(ROAD_X86_DISPATCH_BFLOAT16)
  if (avx512 && __builtin_cpu_supports("avx512bf16") && allowed("avx512_bf16")) return isa_avx512_bf16::kernels;
#endif
  if (avx512 && allowed("avx512")) return isa_avx512::kernels;
  if (avx2 && allowed("avx2")) return isa_avx2::kernels;
#endif
  return isa_baseline::kernels;
}

const Kernels& kernels(DType dtype) {
  static const Set chosen = choose();
  return chosen(dtype);
}

}  // namespace road::cpu
