// The inner loops, one table of functions per instruction set. Every function is serial; the drivers call them from
// tasks. Pointers are to contiguous data; `dt` is a DType of the activations (kF32 or kBF16), all arithmetic is in
// fp32.
#pragma once
#include <string>
#include <vector>

#include "common.h"

namespace msl {

struct AdamW {
  float lr, beta1, beta2, eps, weight_decay, step_size, inv_sqrt_bias2, grad_scale;
};

// One attention call. Row strides are in elements. [lo[i], hi[i]) are the keys visible to query row i; both never
// decrease.
struct Attention {
  int dt;
  i64 B, N, G, Sq, Sk, D;  // batch, query heads, key/value groups, rows, keys, head size
  i64 q_row, kv_row;       // B * N * D and B * G * D
  i64 Dp, Skp;             // D and Sk padded to whole vectors or tiles
  float dk_scale;          // what the sums of dK are still to be multiplied by
  float scale;
  const i64 *lo, *hi;
  const void *q, *k, *v, *out, *grad;
  void *out_w, *dq, *dk, *dv;
  float *lse;  // (B, N, Sq)
  // filled by the driver: packed operands per (b, g) and accumulators per unit (see attention.inc)
  float *kt, *vt, *kn, *vn, *acc;
  i64 kt_stride, kn_stride;   // floats per (b, g)
  i64 split, heads_per_unit;  // backward: units per (b, g) and heads of each
};

// Attention of one query row for each of B sequences: row b sees keys [lo[b], hi[b]), of which key j is row j % block of
// k[b][j / block] and v[b][j / block]; rows are kv_row elements apart. q and out are (B, N, D), lse (B, N) or null.
struct Decode {
  int dt;
  i64 B, N, G, D, kv_row, block;
  float scale;
  const i64 *lo, *hi;
  const void *q;
  const void *const *const *k, *const *const *v;
  void *out;
  float *lse;
};

// C (M, N) = A (M, K) B (K, N) + bias for A, B and bias of type dt. C has that type too, or is fp32 with `wide`, which
// allows C += A B. One stride of A and one of B is 1.
struct Product {
  int dt;
  i64 M, N, K;
  const void *a, *b, *bias;
  void *c, *packed;  // packed: a block of A's rows, filled by the driver
  i64 a_row, a_col, b_row, b_col, ldc;
  bool wide, accumulate;
};

// One way to multiply: packing rows [m0, m1) of A, then a block of C; g.packed holds rows [first, end).
struct ProductKernel {
  // tasks are cut at multiples of `rows`, take about `columns`, no fewer than `least_rows` of a tall C or `least_columns` of
  // a narrow one, and at most that depth
  i64 rows, columns, least_rows, least_columns, most_depth;
  i64 (*packed_bytes)(int dt, i64 rows, i64 K);
  void (*pack)(const Product &g, i64 first, i64 end, i64 m0, i64 m1);
  void (*multiply)(const Product &g, i64 first, i64 end, i64 m0, i64 m1, i64 n0, i64 n1);
};

// y (rows, n1 - n0 of N) = x (rows, K) weight (N, K)^T + bias, for the few rows of decoding; tasks are cut at multiples of
// `columns`
struct FewRows {
  i64 columns;
  i64 (*packed_bytes)(int dt, i64 rows, i64 K);
  void (*pack)(int dt, const void *x, i64 rows, i64 K, void *packed);
  void (*multiply)(int dt, const void *packed, const void *w, const void *bias, void *y, i64 rows, i64 N, i64 K, i64 n0,
                   i64 n1);
};

// hidden (M, rank) = scale x (M, K) down, total (M, N) += hidden up, unless total is null. Packed in fp32: down
// (K, padded_rank) and up (rank, N rounded up to whole vectors).
struct LowRank {
  int dt;
  i64 M, K, N, rank, padded_rank;
  float scale;
  const void *x;
  const float *down, *up;
  void *total, *hidden;
};

// out (rank, C) = thin (M, rank)^T large (M, C), or with `across` its transpose (C, rank); thin is packed in fp32
struct ThinWgrad {
  int dt;
  i64 M, C, rank, padded_rank;
  const void *large;
  const float *thin;
  float *out;
  bool across, accumulate;
};

struct Isa {
  const char *name;
  i64 panel;  // keys of a packed attention panel
  i64 lanes;  // fp32 lanes of a vector

