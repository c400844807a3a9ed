// The ops that road_kernels/ops/schemas.py defines, for calls from C++.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>

#include "binding/arguments.h"

namespace road::binding {

// An op of this name.  Its signature must be that of the schema.
template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  const std::string op = std::string(C10_STRINGIZE(ROAD_NAMESPACE)) + "::" + name;
  return c10::Dispatcher::singleton().findSchemaOrThrow(op.c_str(), "").template typed<Signature>();
}

}  // namespace road::binding
