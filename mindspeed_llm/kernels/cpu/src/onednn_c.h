// The part of oneDNN's C interface that gemm.cc uses, declared here because MindSpore ships libdnnl.so.3 without
// headers. The C interface and its enum values are stable within major version 3 (oneDNN's "Binary compatibility"
// policy); the version is checked at load.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

extern "C" {
typedef struct dnnl_engine *dnnl_engine_t;
typedef struct dnnl_stream *dnnl_stream_t;
typedef struct dnnl_memory_desc *dnnl_memory_desc_t;
typedef struct dnnl_memory *dnnl_memory_t;
typedef struct dnnl_primitive_desc *dnnl_primitive_desc_t;
typedef struct dnnl_primitive *dnnl_primitive_t;
typedef struct dnnl_primitive_attr *dnnl_primitive_attr_t;
typedef struct dnnl_post_ops *dnnl_post_ops_t;
typedef struct {
  int major, minor, patch;
  const char *hash;
  unsigned cpu_runtime, gpu_runtime;
} dnnl_version_t;
typedef struct {
  int arg;
  dnnl_memory_t memory;
} dnnl_exec_arg_t;

enum { dnnl_success = 0, dnnl_cpu = 1, dnnl_bf16 = 2, dnnl_f32 = 3, dnnl_scratchpad_mode_user = 1 };
enum { DNNL_ARG_SRC = 1, DNNL_ARG_DST = 17, DNNL_ARG_WEIGHTS = 33, DNNL_ARG_BIAS = 41, DNNL_ARG_SCRATCHPAD = 80 };
enum { dnnl_query_scratchpad_md = 136, DNNL_RUNTIME_THREADPOOL = 8 };

const dnnl_version_t *dnnl_version();
int dnnl_engine_create(dnnl_engine_t *engine, int kind, size_t index);
int dnnl_threadpool_interop_stream_create(dnnl_stream_t *stream, dnnl_engine_t engine, void *threadpool);
int dnnl_memory_desc_create_with_strides(dnnl_memory_desc_t *desc, int ndims, const int64_t *dims, int type,
                                         const int64_t *strides);
int dnnl_memory_desc_destroy(dnnl_memory_desc_t desc);
size_t dnnl_memory_desc_get_size(const dnnl_memory_desc *desc);
int dnnl_memory_create(dnnl_memory_t *memory, const dnnl_memory_desc *desc, dnnl_engine_t engine, void *handle);
int dnnl_memory_set_data_handle(dnnl_memory_t memory, void *handle);
int dnnl_memory_destroy(dnnl_memory_t memory);
int dnnl_post_ops_create(dnnl_post_ops_t *post_ops);
int dnnl_post_ops_append_sum(dnnl_post_ops_t post_ops, float scale, int32_t zero_point, int type);
int dnnl_post_ops_destroy(dnnl_post_ops_t post_ops);
int dnnl_primitive_attr_create(dnnl_primitive_attr_t *attr);
int dnnl_primitive_attr_set_scratchpad_mode(dnnl_primitive_attr_t attr, int mode);
int dnnl_primitive_attr_set_post_ops(dnnl_primitive_attr_t attr, const dnnl_post_ops *post_ops);
int dnnl_primitive_attr_destroy(dnnl_primitive_attr_t attr);
int dnnl_matmul_primitive_desc_create(dnnl_primitive_desc_t *desc, dnnl_engine_t engine, const dnnl_memory_desc *src,
                                      const dnnl_memory_desc *weights, const dnnl_memory_desc *bias,
                                      const dnnl_memory_desc *dst, const dnnl_primitive_attr *attr);
const dnnl_memory_desc *dnnl_primitive_desc_query_md(const dnnl_primitive_desc *desc, int what, int index);
int dnnl_primitive_desc_destroy(dnnl_primitive_desc_t desc);
int dnnl_primitive_create(dnnl_primitive_t *primitive, const dnnl_primitive_desc *desc);
int dnnl_primitive_execute(const dnnl_primitive *primitive, dnnl_stream_t stream, int count,
                           const dnnl_exec_arg_t *args);
int dnnl_primitive_destroy(dnnl_primitive_t primitive);
}

namespace dnnl {
namespace threadpool_interop {
// Must keep oneDNN's order of virtual functions.
struct threadpool_iface {
  virtual int get_num_threads() const = 0;
  virtual bool get_in_parallel() const = 0;
  virtual void parallel_for(int n, const std::function<void(int, int)> &fn) = 0;
  virtual uint64_t get_flags() const = 0;
  virtual void wait() = 0;
  virtual ~threadpool_iface() = default;
};
}  // namespace threadpool_interop
}  // namespace dnnl
