// The rules for arguments, decided here and explained in Python: a function that refuses raises the error of
// road_kernels/ops/checks.py or aliasing.py, which have the same rules and the messages.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "core/problem.h"

namespace road::binding {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Of one of the four dtypes, strided, not nested.
bool is_dense_float(const Tensor& t);
// Whether the bytes from a's first element to its last and those of b overlap.
bool share_memory(const Tensor& a, const Tensor& b);

// The rules of rotate, rotate_ and rotate_backward: dtypes, devices, shapes, form and group_size.
bool are_valid(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
               std::string_view form, int64_t group_size);
void check_arguments(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                     std::string_view form, int64_t group_size);
// Of tables: parameters [P] or [A, P] without an x beside them.
bool are_packed(const Tensor& p, const Tensor& q, std::string_view form, int64_t group_size);
void check_packed(const Tensor& p, const Tensor& q, std::string_view form, int64_t group_size);
// D, the features that `width` parameters are for; see road_kernels/ops/checks.py.
int64_t packed_dim(std::string_view form, int64_t width);
// Of rotate_backward for its two tensors of the size of x, and of merge for w.
void check_grad(const Tensor& grad, const Tensor& saved);
void check_matrix(const Tensor& w);

// x, called `name`, must not be written where p or q are read: their bytes, from first element to last, must not
// overlap.
void check_not_shared(const char* name, const Tensor& x, const Tensor& p, const Tensor& q);

// adapter_ids at `position` names no adapter of the bank.
[[noreturn]] void refuse_id(const Problem& problem, int64_t position);

// A block that a backward from the output could not invert.
[[noreturn]] void refuse_singular(const Problem& problem, int64_t adapter, int64_t feature, double determinant);

}  // namespace road::binding
