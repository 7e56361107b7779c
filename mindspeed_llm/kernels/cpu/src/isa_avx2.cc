// Inner loops for x86-64 with AVX2 and FMA (Haswell, Zen and later).
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,popcnt,lzcnt,movbe")
#define MSL_ISA avx2
#define MSL_ISA_NAME "avx2"
#define MSL_LANES 8
#define MSL_VECTORS 2
#include "isa_table.inc"

namespace msl {
const Isa *isa_avx2() { return &avx2::table; }
}  // namespace msl
#endif
