// Inner loops for x86-64 with AVX-512 (F, BW, CD, DQ, VL: Skylake-X, Zen 4 and later).
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#pragma GCC target( \
    "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,popcnt,lzcnt,movbe,prefer-vector-width=512")
#define MSL_ISA avx512
#define MSL_ISA_NAME "avx512"
#define MSL_LANES 16
#define MSL_VECTORS 4
#include "isa_table.inc"

namespace msl {
const Isa *isa_avx512() { return &avx512::table; }
}  // namespace msl
#endif
