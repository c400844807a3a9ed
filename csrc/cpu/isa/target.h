// Compiling a part of a file for other instructions than the rest, by GCC (9 and newer) and Clang (14 and newer).
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)  // Clang too
#define ROAD_X86_DISPATCH 1
#if defined(__clang__) || __GNUC__ >= 10
#define ROAD_X86_DISPATCH_BFLOAT16 1
#endif
#endif

// ROAD_TARGET("avx2,fma") ... ROAD_TARGET_END.  GCC lowers vectors before it inlines, so every template that handles
// them must follow the first line.  Clang compiles for it only what lies between the two, and standard headers, whose
// intrinsics have targets of their own, must come before.
#define ROAD_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#define ROAD_TARGET(features) ROAD_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define ROAD_TARGET_END ROAD_PRAGMA(clang attribute pop)
#else
#define ROAD_TARGET(features) ROAD_PRAGMA(GCC target(features))
#define ROAD_TARGET_END
#endif

// Vectors of 64 bytes are used wherever the code names them; this is for what the compiler vectorises itself.
#if !defined(__clang__) && __GNUC__ >= 11
#define ROAD_AVX512 "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,bmi,bmi2,prefer-vector-width=512"
#else
#define ROAD_AVX512 "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c,bmi,bmi2"
#endif
