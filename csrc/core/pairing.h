// Which features make a pair, and where the coefficients and parameters of a pair lie.  No other file works that out.
#pragma once

#include <cstdint>

#include "core/rotate.h"

namespace road {

template <class I>
struct PairIndex {
  I i, j;
};

// Inside every run of g = 2 * half features, feature k pairs with k + half.  Pairs are numbered by their first
// features.
template <class I>
ROAD_INLINE PairIndex<I> features_of(I pair, I half) {
  const I i = pair + pair / half * half;
  return {i, i + half};
}

// The pair that a feature is in, as its first or second one.
template <class I>
struct PairMember {
  I pair, first;  // first: the pair's first feature
  bool is_second;
};
// half_groups: how many half groups lie before the feature, feature / half.
template <class I>
ROAD_INLINE PairMember<I> pair_of(I feature, I half_groups, I half) {
  const bool is_second = half_groups % 2 != 0;
  const I first = is_second ? feature - half : feature;
  return {first - half_groups / 2 * half, first, is_second};
}

// Where a table, [D/2] if both rows of a pair share their coefficients and [D] otherwise, has those of a pair.
template <class I>
ROAD_INLINE PairIndex<I> table_entries(bool shared, I pair, I half) {
  return shared ? PairIndex<I>{pair, pair} : features_of(pair, half);
}

// road_4 packs its parameters [D/g, 2, g]: slot 0 of a feature, which makes its r1; slot 1, which makes r2, is g
// further.
template <class I>
ROAD_INLINE int64_t road4_slot0(I feature, I group_size) {
  return int64_t{feature / group_size} * 2 * group_size + feature % group_size;
}

}  // namespace road
