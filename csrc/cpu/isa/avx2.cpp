// The loops for AVX2.  The pragma comes first: every template below must be compiled for that target.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#define ROAD_ISA isa_avx2
#define ROAD_ISA_NAME "avx2"
#define ROAD_VECTOR_BYTES 32
#include "cpu/isa/body.h"
#endif
