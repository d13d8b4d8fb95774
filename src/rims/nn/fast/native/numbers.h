/* Vectors of numbers, and the functions of LSTMs and GRUs on them. */

typedef REAL NAME(vec) __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
typedef BITS NAME(bits) __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
#undef VEC
#undef LANES
#define VEC NAME(vec)
#define LANES ((int64_t)(BYTES / sizeof(REAL)))

INLINE VEC NAME(all)(REAL x) { return x - (VEC){0}; }

/* The first n numbers from p; the other lanes are zero. */
INLINE VEC NAME(load)(const REAL *p, int64_t n) {
  if (n >= LANES) return *(const VEC *)p;
  VEC x = {0};
  for (int64_t i = 0; i < n; i++) x[i] = p[i];
  return x;
}

INLINE void NAME(store)(REAL *p, VEC x, int64_t n) {
  if (n >= LANES) {
    *(VEC *)p = x;
    return;
  }
  for (int64_t i = 0; i < n; i++) p[i] = x[i];
}

INLINE VEC NAME(either)(NAME(bits) mask, VEC x, VEC y) {
  return (VEC)((mask & (NAME(bits))x) | (~mask & (NAME(bits))y));
}

/* exp(x) to the last bits: 2^n from the exponent's bits, the rest by its Taylor series. NaN stays NaN. */
INLINE VEC NAME(exponential)(VEC x) {
  x = NAME(either)(x < NAME(all)(LOWEST), NAME(all)(LOWEST), x);
  x = NAME(either)(x > NAME(all)(HIGHEST), NAME(all)(HIGHEST), x);
  VEC shifted = x * (REAL)1.44269504088896340736 + MAGIC;
  VEC n = shifted - MAGIC;
  VEC rest = x - n * LN2_HIGH - n * LN2_LOW;
  static const REAL inverse_factorial[] = {1.0,           1.0,           1.0 / 2,         1.0 / 6,        1.0 / 24,
                                           1.0 / 120,     1.0 / 720,     1.0 / 5040,      1.0 / 40320,    1.0 / 362880,
                                           1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
  VEC sum = NAME(all)(inverse_factorial[TERMS]);
#pragma GCC unroll 16
  for (int i = TERMS - 1; i >= 0; i--) sum = sum * rest + inverse_factorial[i];
  return sum * (VEC)(((NAME(bits))shifted << MANTISSA) + ONE_BITS);
}

INLINE VEC NAME(sigmoid)(VEC x) { return 1 / (1 + NAME(exponential)(-x)); }
INLINE VEC NAME(tangent)(VEC x) { return 1 - 2 / (1 + NAME(exponential)(2 * x)); } /* hyperbolic */

INLINE REAL NAME(dot)(const REAL *x, const REAL *y, int64_t n) {
  VEC sum = {0};
  REAL total = 0;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) sum += *(const VEC *)(x + i) * *(const VEC *)(y + i);
  for (; i < n; i++) total += x[i] * y[i];
  for (int64_t lane = 0; lane < LANES; lane++) total += sum[lane];
  return total;
}

/* y += scale * x */
INLINE void NAME(add_scaled)(REAL *y, REAL scale, const REAL *x, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) *(VEC *)(y + i) += NAME(all)(scale) * *(const VEC *)(x + i);
  for (; i < n; i++) y[i] += scale * x[i];
}

/* x *= scale where kept, 0 elsewhere: dropout. */
INLINE void NAME(drop)(REAL *x, const uint8_t *kept, REAL scale, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = kept[i] ? x[i] * scale : 0;
}
