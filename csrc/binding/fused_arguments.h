// What the fused ops take beside x, its tables and ids: checks, and the plain views of csrc/core.
#pragma once

#include <ATen/core/Tensor.h>

#include "binding/arguments.h"
#include "core/rms_norm.h"
#include "core/rope.h"

namespace road::binding {

// The rules of road_kernels/ops/fused_checks.py.
bool is_silu_mul(const Tensor& x, const Tensor& r1, const Tensor& r2, const OptionalTensor& adapter_ids,
                 int64_t group_size);
bool is_add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& r1, const Tensor& r2,
                     const OptionalTensor& adapter_ids, double eps, int64_t group_size);
bool are_written_apart(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& r1,
                       const Tensor& r2);
bool is_rope(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin_cache, const Tensor& r1,
             const Tensor& r2, const OptionalTensor& adapter_ids, int64_t num_heads, int64_t num_kv_heads,
             int64_t head_dim, int64_t group_size);

// The same, raising the errors of that file.
void check_silu_mul(const Tensor& x, const Tensor& r1, const Tensor& r2, const OptionalTensor& adapter_ids,
                    int64_t group_size);
void check_silu_mul_grad(const Tensor& grad, const Tensor& x);
void check_add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& r1,
                        const Tensor& r2, const OptionalTensor& adapter_ids, double eps, int64_t group_size);
void check_add_rms_norm_grads(const Tensor& gy, const Tensor& gs, const Tensor& s, const Tensor& weight, double eps);
void check_written_apart(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& r1,
                         const Tensor& r2);
void check_rope(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin_cache, const Tensor& r1,
                const Tensor& r2, const OptionalTensor& adapter_ids, int64_t num_heads, int64_t num_kv_heads,
                int64_t head_dim, bool is_neox, int64_t group_size);
// positions at a flat `place` is outside the cache.
[[noreturn]] void refuse_position(const Rope& rope, int64_t place);

inline RmsNorm norm_of(const Tensor& weight, double eps) {
  return {weight.const_data_ptr(), dtype_of(weight.scalar_type()), eps};
}

// The plain view of positions and cache.  Owns what it had to copy.
class RopeArguments {
 public:
  RopeArguments(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin_cache, int64_t turned_heads,
                int64_t head_dim, bool is_neox);

  const Rope& rope() const { return rope_; }

 private:
  Rope rope_;
  Tensor positions_, cache_;
};

}  // namespace road::binding
