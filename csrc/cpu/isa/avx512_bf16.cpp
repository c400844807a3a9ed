// The loops for AVX-512 with its bfloat16 conversions.  The pragma comes first: every template below must be compiled
// for that target.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#define ROAD_ISA isa_avx512_bf16
#define ROAD_ISA_NAME "avx512_bf16"
#define ROAD_VECTOR_BYTES 64
#define ROAD_CONVERTS_BFLOAT16 1
#include "cpu/isa/body.h"
#endif
