#include "binding/check.h"

#include "binding/refuse.h"

namespace road::binding {
namespace {

constexpr auto kChecks = "road_kernels.ops.checks", kAliasing = "road_kernels.ops.aliasing";

bool has_width(const Tensor& p, std::string_view form, int64_t dim) {
  const int64_t width = p.size(-1);
  if (form == "road_1") return width == dim / 2;
  if (form == "road_2") return width == dim;
  if (form == "road_4") return width == 2 * dim;
  return form == "table" && (width == dim || width == dim / 2);
}

bool are_ids_of(const Tensor& ids, const Tensor& x) {
  return (ids.scalar_type() == at::kLong || ids.scalar_type() == at::kInt) && ids.layout() == at::kStrided &&
         ids.device() == x.device() && ids.dim() < x.dim() && ids.sizes() == x.sizes().slice(0, ids.dim());
}

}  // namespace

bool is_dense_float(const Tensor& t) {
  const auto dtype = t.scalar_type();
  return (dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kDouble) &&
         t.layout() == at::kStrided && !t.is_nested();
}

bool share_memory(const Tensor& a, const Tensor& b) {
  if (!a.has_storage() || !b.has_storage() || !a.storage().is_alias_of(b.storage())) return false;
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto last_byte = [](const Tensor& t) {
    int64_t last = t.storage_offset();
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
    return (last + 1) * t.element_size();
  };
  return a.storage_offset() * a.element_size() < last_byte(b) && b.storage_offset() * b.element_size() < last_byte(a);
}

bool are_valid(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
               std::string_view form, int64_t group_size) {
  if (!is_dense_float(x) || !is_dense_float(p) || !is_dense_float(q)) return false;
  if (x.dim() == 0 || p.dim() != (adapter_ids ? 2 : 1) || p.sizes() != q.sizes()) return false;
  const int64_t dim = x.size(-1);
  if (dim < 2 || group_size < 2 || group_size % 2 != 0 || dim % group_size != 0) return false;
  if (p.device() != x.device() || q.device() != x.device()) return false;
  return has_width(p, form, dim) && (!adapter_ids || are_ids_of(*adapter_ids, x));
}

void check_arguments(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                     std::string_view form, int64_t group_size) {
  if (!are_valid(x, p, q, adapter_ids, form, group_size))
    refuse(kChecks, "check_arguments", {x, p, q, adapter_ids, form, group_size});
}

int64_t packed_dim(std::string_view form, int64_t width) {
  return form == "road_1" ? 2 * width : form == "road_2" ? width : width / 2;
}

bool are_packed(const Tensor& p, const Tensor& q, std::string_view form, int64_t group_size) {
  if (!is_dense_float(p) || !is_dense_float(q) || (p.dim() != 1 && p.dim() != 2)) return false;
  if (p.sizes() != q.sizes() || p.device() != q.device() || form == "table") return false;
  const int64_t dim = packed_dim(form, p.size(-1));
  return dim >= 2 && group_size >= 2 && group_size % 2 == 0 && dim % group_size == 0 && has_width(p, form, dim);
}

void check_packed(const Tensor& p, const Tensor& q, std::string_view form, int64_t group_size) {
  if (!are_packed(p, q, form, group_size)) refuse(kChecks, "check_packed", {p, q, form, group_size});
}

void check_grad(const Tensor& grad, const Tensor& saved) {
  if (grad.sizes() != saved.sizes() || grad.scalar_type() != saved.scalar_type() || grad.device() != saved.device())
    refuse(kChecks, "check_grad", {grad, saved});
}

void check_matrix(const Tensor& w) {
  if (w.dim() != 2) refuse(kChecks, "check_matrix", {w});
}

void check_not_shared(const char* name, const Tensor& x, const Tensor& p, const Tensor& q) {
  if (share_memory(x, p) || share_memory(x, q)) refuse(kAliasing, "refuse_shared", {std::string_view(name)});
}

void refuse_id(const Problem& problem, int64_t position) {
  const int64_t id = problem.ids[position];
  refuse(kChecks, "refuse_id", {id, position, problem.params.adapters});
}

void refuse_singular(const Problem& problem, int64_t adapter, int64_t feature, double determinant) {
  const std::optional<int64_t> in_bank = problem.ids.data ? std::optional(adapter) : std::nullopt;
  refuse(kChecks, "refuse_singular", {in_bank, feature, feature + problem.group_size / 2, determinant});
}

}  // namespace road::binding