  // branch and sum, or d_sum, may be null
  void (*rms_norm_fwd)(int dt, const void *x, const void *branch, const void *w, void *sum, void *y, float *rstd,
                       i64 rows, i64 H, float eps);
  void (*rms_norm_bwd)(int dt, const void *g, const void *x, const void *w, const float *rstd, const void *d_sum,
                       void *dx, float *dw, i64 rows, i64 H);
  void (*swiglu_fwd)(int dt, const void *x, void *y, i64 row0, i64 row1, i64 F);
  void (*swiglu_bwd)(int dt, const void *g, const void *x, void *dx, i64 row0, i64 row1, i64 F);
  void (*rope)(int dt, const void *x, void *y, const float *cos, const float *sin, i64 row0, i64 row1, i64 B, i64 N,
               i64 D, i64 R, bool inverse);
  void (*qkv_rope_fwd)(int dt, const void *qkv, void *q, void *k, void *v, const float *cos, const float *sin, i64 row0,
                       i64 row1, i64 B, i64 G, i64 n, i64 D, i64 R);
  void (*qkv_rope_bwd)(int dt, const void *dq, const void *dk, const void *dv, void *dqkv, const float *cos,
                       const float *sin, i64 row0, i64 row1, i64 B, i64 G, i64 n, i64 D, i64 R);
  void (*ce_stats)(int dt, const void *logits, const int32_t *labels, float *out, i64 row0, i64 row1, i64 V, i64 start);
  void (*ce_grad)(int dt, const void *logits, const int32_t *labels, const float *lse, const float *grad, void *out,
                  i64 row0, i64 row1, i64 V, i64 start);
  void (*embedding_wgrad)(int dt, const void *g, const int32_t *ids, float *main_grad, i64 tokens, i64 V, i64 H, i64 h0,
                          i64 h1, i64 start);
  void (*bias_grad)(int dt, const void *g, float *main_grad, i64 rows, i64 N, i64 n0, i64 n1);
  void (*adamw)(int dt, void *param, float *master, const float *grad, float *m, float *v, i64 n, const AdamW &p);
  double (*sum_squares)(const float *x, i64 n);
  void (*accumulate)(int dt, float *dst, const void *src, i64 n);
  void (*add)(int dt, const void *x, const void *y, void *out, i64 n);
  void (*scale)(float *x, float factor, i64 n);
  void (*from_float)(int dt, const float *x, void *y, i64 n);
  ProductKernel panels, tiles;  // on vector units; on AMX tiles (null without them)
  FewRows few_rows;
  // rows [p0, p1) of w (P, Q), or of the transpose of w (Q, P), in fp32, `ld` apart, zero from Q on
  void (*thin_pack)(int dt, const void *w, bool across, i64 P, i64 Q, i64 ld, float *out, i64 p0, i64 p1);
  void (*low_rank)(const LowRank &g, i64 m0, i64 m1);      // rows [m0, m1)
  void (*thin_wgrad)(const ThinWgrad &g, i64 c0, i64 c1);  // columns [c0, c1) of C

  // the versions on AMX tiles (null without them) have other operands, other paddings and longer query tiles
  void (*attn_pack)(const Attention &a, i64 bg, bool backward);
  void (*attn_fwd)(const Attention &a, i64 b, i64 h, i64 row0, i64 row1);
  void (*attn_bwd)(const Attention &a, i64 bg, i64 part);
  void (*tiles_pack)(const Attention &a, i64 bg, bool backward);
  void (*tiles_fwd)(const Attention &a, i64 b, i64 h, i64 row0, i64 row1);
  void (*tiles_bwd)(const Attention &a, i64 bg, i64 part);
  void (*attn_bwd_finish)(const Attention &a, i64 bg, i64 row0, i64 row1);
  // partial weighted values (D padded to whole vectors), maximum and sum of keys [j0, j1) for every head of group g
  void (*attn_decode)(const Decode &a, i64 b, i64 g, i64 j0, i64 j1, float *part);
};

const Isa &isa();                     // the best one this processor has (or the one set by select_isa)
bool select_isa(const char *name);    // false when unknown or not supported here
std::vector<std::string> isa_names();  // those that this processor has, the best one last

const Isa *isa_base();
#if defined(__x86_64__)
const Isa *isa_avx2();
const Isa *isa_avx512();
const Isa *isa_avx512_bf16();
const Isa *isa_amx();
#endif

constexpr i64 kQueryBlock = 48;  // rows of a query tile: a multiple of the 6 rows of the micro kernel
constexpr i64 kTileQueriesFwd = 128, kTileQueriesBwd = 192;  // the same on AMX tiles
constexpr i64 kKeyBlock = 192;                              // keys of a tile: a multiple of every panel width

}  // namespace msl
