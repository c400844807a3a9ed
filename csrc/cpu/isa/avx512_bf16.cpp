// The loops for AVX-512 with its bfloat16 conversions.
#include "cpu/isa/target.h"
#if defined(ROAD_X86_DISPATCH_BFLOAT16)
ROAD_TARGET(ROAD_AVX512 ",avx512bf16")
#define ROAD_ISA isa_avx512_bf16
#define ROAD_ISA_NAME "avx512_bf16"
#define ROAD_VECTOR_BYTES 64
#define ROAD_CONVERTS_BFLOAT16 1
#include "cpu/isa/body.h"
ROAD_TARGET_END
#endif
