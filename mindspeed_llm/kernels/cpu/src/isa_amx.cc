// Inner loops for x86-64 with AVX-512 and AMX (Sapphire Rapids and later): as AVX-512, with products on AMX tiles. Products
// of too few rows for tiles widen bf16 to fp32 as AVX-512 does, although VDPBF16PS is there: on a Xeon with AMX, products
// of 16 to 48 rows with it took 1.4 to 1.6 times as long, and of 512 rows 1.7 times.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c")
#pragma GCC target("bmi,bmi2,popcnt,lzcnt,movbe,prefer-vector-width=512")
#define MSL_ISA amx
#define MSL_ISA_NAME "amx"
#define MSL_LANES 16
#define MSL_VECTORS 4
#define MSL_AMX 1
#include "isa_table.inc"

namespace msl {
const Isa *isa_amx() { return &amx::table; }
}  // namespace msl
#endif
