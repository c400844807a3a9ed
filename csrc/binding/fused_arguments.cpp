#include "binding/fused_arguments.h"

#include "binding/refuse.h"

namespace road::binding {
namespace {

constexpr auto kFusedChecks = "road_kernels.ops.fused_checks";

bool is_rotation(const Tensor& x, const Tensor& r1, const Tensor& r2, const OptionalTensor& adapter_ids,
                 int64_t group_size) {
  return are_valid(x, r1, r2, adapter_ids, "table", group_size);
}

bool broadcasts(at::IntArrayRef shape, at::IntArrayRef leading) {
  if (shape.size() > leading.size()) return false;
  const auto suffix = leading.slice(leading.size() - shape.size());
  for (size_t d = 0; d < shape.size(); ++d)
    if (shape[d] != 1 && shape[d] != suffix[d]) return false;
  return true;
}

bool is_like(const Tensor& t, const Tensor& x) {
  return is_dense_float(t) && t.sizes() == x.sizes() && t.scalar_type() == x.scalar_type() && t.device() == x.device();
}

bool is_norm(const Tensor& x, const Tensor& weight, double eps) {
  return is_dense_float(weight) && weight.dim() == 1 && weight.size(0) == x.size(-1) && weight.device() == x.device() &&
         eps >= 0;
}

}  // namespace

bool is_silu_mul(const Tensor& x, const Tensor& r1, const Tensor& r2, const OptionalTensor& adapter_ids,
                 int64_t group_size) {
  return is_rotation(x, r1, r2, adapter_ids, group_size) && x.size(-1) % (2 * group_size) == 0;
}

bool is_add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& r1, const Tensor& r2,
                     const OptionalTensor& adapter_ids, double eps, int64_t group_size) {
  return is_rotation(x, r1, r2, adapter_ids, group_size) && is_like(residual, x) && is_norm(x, weight, eps);
}

bool are_written_apart(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& r1,
                       const Tensor& r2) {
  if (share_memory(x, residual)) return false;
  for (const Tensor* written : {&x, &residual})
    for (const Tensor* read : {&weight, &r1, &r2})
      if (share_memory(*written, *read)) return false;
  return true;
}

bool is_rope(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin_cache, const Tensor& r1,
             const Tensor& r2, const OptionalTensor& adapter_ids, int64_t num_heads, int64_t num_kv_heads,
             int64_t head_dim, int64_t group_size) {
  if (!is_rotation(qkv, r1, r2, adapter_ids, group_size)) return false;
  const int64_t dim = qkv.size(-1);
  for (const int64_t n : {num_heads, num_kv_heads, head_dim})
    if (n < 1 || n > dim) return false;  // larger numbers could overflow below
  if (head_dim % group_size != 0) return false;
  if (dim % head_dim != 0 || num_heads + 2 * num_kv_heads != dim / head_dim) return false;
  const auto type = positions.scalar_type(), cache_type = cos_sin_cache.scalar_type();
  if ((type != at::kLong && type != at::kInt) || positions.layout() != at::kStrided) return false;
  if (positions.device() != qkv.device() || cos_sin_cache.device() != qkv.device()) return false;
  if (!broadcasts(positions.sizes(), qkv.sizes().slice(0, qkv.dim() - 1))) return false;
  if (!is_dense_float(cos_sin_cache) || (cache_type != at::kFloat && cache_type != qkv.scalar_type())) return false;
  if (cos_sin_cache.dim() != 2) return false;
  const int64_t rotary_dim = cos_sin_cache.size(1);
  return rotary_dim >= 2 && rotary_dim % 2 == 0 && rotary_dim <= head_dim;
}

void check_silu_mul(const Tensor& x, const Tensor& r1, const Tensor& r2, const OptionalTensor& adapter_ids,
                    int64_t group_size) {
  if (!is_silu_mul(x, r1, r2, adapter_ids, group_size))
    refuse(kFusedChecks, "check_silu_mul", {x, r1, r2, adapter_ids, group_size});
}

void check_silu_mul_grad(const Tensor& grad, const Tensor& x) {
  const auto leading = x.sizes().slice(0, x.dim() - 1);
  if (grad.dim() != x.dim() || grad.sizes().slice(0, x.dim() - 1) != leading || grad.size(-1) != x.size(-1) / 2 ||
      grad.scalar_type() != x.scalar_type() || grad.device() != x.device())
    refuse(kFusedChecks, "check_silu_mul_grad", {grad, x});
}

void check_add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& r1,
                        const Tensor& r2, const OptionalTensor& adapter_ids, double eps, int64_t group_size) {
  if (!is_add_rms_norm(x, residual, weight, r1, r2, adapter_ids, eps, group_size))
    refuse(kFusedChecks, "check_add_rms_norm", {x, residual, weight, r1, r2, adapter_ids, eps, group_size});
}

void check_add_rms_norm_grads(const Tensor& gy, const Tensor& gs, const Tensor& s, const Tensor& weight, double eps) {
  if (!is_dense_float(s) || s.dim() == 0 || !is_like(gy, s) || !is_like(gs, s) || !is_norm(s, weight, eps))
    refuse(kFusedChecks, "check_add_rms_norm_grads", {gy, gs, s, weight, eps});
}

void check_written_apart(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& r1,
                         const Tensor& r2) {
  if (!are_written_apart(x, residual, weight, r1, r2))
    refuse(kFusedChecks, "check_written_apart", {x, residual, weight, r1, r2});
}

void check_rope(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin_cache, const Tensor& r1,
                const Tensor& r2, const OptionalTensor& adapter_ids, int64_t num_heads, int64_t num_kv_heads,
                int64_t head_dim, bool is_neox, int64_t group_size) {
  if (!is_rope(qkv, positions, cos_sin_cache, r1, r2, adapter_ids, num_heads, num_kv_heads, head_dim, group_size))
    refuse(
        kFusedChecks, "check_rope",
        {qkv, positions, cos_sin_cache, r1, r2, adapter_ids, num_heads, num_kv_heads, head_dim, is_neox, group_size});
}

void refuse_position(const Rope& rope, int64_t place) {
  refuse(kFusedChecks, "refuse_position", {rope.positions.at(place), place, rope.max_position});
}

RopeArguments::RopeArguments(const Tensor& qkv, const Tensor& positions, const Tensor& cos_sin_cache,
                             int64_t turned_heads, int64_t head_dim, bool is_neox) {
  // Positions of the last dimensions of rows repeat with the row number; others are written out.
  const auto leading = qkv.sizes().slice(0, qkv.dim() - 1);
  auto shape = positions.sizes();
  while (!shape.empty() && shape[0] == 1) shape = shape.slice(1);
  const bool repeats = shape == leading.slice(leading.size() - shape.size());
  positions_ = repeats ? positions.contiguous() : positions.expand(leading).contiguous();
  cache_ = cos_sin_cache.stride(1) == 1 ? cos_sin_cache : cos_sin_cache.contiguous();
  rope_.positions.data = positions_.const_data_ptr();
  rope_.positions.is_int64 = positions_.scalar_type() == at::kLong;
  rope_.positions.count = positions_.numel();
  rope_.cache = cache_.const_data_ptr();
  rope_.cache_dtype = dtype_of(cache_.scalar_type());
  rope_.cache_stride = cache_.stride(0);
  rope_.max_position = cache_.size(0);
  rope_.rotary_dim = cache_.size(1);
  rope_.head_dim = head_dim;
  rope_.turned_heads = turned_heads;
  rope_.adjacent = !is_neox;
}

}  // namespace road::binding
