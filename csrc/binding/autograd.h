// Gradients of rotate and rotate_, recorded in C++: one node of autograd's graph a call.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace road::binding {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// rotate, or in place rotate_ (which then returns x), of checked arguments, any of which may require grad.
Tensor rotate_recorded(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                       std::string_view form, int64_t group_size, bool inplace);

// Raises torch's own RuntimeError if autograd cannot record a write to x: a leaf, a view of one, one of several views
// that an op returned.  The node would find out only after the kernel has written.
void check_inplace(const Tensor& x);
bool can_record_inplace(const Tensor& x);

// Below the Autograd key, without a node.
Tensor rotate_below(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                    std::string_view form, int64_t group_size, bool overlap);
void rotate_inplace_below(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                          std::string_view form, int64_t group_size, bool check_invertible, bool overlap);
std::tuple<Tensor, Tensor, Tensor> rotate_backward_below(const Tensor& grad, const Tensor& saved, const Tensor& p,
                                                         const Tensor& q, const OptionalTensor& adapter_ids,
                                                         std::string_view form, int64_t group_size, bool from_output,
                                                         std::array<bool, 3> output_mask);

}  // namespace road::binding
