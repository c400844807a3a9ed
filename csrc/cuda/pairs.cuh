// The pairs of a thread: which they are, and their elements in a row.
#pragma once

#include "core/pairing.h"
#include "cuda/vector.cuh"

namespace road::cuda {

// The pairs [pair, pair + kPairs) of a row.  `first` is the address of the first pair's first feature.  Column indices
// are 32 bit (a row is narrower than 2^31); rows and offsets are 64 bit.

// Feature k pairs with k + half: two packs of N elements hold N pairs.
template <class T, int N, bool Aligned>
struct Halves {
  using Element = T;
  static constexpr int kPairs = N;
  static constexpr bool kAligned = Aligned, kAdjacent = false;
  using Packs = Pack<T, N>[2];
  template <bool Once = false>
  static __device__ __forceinline__ void load(const T* first, int half, Packs& packs) {
    packs[0] = load_pack<T, N, Aligned, Once>(first);
    packs[1] = load_pack<T, N, Aligned, Once>(first + half);
  }
  template <bool Once = false>
  static __device__ __forceinline__ void store(T* first, int half, const Packs& packs) {
    store_pack<T, N, Aligned, Once>(first, packs[0]);
    store_pack<T, N, Aligned, Once>(first + half, packs[1]);
  }
  // The pairs [k, k + kUnit), as numbers.
  static constexpr int kUnit = N == 1 ? 1 : 2;
  template <class A>
  static __device__ __forceinline__ void get(const Packs& packs, int k, A (&i)[kUnit], A (&j)[kUnit]) {
    widen(packs[0].v + k, i);
    widen(packs[1].v + k, j);
  }
  template <class A>
  static __device__ __forceinline__ void set(Packs& packs, int k, const A (&i)[kUnit], const A (&j)[kUnit]) {
    narrow(i, packs[0].v + k);
    narrow(j, packs[1].v + k);
  }
};

// half = 1: one pack of N elements holds N / 2 pairs side by side.
template <class T, int N, bool Aligned>
struct Adjacent {
  using Element = T;
  static constexpr int kPairs = N / 2;
  static constexpr bool kAligned = Aligned, kAdjacent = true;
  using Packs = Pack<T, N>[1];
  template <bool Once = false>
  static __device__ __forceinline__ void load(const T* first, int, Packs& packs) {
    packs[0] = load_pack<T, N, Aligned, Once>(first);
  }
  template <bool Once = false>
  static __device__ __forceinline__ void store(T* first, int, const Packs& packs) {
    store_pack<T, N, Aligned, Once>(first, packs[0]);
  }
  static constexpr int kUnit = 1;
  template <class A>
  static __device__ __forceinline__ void get(const Packs& packs, int k, A (&i)[1], A (&j)[1]) {
    A both[2];
    widen(packs[0].v + 2 * k, both);
    i[0] = both[0];
    j[0] = both[1];
  }
  template <class A>
  static __device__ __forceinline__ void set(Packs& packs, int k, const A (&i)[1], const A (&j)[1]) {
    const A both[2] = {i[0], j[0]};
    narrow(both, packs[0].v + 2 * k);
  }
};

}  // namespace road::cuda
