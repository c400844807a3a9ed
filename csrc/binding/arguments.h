// From torch tensors to the plain arguments of csrc/core.  Checks what memory safety needs; the messages for users
// live in road_kernels/_validate.py, which sees every call of the public functions first.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>

#include "problem.h"

namespace road::binding {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Tensors in a layout that kernels can walk, and the plain view of them.  Owns what it had to copy.
class Arguments {
 public:
  Arguments(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
            std::string_view form, int64_t group_size);

  const Problem& problem() const { return problem_; }
  const Tensor& ids() const { return ids_; }
  at::TensorOptions options() const { return p_.options(); }

 private:
  Problem problem_;
  Tensor p_, q_, ids_;
};

DType dtype_of(const Tensor& tensor);

// True, and `rows` set, if the elements of each row are adjacent and two strides reach every row.
bool describe_rows(const Tensor& tensor, Rows& rows);

// `tensor` itself if describe_rows can describe it, a contiguous copy otherwise; an expanded (stride 0) tensor, such
// as the gradient of a sum, is copied as one row only.
Tensor with_rows(const Tensor& tensor, Rows& rows);

// Whether the bytes from a's first element to its last and those of b overlap.
bool may_share_memory(const Tensor& a, const Tensor& b);

// Raises IndexError: adapter_ids at `position` names no adapter of the bank.
[[noreturn]] void raise_bad_id(const Problem& problem, int64_t position);

}  // namespace road::binding
