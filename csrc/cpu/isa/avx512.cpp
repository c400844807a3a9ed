// The loops for AVX-512.
#include "cpu/isa/target.h"
#if defined(ROAD_X86_DISPATCH)
ROAD_TARGET(ROAD_AVX512)
#define ROAD_ISA isa_avx512
#define ROAD_ISA_NAME "avx512"
#define ROAD_VECTOR_BYTES 64
#include "cpu/isa/body.h"
ROAD_TARGET_END
#endif
