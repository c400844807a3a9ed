// The loops for AVX-512 with its conversions to bfloat16: of bfloat16 only, the others are those of avx512.cpp.
#include "cpu/isa/target.h"
#if defined(ROAD_X86_DISPATCH_BFLOAT16)
ROAD_TARGET(ROAD_AVX512 ",avx512bf16")
#define ROAD_ISA isa_avx512_bf16
#define ROAD_ISA_NAME "avx512_bf16"
#define ROAD_VECTOR_BYTES 64
#define ROAD_CONVERTS_BFLOAT16 1
#define ROAD_ISA_OF_OTHER_TYPES isa_avx512
#include "cpu/isa/body.h"
ROAD_TARGET_END
#endif
