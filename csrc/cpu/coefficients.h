// The coefficients of one adapter at a time, in the arithmetic type A (float, or double for float64 data).
#pragma once

#include <cmath>
#include <vector>

#include "core/dispatch.h"
#include "core/pairing.h"
#include "cpu/kernels.h"

namespace road::cpu {

template <class A>
constexpr DType kDTypeOf = sizeof(A) == 8 ? DType::kFloat64 : DType::kFloat32;

inline void widen(const void* src, DType dtype, int64_t n, float* dst) { kernels(dtype).widen_float(src, n, dst); }
inline void widen(const void* src, DType dtype, int64_t n, double* dst) { kernels(dtype).widen_double(src, n, dst); }
inline void sincos(const float* t, int64_t n, float* s, float* c) { kernels(DType::kFloat32).sincos_float(t, n, s, c); }
inline void sincos(const double* t, int64_t n, double* s, double* c) {
  for (int64_t k = 0; k < n; ++k) s[k] = std::sin(t[k]), c[k] = std::cos(t[k]);
}

inline const void* element(const void* base, DType dtype, int64_t index) {
  return static_cast<const char*>(base) + index * size_of(dtype);
}

// n numbers in the arithmetic type: where they are, if they are of it, otherwise in `storage`.
template <class A>
const A* as_arithmetic(const void* source, DType dtype, int64_t n, std::vector<A>& storage) {
  if (dtype == kDTypeOf<A>) return static_cast<const A*>(source);
  storage.resize(n);
  widen(source, dtype, n, storage.data());
  return storage.data();
}

// alpha, sin(theta) and cos(theta) of one adapter, in the packing of its parameters.
template <class A>
struct Angles {
  std::vector<A> alpha, sin, cos;

  void load(const Problem& problem, int64_t adapter) {
    const Params& params = problem.params;
    const int64_t n = param_width(problem.form, problem.dim);
    alpha.resize(n), sin.resize(n), cos.resize(n);
    // alpha's storage holds theta first, until sin and cos have been computed from it.
    widen(element(params.p, params.p_dtype, adapter * params.p_stride), params.p_dtype, n, alpha.data());
    sincos(alpha.data(), n, sin.data(), cos.data());
    widen(element(params.q, params.q_dtype, adapter * params.q_stride), params.q_dtype, n, alpha.data());
  }
};

// r1 and r2 of one adapter: where they already are a table of type A a pointer to it, otherwise computed.
template <class A>
class AdapterCoefs {
 public:
  explicit AdapterCoefs(const Problem& problem) : problem_(problem) {}

  static bool are_ready(const Problem& problem) {
    const Params& params = problem.params;
    return !has_angles(problem.form) && params.p_dtype == kDTypeOf<A> && params.q_dtype == kDTypeOf<A>;
  }

  const Coefs& load(int64_t adapter) {
    if (adapter != loaded_) {
      build(adapter);
      identity_ = is_identity();
    }
    loaded_ = adapter;
    return coefs_;
  }

  // Null for no adapter (-1), and for tables that are the identity, as those of an empty slot: their rows pass bit for
  // bit, also where a feature is infinite, which 0 * infinity would make a NaN in its partner.
  const Coefs* load_unless_identity(int64_t adapter) {
    if (adapter < 0) return nullptr;
    load(adapter);
    return identity_ ? nullptr : &coefs_;
  }

 private:
  bool is_identity() const {
    if (has_angles(problem_.form)) return false;
    const A *r1 = static_cast<const A*>(coefs_.r1), *r2 = static_cast<const A*>(coefs_.r2);
    const int64_t n = coefs_.shared ? problem_.dim / 2 : problem_.dim;
    for (int64_t k = 0; k < n; ++k)
      if (r1[k] != 1 || r2[k] != 0) return false;  // of other adapters, nearly always the first
    return true;
  }

  void build(int64_t adapter) {
    const Params& params = problem_.params;
    const Form form = problem_.form;
    coefs_.shared = is_shared(form);
    const int64_t n = coefs_.shared ? problem_.dim / 2 : problem_.dim;
    if (!has_angles(form)) {
      const void* p = element(params.p, params.p_dtype, adapter * params.p_stride);
      const void* q = element(params.q, params.q_dtype, adapter * params.q_stride);
      coefs_.r1 = as_arithmetic(p, params.p_dtype, n, r1_);
      coefs_.r2 = as_arithmetic(q, params.q_dtype, n, r2_);
      return;
    }
    angles_.load(problem_, adapter);
    r1_.resize(n), r2_.resize(n);
    const A *alpha = angles_.alpha.data(), *sin = angles_.sin.data(), *cos = angles_.cos.data();
    A *r1 = r1_.data(), *r2 = r2_.data();
    if (form == Form::kRoad4) {
      const int64_t g = problem_.group_size;
      for (int64_t base = 0; base < n; base += g) {
        const int64_t slot0 = road4_slot0(base, g), slot1 = slot0 + g;
        for (int64_t k = 0; k < g; ++k) {
          r1[base + k] = alpha[slot0 + k] * cos[slot0 + k];
          r2[base + k] = alpha[slot1 + k] * sin[slot1 + k];
        }
      }
    } else {
      for (int64_t k = 0; k < n; ++k) r1[k] = alpha[k] * cos[k], r2[k] = alpha[k] * sin[k];
    }
    coefs_.r1 = r1;
    coefs_.r2 = r2;
  }

  const Problem& problem_;
  int64_t loaded_ = -1;
  bool identity_ = false;
  Coefs coefs_;
  Angles<A> angles_;
  std::vector<A> r1_, r2_;
};

}  // namespace road::cpu
