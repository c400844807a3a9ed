// silu(gate) * up and its gradients, once for every backend; silu(g) = g / (1 + exp(-g)).
#pragma once

#include "core/rotate.h"

namespace road {

// From exp(-gate), which each backend computes in its own way.  An infinite one gives 0.
template <class V>
ROAD_INLINE V sigmoid_of(const V& exp_of_minus_gate) {
  const V one = V{} + 1;
  return one / (one + exp_of_minus_gate);
}

template <class V>
ROAD_INLINE V silu_mul(const V& gate, const V& up, const V& sigmoid) {
  return gate * sigmoid * up;
}

template <class V>
struct SiluMulGradients {
  V gate, up;
};
// d silu / d gate = sigmoid (1 + gate (1 - sigmoid)).
template <class V>
ROAD_INLINE SiluMulGradients<V> silu_mul_gradients(const V& gz, const V& gate, const V& up, const V& sigmoid) {
  const V silu = gate * sigmoid;
  return {gz * up * (sigmoid + silu * (V{} + 1 - sigmoid)), gz * silu};
}

}  // namespace road
