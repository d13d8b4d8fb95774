/* A RIM layer's whole sequence, forwards and backwards: the compiled twin of rims/nn/fast/forward.py and
   backward.py, in float32 and float64. Names and shapes are theirs; the structure Sequence, which says what
   every field is, is written by layout.py in front of this file.

   A call owns the batch rows from `first` to `last` and walks through time with them. Rows never touch each
   other, so calls on other rows may run beside it on other threads, and a row's numbers are the same to the
   last bit whatever rows stand beside it. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(x) JOIN(x, SUFFIX)
#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

#ifdef BYTES /* of a vector, and TILE_ROWS: another processor's, in tests */
#elif defined(__AVX512F__)
#define BYTES 64
#define TILE_ROWS 12 /* 24 of 32 registers hold sums */
#elif defined(__AVX__)
#define BYTES 32
#define TILE_ROWS 6 /* 12 of 16 */
#else
#define BYTES 16
#define TILE_ROWS 6
#endif

static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

#define SUFFIX f32
#define REAL float
#define BITS int32_t
#define MANTISSA 23
#define ONE_BITS 0x3f800000
#define MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds to a whole number, in the last bits */
#define LOWEST -87.0f
#define HIGHEST 88.0f
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
#define TERMS 7
#include "templates.h"
#undef SUFFIX
#undef REAL
#undef BITS
#undef MANTISSA
#undef ONE_BITS
#undef MAGIC
#undef LOWEST
#undef HIGHEST
#undef LN2_HIGH
#undef LN2_LOW
#undef TERMS

#define SUFFIX f64
#define REAL double
#define BITS int64_t
#define MANTISSA 52
#define ONE_BITS 0x3ff0000000000000
#define MAGIC 6755399441055744.0 /* 1.5 * 2^52 */
#define LOWEST -708.0
#define HIGHEST 709.0
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10
#define TERMS 13
#include "templates.h"
