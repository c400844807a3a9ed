// The loops for AVX-512.  The pragma comes first: every template below must be compiled for that target.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#define ROAD_ISA isa_avx512
#define ROAD_ISA_NAME "avx512"
#define ROAD_VECTOR_BYTES 64
#include "cpu/isa/body.h"
#endif
