// From torch tensors to the plain arguments of csrc/core.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <string_view>

#include "binding/check.h"
#include "core/problem.h"

// The namespace of the ops in torch.ops, also in road_kernels/ops/schemas.py.
#define ROAD_NAMESPACE road_kernels

namespace road::binding {

// Tensors in a layout that kernels can walk, and the plain view of them.  Owns what it had to copy.
class Arguments {
 public:
  // Raises if check.h's rules are broken.
  Arguments(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids, std::string_view form,
            int64_t group_size);

  // Tables of a fused op, whose own rules have those among them: not checked again.
  Arguments(const Tensor& x, const Tensor& r1, const Tensor& r2, const OptionalTensor& adapter_ids, int64_t group_size);

  // Parameters without an x: [P] or [A, P].  dtype: of the tables that are wanted.
  Arguments(const Tensor& p, const Tensor& q, std::string_view form, int64_t group_size, DType dtype);

  const Problem& problem() const { return problem_; }
  const Tensor& ids() const { return ids_; }
  at::TensorOptions options() const { return p_.options(); }

 private:
  void set(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids, std::string_view form,
           int64_t group_size);
  void set_parameters(const Tensor& p, const Tensor& q);

  Problem problem_;
  Tensor p_, q_, ids_;
};

DType dtype_of(at::ScalarType type);

// True, and `rows` set, if the elements of each row are adjacent and two strides reach every row.
bool describe_rows(const Tensor& tensor, Rows& rows);

// `tensor` itself if describe_rows can describe it, otherwise a contiguous copy; of an expanded (stride 0) tensor, such
// as the gradient of a sum, only one row is copied.
Tensor with_rows(const Tensor& tensor, Rows& rows);

}  // namespace road::binding
