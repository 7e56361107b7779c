// The Python module. One translation unit, because MindSpore's headers take half a minute to compile.
#include "bind.h"

#include <sstream>

namespace msl {

std::string text(const Shape &shape) {
  std::ostringstream out;
  out << '(';
  for (size_t i = 0; i < shape.size(); ++i) out << (i > 0 ? ", " : "") << shape[i];
  out << ')';
  return out.str();
}

void bad_value(const std::string &message) { throw py::value_error(message); }
void bad_type(const std::string &message) { throw py::type_error(message); }

namespace {

std::string dtype_name(const Tensor &t) { return mindspore::TypeIdToString(t.data_type()); }

class Runner : public ms::pynative::PyboostRunner {
 public:
  Runner(const std::string &name, Body body) : PyboostRunner(name), body_(std::move(body)) {}

  void LaunchKernel() override {
    std::vector<void *> in, out;
    in.reserve(inputs().size());
    out.reserve(outputs().size());
    for (const Tensor &t : inputs()) in.push_back(t.numel() > 0 ? t.GetDataPtr() : nullptr);
    for (const Tensor &t : outputs()) out.push_back(t.numel() > 0 ? t.GetDataPtr() : nullptr);
    body_(in, out);
  }

 private:
  Body body_;
};

}  // namespace

int any_dtype(const char *op, const char *name, const Tensor &t) {
  t.ConvertStubNodeToTensor();
  switch (t.data_type()) {
    case mindspore::kNumberTypeFloat32:
      return kF32;
    case mindspore::kNumberTypeBFloat16:
      return kBF16;
    case mindspore::kNumberTypeFloat16:
      return kF16;
    default:
      bad_type(std::string(op) + ": " + name + " is " + dtype_name(t) + ", must be float32, bfloat16 or float16");
  }
}

int act_dtype(const char *op, const char *name, const Tensor &t) {
  t.ConvertStubNodeToTensor();
  switch (t.data_type()) {
    case mindspore::kNumberTypeFloat32:
      return kF32;
    case mindspore::kNumberTypeBFloat16:
      return kBF16;
    default:
      bad_type(std::string(op) + ": " + name + " is " + dtype_name(t) + ", must be float32 or bfloat16");
  }
}

void want_dtype(const char *op, const char *name, const Tensor &t, int dt) {
  t.ConvertStubNodeToTensor();
  if (t.data_type() != type_id(dt)) {
    bad_type(std::string(op) + ": " + name + " is " + dtype_name(t) + ", must be " +
             mindspore::TypeIdToString(type_id(dt)) + " like the other arguments");
  }
}

void want_float32(const char *op, const char *name, const Tensor &t) {
  t.ConvertStubNodeToTensor();
  if (t.data_type() != mindspore::kNumberTypeFloat32) {
    bad_type(std::string(op) + ": " + name + " is " + dtype_name(t) + ", must be float32");
  }
}

void want_int32(const char *op, const char *name, const Tensor &t) {
  t.ConvertStubNodeToTensor();
  if (t.data_type() != mindspore::kNumberTypeInt32) {
    bad_type(std::string(op) + ": " + name + " is " + dtype_name(t) + ", must be int32");
  }
}

void want_shape(const char *op, const char *name, const Tensor &t, const Shape &shape) {
  if (t.shape() != shape) {
    bad_value(std::string(op) + ": " + name + " has shape " + text(t.shape()) + ", must be " + text(shape));
  }
}

void want_rank(const char *op, const char *name, const Tensor &t, size_t least, size_t most) {
  t.ConvertStubNodeToTensor();
  const size_t rank = t.shape().size();
  if (rank < least || rank > most) {
    bad_value(std::string(op) + ": " + name + " has shape " + text(t.shape()) + ", must have " +
              (least == most ? std::to_string(least) : "at least " + std::to_string(least)) + " dimensions");
  }
}

void want_writable(const char *op, const char *name, const Tensor &t) {
  if (!t.is_contiguous()) bad_value(std::string(op) + ": " + name + " is written in place and must be contiguous");
}

i64 count(const Tensor &t) {
  i64 n = 1;
  for (i64 d : t.shape()) n *= d;
  return n;
}

TypeId type_id(int dt) {
  return dt == kF32    ? mindspore::kNumberTypeFloat32
         : dt == kBF16 ? mindspore::kNumberTypeBFloat16
                       : mindspore::kNumberTypeFloat16;
}

i64 rows_of(const Tensor &t) {
  i64 n = 1;
  for (size_t i = 0; i + 1 < t.shape().size(); ++i) n *= t.shape()[i];
  return n;
}

Shape with_last(const Tensor &t, i64 n) {
  Shape shape = t.shape();
  shape.back() = n;
  return shape;
}

void launch(const char *op, const Tensors &inputs, const Tensors &outputs, Body body) {
  Tensors ordered;
  ordered.reserve(inputs.size());
  for (const Tensor &t : inputs) ordered.push_back(t.is_contiguous() ? t : t.contiguous());
  std::make_shared<Runner>(op, std::move(body))->Run(ordered, outputs);
}

}  // namespace msl

#include "bind_linear.inc"
#include "bind_rows.inc"
#include "bind_attention.inc"
#include "bind_optimizer.inc"

PYBIND11_MODULE(MS_EXTENSION_NAME, m) {
  msl::bind_linear(m);
  msl::bind_rows(m);
  msl::bind_attention(m);
  msl::bind_optimizer(m);
  m.def("isa", [] { return std::string(msl::isa().name); });
  m.def("isa_names", &msl::isa_names);
  m.def("select_isa", [](const std::string &name) {
    if (!msl::select_isa(name.c_str())) msl::bad_value("select_isa: '" + name + "' is not available on this processor");
  });
  m.def("num_threads", &msl::num_threads);
  m.def("set_num_threads", [](int n) { msl::set_num_threads(n); });
  m.def("set_spin_us", [](int n) { msl::set_spin_us(n); });
}
