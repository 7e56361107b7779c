// What the Python bindings share: argument checks and the launch of a kernel as a MindSpore operator.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "ms_extension/all.h"
#include "ops.h"

namespace msl {

using Tensor = ms::Tensor;
using Tensors = std::vector<ms::Tensor>;
using Shape = ShapeVector;
using mindspore::TypeId;
using ms::pynative::PyboostRunner;
namespace py = pybind11;

inline float *f32(void *p) { return static_cast<float *>(p); }
inline const int32_t *i32(const void *p) { return static_cast<const int32_t *>(p); }

std::string text(const Shape &shape);
[[noreturn]] void bad_value(const std::string &message);
[[noreturn]] void bad_type(const std::string &message);

// kF32, kBF16 or kF16; TypeError for anything else.
int any_dtype(const char *op, const char *name, const Tensor &t);
// kF32 or kBF16; TypeError for anything else.
int act_dtype(const char *op, const char *name, const Tensor &t);
// TypeError unless t has this type.
void want_dtype(const char *op, const char *name, const Tensor &t, int dt);
void want_float32(const char *op, const char *name, const Tensor &t);
void want_int32(const char *op, const char *name, const Tensor &t);
// ValueError unless t has this shape.
void want_shape(const char *op, const char *name, const Tensor &t, const Shape &shape);
void want_rank(const char *op, const char *name, const Tensor &t, size_t least, size_t most);
// ValueError unless t can be written in place: its memory must be the tensor's own and in order.
void want_writable(const char *op, const char *name, const Tensor &t);

i64 count(const Tensor &t);
TypeId type_id(int dt);
inline i64 last(const Tensor &t) { return t.shape().back(); }
// product of all dimensions but the last
i64 rows_of(const Tensor &t);
Shape with_last(const Tensor &t, i64 n);

// Runs `body` with the addresses of inputs (made contiguous where they are not) and outputs.
using Body = std::function<void(const std::vector<void *> &in, const std::vector<void *> &out)>;
void launch(const char *op, const Tensors &inputs, const Tensors &outputs, Body body);

void bind_linear(pybind11::module_ &m);
void bind_rows(pybind11::module_ &m);
void bind_attention(pybind11::module_ &m);
void bind_optimizer(pybind11::module_ &m);

}  // namespace msl
