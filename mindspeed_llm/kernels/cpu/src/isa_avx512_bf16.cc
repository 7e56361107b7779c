// Inner loops for x86-64 with AVX-512 and AVX-512 BF16 (Cooper Lake, Zen 4 and later): as AVX-512, with products of bf16.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,popcnt,lzcnt,movbe")
#pragma GCC target("prefer-vector-width=512")
#define MSL_ISA avx512_bf16
#define MSL_ISA_NAME "avx512_bf16"
#define MSL_LANES 16
#define MSL_VECTORS 4
#define MSL_BF16_PAIRS 1
#include "isa_table.inc"

namespace msl {
const Isa *isa_avx512_bf16() { return &avx512_bf16::table; }
}  // namespace msl
#endif
