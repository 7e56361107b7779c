// Whole kernels on raw pointers: checked arguments in, threads inside. bind.cc calls these.
#pragma once
#include <vector>

#include "kernels.h"

namespace msl {

// y (M, N) = x (M, K) w (N, K)^T + bias (N)
void linear_fwd(int dt, const void *x, const void *w, const void *bias, void *y, i64 M, i64 N, i64 K);
// dx (M, K) = g (M, N) w (N, K)
void linear_dgrad(int dt, const void *g, const void *w, void *dx, i64 M, i64 N, i64 K);
// A gradient of a parameter is added to main_grad with `accumulate`, or replaces what main_grad held.
// main_grad (N, K): g (M, N)^T x (M, K)
void linear_wgrad(int dt, const void *g, const void *x, float *main_grad, i64 M, i64 N, i64 K, bool accumulate);

// total (M, N) += hidden up, unless total is null, and hidden (M, rank) = scale x (M, K) down. `down` is (K, rank), or with down_across (rank, K);
// `up` is (rank, N), or with up_across (N, rank).
void op_low_rank(int dt, const void *x, const void *down, bool down_across, const void *up, bool up_across, float scale,
                 void *total, void *hidden, i64 M, i64 K, i64 N, i64 rank);
// out (rank, C), with `across` (C, rank): thin (M, rank)^T large (M, C), added or put as in linear_wgrad
void op_thin_wgrad(int dt, const void *large, const void *thin, float *out, i64 M, i64 C, i64 rank, bool across,
                   bool accumulate);

void op_zero(float *x, i64 n);
void op_bias_grad(int dt, const void *g, float *main_grad, i64 rows, i64 N, bool accumulate);
void op_rms_norm_fwd(int dt, const void *x, const void *branch, const void *w, void *sum, void *y, float *rstd,
                     i64 rows, i64 H, float eps);
void op_rms_norm_bwd(int dt, const void *g, const void *x, const void *w, const float *rstd, const void *d_sum,
                     void *dx, float *main_grad, i64 rows, i64 H, bool accumulate);
void op_swiglu_fwd(int dt, const void *x, void *y, i64 rows, i64 F);
void op_swiglu_bwd(int dt, const void *g, const void *x, void *dx, i64 rows, i64 F);
void op_rope(int dt, const void *x, void *y, const float *cos, const float *sin, i64 S, i64 B, i64 N, i64 D, i64 R,
             bool inverse);
void op_qkv_rope_fwd(int dt, const void *qkv, void *q, void *k, void *v, const float *cos, const float *sin, i64 S,
                     i64 B, i64 G, i64 n, i64 D, i64 R);
void op_qkv_rope_bwd(int dt, const void *dq, const void *dk, const void *dv, void *dqkv, const float *cos,
                     const float *sin, i64 S, i64 B, i64 G, i64 n, i64 D, i64 R);
void op_ce_stats(int dt, const void *logits, const int32_t *labels, float *out, i64 rows, i64 V, i64 start);
void op_ce_grad(int dt, const void *logits, const int32_t *labels, const float *lse, const float *grad, void *out,
                i64 rows, i64 V, i64 start);
void op_embedding_fwd(int dt, const void *weight, const int32_t *ids, void *out, i64 tokens, i64 V, i64 H, i64 start);
void op_embedding_wgrad(int dt, const void *g, const int32_t *ids, float *main_grad, i64 tokens, i64 V, i64 H,
                        i64 start, bool accumulate);
void op_adamw(int dt, void *param, float *master, const float *grad, float *m, float *v, i64 n, const AdamW &p);
double op_sum_squares(const float *x, i64 n);
void op_add(int dt, const void *x, const void *y, void *out, i64 n);

// cu_seqlens: n + 1 ascending borders starting at 0, or null. Fill a.dt, sizes, scale, pointers; the rest is set
// inside.
void op_attention_fwd(Attention a, i64 q_start, i64 k_start, const i64 *cu_seqlens, i64 segments);
void op_attention_bwd(Attention a, i64 q_start, i64 k_start, const i64 *cu_seqlens, i64 segments);

// Attention of sequences that have a past. Rows [edges[i], edges[i + 1]) of q (T, N, D), k, v (T, G, D) and out are the
// new tokens of sequence i; lengths[i] rows are in the cache before them: row r is row r % block of the cache's block
// tables[i][r / block]. Block b is entry b % per_slab of slab b / per_slab of keys and values, which are
// (per_slab, block, G, D). With `keep` the new rows are written behind the past first.
struct Cached {
  int dt;
  i64 N, G, D, block, per_slab;
  float scale;
  bool keep;
  const void *q, *k, *v;
  void *out;
  std::vector<void *> keys, values;
  std::vector<std::vector<i64>> tables;
  std::vector<i64> edges, lengths;
};
void op_attention_cached(const Cached &a);
void op_attention_decode(const Decode &a);

}  // namespace msl
