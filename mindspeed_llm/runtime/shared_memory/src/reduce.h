// Sums and maxima over several inputs, always in the order of the inputs: every rank gets the same bits.
// 16-bit types are accumulated in fp32 and rounded once, to nearest even.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace shm {

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <class T>
struct Plain {
  using Wire = T;
  using Total = T;
  static T load(T value) { return value; }
  static T store(T value) { return value; }
};

struct Bfloat16 {
  using Wire = uint16_t;
  using Total = float;
  static float load(uint16_t value) { return as_float(uint32_t(value) << 16); }
  static uint16_t store(float value) {
    uint32_t bits = as_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t quiet_nan = (bits >> 16) | 0x40u;
    return uint16_t(value != value ? quiet_nan : rounded);
  }
};

// Written with selects, not branches, so that the compiler vectorises it; no compiler type for fp16 is needed.
struct Float16 {
  using Wire = uint16_t;
  using Total = float;
  static float load(uint16_t value) {
    uint32_t magnitude = uint32_t(value & 0x7fffu) << 13;
    uint32_t exponent = magnitude & 0x0f800000u;
    uint32_t normal = magnitude + (112u << 23);
    uint32_t special = magnitude + (224u << 23);
    float subnormal = as_float(magnitude + (113u << 23)) - as_float(113u << 23);
    uint32_t bits = exponent == 0x0f800000u ? special : exponent == 0 ? as_bits(subnormal) : normal;
    return as_float(bits | uint32_t(value & 0x8000u) << 16);
  }
  static uint16_t store(float value) {
    uint32_t bits = as_bits(value);
    uint32_t sign = bits & 0x80000000u;
    bits ^= sign;
    uint32_t normal = (bits - (112u << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
    // adding 0.5 lets the processor's own rounding place the bits of a subnormal result
    uint32_t subnormal = as_bits(as_float(bits) + 0.5f) - as_bits(0.5f);
    uint32_t special = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t result = bits >= 0x477ff000u ? special : bits < (113u << 23) ? subnormal : normal;
    return uint16_t(result | sign >> 16);
  }
};

struct Sum {
  template <class T>
  static T apply(T total, T value) { return total + value; }
};

// A NaN anywhere makes the maximum NaN.
struct Max {
  template <class T>
  static T apply(T total, T value) { return value > total || value != value ? value : total; }
};

template <class Type, class Op>
void reduce_typed(void* out, const void* const* inputs, int count, size_t elements) {
  using Wire = typename Type::Wire;
  constexpr size_t kTile = 1024;
  typename Type::Total total[kTile];
  for (size_t start = 0; start < elements; start += kTile) {
    size_t tile = std::min(kTile, elements - start);
    const Wire* first = static_cast<const Wire*>(inputs[0]) + start;
    for (size_t i = 0; i < tile; ++i) total[i] = Type::load(first[i]);
    for (int input = 1; input < count; ++input) {
      const Wire* next = static_cast<const Wire*>(inputs[input]) + start;
      for (size_t i = 0; i < tile; ++i) total[i] = Op::apply(total[i], Type::load(next[i]));
    }
    Wire* target = static_cast<Wire*>(out) + start;
    for (size_t i = 0; i < tile; ++i) target[i] = Type::store(total[i]);
  }
}

using Reducer = void (*)(void*, const void* const*, int, size_t);

struct Dtype {
  size_t bytes;
  Reducer sum, max;
};

template <class Type>
constexpr Dtype dtype_row() {
  return {sizeof(typename Type::Wire), reduce_typed<Type, Sum>, reduce_typed<Type, Max>};
}

// Order of the codes in transport.py. Integers wrap, hence unsigned sums would do, but maxima need the sign.
const Dtype kDtypes[] = {dtype_row<Plain<float>>(),   dtype_row<Bfloat16>(),       dtype_row<Float16>(),
                         dtype_row<Plain<int32_t>>(), dtype_row<Plain<int64_t>>(), dtype_row<Plain<double>>()};

}  // namespace shm
