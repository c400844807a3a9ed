#include "arguments.h"

#include <c10/util/Exception.h>

namespace road::binding {

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kHalf: return DType::kFloat16;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kFloat: return DType::kFloat32;
    case at::kDouble: return DType::kFloat64;
    default: TORCH_CHECK_TYPE(false, "road_kernels: no kernel for dtype ", tensor.scalar_type());
  }
}

static Form form_of(std::string_view name, int64_t dim, const Tensor& p) {
  if (name == "road_1") return Form::kRoad1;
  if (name == "road_2") return Form::kRoad2;
  if (name == "road_4") return Form::kRoad4;
  TORCH_CHECK_VALUE(name == "table", "form must be 'road_1', 'road_2', 'road_4' or 'table', got '", name, "'");
  return p.size(-1) == dim ? Form::kTable : Form::kTableHalf;
}

Arguments::Arguments(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                     std::string_view form, int64_t group_size) {
  const int64_t param_dims = adapter_ids ? 2 : 1;
  TORCH_CHECK_VALUE(x.dim() >= 1, "x must have at least one dimension");
  TORCH_CHECK_VALUE(p.dim() == param_dims && p.sizes() == q.sizes(), "the two parameters must both be ",
                    param_dims == 1 ? "[P]" : "[A, P]", ", got ", p.sizes(), " and ", q.sizes());
  TORCH_CHECK_VALUE(p.device() == x.device() && q.device() == x.device(), "all tensors must be on one device");

  problem_.dim = x.size(-1);
  TORCH_CHECK_VALUE(group_size >= 2 && group_size % 2 == 0 && problem_.dim % group_size == 0,
                    "group_size must be even and divide ", problem_.dim, ", got ", group_size);
  problem_.group_size = group_size;
  problem_.dtype = dtype_of(x);
  problem_.form = form_of(form, problem_.dim, p);
  const int64_t width = param_width(problem_.form, problem_.dim);
  TORCH_CHECK_VALUE(p.size(-1) == width, "parameters of form '", form, "' must be ", width, " wide, got ", p.sizes());
  problem_.rows = problem_.dim == 0 ? 0 : x.numel() / problem_.dim;

  p_ = p.stride(-1) == 1 || width <= 1 ? p : p.contiguous();
  q_ = q.stride(-1) == 1 || width <= 1 ? q : q.contiguous();
  problem_.params = {p_.const_data_ptr(), q_.const_data_ptr(), dtype_of(p_), dtype_of(q_), 0, 0, 1};
  if (!adapter_ids) return;

  problem_.params.adapters = p.size(0);
  problem_.params.p_stride = p_.stride(0);
  problem_.params.q_stride = q_.stride(0);
  const Tensor& ids = *adapter_ids;
  TORCH_CHECK_TYPE(ids.scalar_type() == at::kInt || ids.scalar_type() == at::kLong,
                   "adapter_ids must be int32 or int64, got ", ids.scalar_type());
  TORCH_CHECK_VALUE(ids.device() == x.device(), "adapter_ids must be on the device of x");
  TORCH_CHECK_VALUE(ids.dim() < x.dim() && ids.sizes() == x.sizes().slice(0, ids.dim()),
                    "the shape of adapter_ids must be a prefix of ", x.sizes().slice(0, x.dim() - 1), ", got ", ids.sizes());
  ids_ = ids.contiguous();
  problem_.ids.data = ids_.const_data_ptr();
  problem_.ids.is_int64 = ids_.scalar_type() == at::kLong;
  problem_.ids.count = ids_.numel();
  problem_.ids.rows_per_id = ids_.numel() == 0 ? 1 : problem_.rows / ids_.numel();  // 0 for [B, 0, D]
}

bool describe_rows(const Tensor& tensor, Rows& rows) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const int64_t last = tensor.dim() - 1;
  if (strides[last] != 1 && sizes[last] > 1) return false;
  rows.data = tensor.data_ptr();
  rows.inner_rows = 1, rows.outer_stride = 0, rows.inner_stride = 0;
  // From the innermost dimension outwards, a dimension either continues the current stride or starts the outer one.
  int64_t count = 1, next = 0;  // rows seen, and the stride that would continue them
  bool outer = false;
  for (int64_t d = last - 1; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (count == 1) {
      rows.inner_stride = strides[d];
    } else if (strides[d] != next) {
      if (outer) return false;
      outer = true;
      rows.inner_rows = count;
      rows.outer_stride = strides[d];
    }
    count *= sizes[d];
    next = strides[d] * sizes[d];
  }
  if (!outer) rows.outer_stride = rows.inner_stride, rows.inner_rows = 1;
  return true;
}

Tensor with_rows(const Tensor& tensor, Rows& rows) {
  if (describe_rows(tensor, rows)) return tensor;
  Tensor one = tensor;  // dimensions of stride 0 repeat themselves: keep one of each, copy, and expand again
  for (int64_t d = 0; d + 1 < tensor.dim(); ++d)
    if (tensor.stride(d) == 0 && tensor.size(d) > 1) one = one.narrow(d, 0, 1);
  Tensor copy = one.contiguous().expand(tensor.sizes());
  if (!describe_rows(copy, rows)) {
    copy = tensor.contiguous();
    describe_rows(copy, rows);
  }
  return copy;
}

bool may_share_memory(const Tensor& a, const Tensor& b) {
  if (!a.has_storage() || !b.has_storage() || !a.storage().is_alias_of(b.storage())) return false;
  const auto last_byte = [](const Tensor& t) {
    int64_t last = t.storage_offset();
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
    return (last + 1) * t.element_size();
  };
  if (a.numel() == 0 || b.numel() == 0) return false;
  return a.storage_offset() * a.element_size() < last_byte(b) && b.storage_offset() * b.element_size() < last_byte(a);
}

void raise_bad_id(const Problem& problem, int64_t position) {
  TORCH_CHECK_INDEX(false, "adapter_ids holds ", problem.ids[position], " (flat position ", position,
                    "), but must hold -1 (no adapter) or the index of one of the bank's ", problem.params.adapters,
                    " adapters");
}

}  // namespace road::binding
