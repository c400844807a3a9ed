// The mathematics of RoAd for one pair of features (i, j), once for every backend.
//
// Liao & Monz, "3-in-1: 2D Rotary Adaptation", arXiv 2409.00119, equation 4:
//     z_i = r1_i h_i - r2_i h_j
//     z_j = r1_j h_j + r2_j h_i
// V is a float, a double, or a SIMD vector of either; the text is the same for all of them, and for CUDA.
#pragma once

#if defined(__CUDACC__)
#define ROAD_INLINE __host__ __device__ __forceinline__
#else
#define ROAD_INLINE inline __attribute__((always_inline))
#endif

namespace road {

// z = R h.  The "+ V{}" turns a product of -0 into +0, so that subtracting it leaves even h = -0 untouched:
// theta = 0, alpha = 1 then returns finite h bit for bit.  It costs nothing, being the addend of a fused multiply-add.
// zi and zj may be hi and hj.
template <class V>
ROAD_INLINE void rotate_pair(const V& hi, const V& hj, const V& r1i, const V& r1j, const V& r2i, const V& r2j, V& zi,
                             V& zj) {
  const V ti = r2i * hj + V{};
  const V tj = -r2j * hi + V{};
  zi = r1i * hi - ti;
  zj = r1j * hj - tj;
}

// gh = R^T gz: the same formula with the off-diagonal entries exchanged.
template <class V>
ROAD_INLINE void rotate_pair_transposed(const V& gi, const V& gj, const V& r1i, const V& r1j, const V& r2i,
                                        const V& r2j, V& hi, V& hj) {
  rotate_pair<V>(gi, gj, r1i, r1j, -r2j, -r2i, hi, hj);
}

// Parameter gradients need only the 2x2 matrix M = sum over tokens of gz h^T (rows: gz, columns: h):
//     gr1_i = M_ii    gr2_i = -M_ij    gr1_j = M_jj    gr2_j = M_ji
template <class V>
struct PairMoments {
  V ii, ij, ji, jj;

  ROAD_INLINE void add(const V& gi, const V& gj, const V& hi, const V& hj) {
    ii += gi * hi;
    ij += gi * hj;
    ji += gj * hi;
    jj += gj * hj;
  }

  // Turns the moments of z into those of h = R^-1 z.  The inverse is linear, so it may be applied once to the sums
  // instead of once to every token: a backward from the output costs what a backward from the input does.
  ROAD_INLINE void from_output(const V& r1i, const V& r1j, const V& r2i, const V& r2j) {
    const V det = r1i * r1j + r2i * r2j;
    const V a = ii, b = ij, c = ji, d = jj;
    ii = (r1j * a + r2i * b) / det;
    ij = (r1i * b - r2j * a) / det;
    ji = (r1j * c + r2i * d) / det;
    jj = (r1i * d - r2j * c) / det;
  }
};

// When both rows of a pair share (r1, r2), two of those sums suffice: gr1 = M_ii + M_jj, gr2 = M_ji - M_ij.
template <class V>
struct SharedMoments {
  V dot, cross;

  ROAD_INLINE void add(const V& gi, const V& gj, const V& hi, const V& hj) {
    dot += gi * hi + gj * hj;
    cross += gj * hi - gi * hj;
  }

  ROAD_INLINE void from_output(const V& r1, const V& r2) {
    const V det = r1 * r1 + r2 * r2;
    const V a = dot, b = cross;
    dot = (r1 * a - r2 * b) / det;
    cross = (r1 * b + r2 * a) / det;
  }
};

// From the gradients of r1 = alpha cos(theta) and r2 = alpha sin(theta) to those of theta and alpha.  Where r1 and r2
// come from different parameters (road_4), each has the other's gradient at 0.
template <class V>
struct AngleGradients {
  V theta, alpha;
};
template <class V>
ROAD_INLINE AngleGradients<V> angle_gradients(const V& alpha, const V& sin, const V& cos, const V& gr1, const V& gr2) {
  return {alpha * (gr2 * cos - gr1 * sin), gr1 * cos + gr2 * sin};
}

}  // namespace road
