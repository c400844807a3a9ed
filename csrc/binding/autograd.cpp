#include "binding/autograd.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/custom_function.h>

#include "binding/op.h"

namespace road::binding {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using RotateOp = Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, std::string_view, int64_t,
                        bool);
using RotateInplaceOp = void(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, std::string_view,
                             int64_t, bool, bool);
using BackwardOp = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                      const OptionalTensor&, std::string_view, int64_t, bool,
                                                      std::array<bool, 3>);
const auto& rotate_handle() {
  static const auto op = find<RotateOp>("rotate");
  return op;
}
const auto& backward_handle() {
  static const auto op = find<BackwardOp>("rotate_backward");
  return op;
}

constexpr std::array<std::string_view, 4> kForms = {"road_1", "road_2", "road_4", "table"};

// As the Python class of this name in road_kernels/ops/autograd.py, which serves where there is no extension.
struct Rotate : torch::autograd::Function<Rotate> {
  static constexpr bool is_traceable = true;

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& p, const Tensor& q,
                        const OptionalTensor& adapter_ids, std::string_view form, int64_t group_size, bool inplace,
                        AutogradContext** context) {
    *context = ctx;
    const bool need_p = p.requires_grad(), need_q = q.requires_grad();
    Tensor z = x;
    if (inplace) {
      // A backward from the output divides by a determinant (road_1: by alpha, for its own gradient only).
      const bool divides = need_q || (need_p && form != "road_1");
      rotate_inplace_below(x, p, q, adapter_ids, form, group_size, divides, /*overlap=*/false);
      ctx->mark_dirty({x});
    } else {
      z = rotate_below(x, p, q, adapter_ids, form, group_size, /*overlap=*/false);
    }
    // In its own dtype x, or in place the output; neither if no parameter needs a gradient.
    variable_list saved = {need_p || need_q ? x : Tensor(), p, q};
    if (adapter_ids) saved.push_back(*adapter_ids);
    ctx->save_for_backward(std::move(saved));
    // One number, because a map of several costs more than the rest of the node.
    const auto form_index = std::find(kForms.begin(), kForms.end(), form) - kForms.begin();
    ctx->saved_data.emplace("call", (group_size * 4 + form_index) * 2 + inplace);
    return z;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const int64_t call = ctx->saved_data.at("call").toInt();
    const bool from_output = call & 1;
    const std::string_view form = kForms[call / 2 % 4];
    const int64_t group_size = call / 8;
    const OptionalTensor adapter_ids = saved.size() > 3 ? OptionalTensor(saved[3]) : std::nullopt;
    const std::array<bool, 3> mask = {ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2)};
    const Tensor& kept = saved[0].defined() ? saved[0] : grads[0];  // only gx is needed, which does not read it
    // create_graph=True: through the Autograd key, whose kernel is the formula where gradients can be differentiated.
    auto [gx, gp, gq] = at::GradMode::is_enabled()
                            ? backward_handle().call(grads[0], kept, saved[1], saved[2], adapter_ids, form, group_size,
                                                     from_output, mask)
                            : rotate_backward_below(grads[0], kept, saved[1], saved[2], adapter_ids, form, group_size,
                                                    from_output, mask);
    return {gx, gp, gq, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor rotate_recorded(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                       std::string_view form, int64_t group_size, bool inplace) {
  AutogradContext* context = nullptr;
  Tensor z = Rotate::apply(x, p, q, adapter_ids, form, group_size, inplace, &context);
  // Of use while the node was made only, and compiled autograd asserts that there is none.
  if (inplace) context->mark_dirty({});
  return z;
}

void check_inplace(const Tensor& x) { torch::autograd::check_inplace(x, /*requires_grad=*/true); }

bool can_record_inplace(const Tensor& x) {
  try {
    check_inplace(x);
    return true;
  } catch (const c10::Error&) { return false; }
}

Tensor rotate_below(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                    std::string_view form, int64_t group_size, bool overlap) {
  at::AutoDispatchBelowADInplaceOrView below;
  return rotate_handle().call(x, p, q, adapter_ids, form, group_size, overlap);
}

void rotate_inplace_below(const Tensor& x, const Tensor& p, const Tensor& q, const OptionalTensor& adapter_ids,
                          std::string_view form, int64_t group_size, bool check_invertible, bool overlap) {
  static const auto op = find<RotateInplaceOp>("rotate_");
  at::AutoDispatchBelowADInplaceOrView below;
  op.call(x, p, q, adapter_ids, form, group_size, check_invertible, overlap);
}

std::tuple<Tensor, Tensor, Tensor> rotate_backward_below(const Tensor& grad, const Tensor& saved, const Tensor& p,
                                                         const Tensor& q, const OptionalTensor& adapter_ids,
                                                         std::string_view form, int64_t group_size, bool from_output,
                                                         std::array<bool, 3> output_mask) {
  at::AutoDispatchBelowADInplaceOrView below;
  return backward_handle().call(grad, saved, p, q, adapter_ids, form, group_size, from_output, output_mask);
}

}  // namespace road::binding
