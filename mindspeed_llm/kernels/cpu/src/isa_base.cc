// Inner loops for any processor: the compiler's default instruction set (SSE2 on x86-64, NEON on aarch64).
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>

#include "kernels.h"

#define MSL_ISA base
#define MSL_ISA_NAME "base"
#define MSL_LANES 4
#define MSL_VECTORS 2
#include "isa_table.inc"

namespace msl {
const Isa *isa_base() { return &base::table; }
}  // namespace msl
