#include "binding/arguments.h"

#include <c10/util/Exception.h>

namespace road::binding {

DType dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kHalf: return DType::kFloat16;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kFloat: return DType::kFloat32;
    case at::kDouble: return DType::kFloat64;
    default: TORCH_CHECK_TYPE(false, "road_kernels: no kernel for dtype ", type);
  }
}

static Form form_of(std::string_view name, int64_t dim, const Tensor& p) {
  if (name == "road_1") return Form::kRoad1;
  if (name == "road_2") return Form::kRoad2;
  if (name == "road_4") return Form::kRoad4;
  return p.size(-1) == dim ? Form::kTable : Form::kTableHalf;
}

void Arguments::set_parameters(const Tensor& p, const Tensor& q) {
  const bool adjacent = p.size(-1) <= 1 || (p.stride(-1) == 1 && q.stride(-1) == 1);
  p_ = adjacent ? p : p.contiguous();
  q_ = adjacent ? q : q.contiguous();
  problem_.params = {
      p_.const_data_ptr(), q_.const_data_ptr(), dtype_of(p_.scalar_type()), dtype_of(q_.scalar_type()), 0, 0, 1};
  if (p.dim() == 1) return;
  problem_.params.adapters = p.size(0);
  problem_.params.p_stride = p_.stride(0);
  problem_.params.q_stride = q_.stride(0);
}

Arguments::Arguments(const Tensor& p, const Tensor& q, std::string_view form, int64_t group_size, DType dtype) {
  check_packed(p, q, form, group_size);
  problem_.dim = packed_dim(form, p.size(-1));
  problem_.group_size = group_size;
  problem_.dtype = dtype;
  problem_.form = form_of(form, problem_.dim, p);
  set_parameters(p, q);
}

Arguments::Arguments(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                     std::string_view form, int64_t group_size) {
  check_arguments(x, p, q, adapter_ids, form, group_size);
  set(x, p, q, adapter_ids, form, group_size);
}

Arguments::Arguments(const Tensor& x, const Tensor& r1, const Tensor& r2, const OptionalTensor& adapter_ids,
                     int64_t group_size) {
  set(x, r1, r2, adapter_ids, "table", group_size);
}

void Arguments::set(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                    std::string_view form, int64_t group_size) {
  problem_.dim = x.size(-1);
  problem_.group_size = group_size;
  problem_.dtype = dtype_of(x.scalar_type());
  problem_.form = form_of(form, problem_.dim, p);
  problem_.rows = x.numel() / problem_.dim;
  set_parameters(p, q);
  if (!adapter_ids) return;
  ids_ = adapter_ids->contiguous();
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
  // From the innermost dimension outwards, each dimension continues the current stride or starts the outer one.
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
  Tensor one = tensor;  // dimensions of stride 0 repeat: copy one of each, and expand the copy
  for (int64_t d = 0; d + 1 < tensor.dim(); ++d)
    if (tensor.stride(d) == 0 && tensor.size(d) > 1) one = one.narrow(d, 0, 1);
  Tensor copy = one.contiguous().expand(tensor.sizes());
  if (!describe_rows(copy, rows)) {
    copy = tensor.contiguous();
    describe_rows(copy, rows);
  }
  return copy;
}

}  // namespace road::binding
