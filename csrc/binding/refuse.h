// Raising the errors of road_kernels/ops, which has the messages.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>
#include <string_view>
#include <variant>

namespace road::binding {

// Of a function of road_kernels.ops.
using RefusedArgument = std::variant<at::Tensor, std::optional<at::Tensor>, std::string_view, bool, double, int64_t,
                                     std::optional<int64_t>>;

// Calls a function of road_kernels.ops that raises, and raises its error as one that C++ callers know too.  Apart from
// its callers, because the headers that make Python's objects of these take longer to compile than all of the rules.
[[noreturn]] void refuse(const char* module, const char* function, std::initializer_list<RefusedArgument> args);

}  // namespace road::binding
