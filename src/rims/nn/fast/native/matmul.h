/* Matrix products of rows that lie anywhere, with weights laid out in panels.

   A panel holds PANEL columns of a weight, input by input, so that a product reads it in one run; what a tile
   of a few rows sums up stays in registers. A row's sums are formed in the same order whatever rows stand
   beside it. */

#undef PANEL
#define PANEL (2 * LANES)

EXPORT int64_t NAME(panel_columns)(void) { return PANEL; }

/* Numbers that a weight [in, out] takes in panels. */
INLINE int64_t NAME(panels_size)(int64_t in, int64_t out) { return in * ((out + PANEL - 1) / PANEL) * PANEL; }

/* y[i][column..column + columns) = (add ? y : bias or 0) + sum over j of left[j * stride + i] * right[j * step ..], which is
   read up to PANEL columns */
INLINE void NAME(tile_of)(const int rows, int64_t in, const REAL *left, int64_t stride, const REAL *right, int64_t step,
                          REAL *const *y, int64_t column, int64_t columns, const REAL *bias, int add) {
  VEC sums[TILE_ROWS][2];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = (VEC){0};
  for (int64_t j = 0; j < in; j++, left += stride, right += step) {
    VEC low = *(const VEC *)right, high = *(const VEC *)(right + LANES);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      VEC x = NAME(all)(left[i]);
      sums[i][0] += x * low;
      sums[i][1] += x * high;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) {
    REAL *out = y[i] + column;
    const REAL *start = add ? out : bias ? bias + column : 0;
    if (columns == PANEL) {
      if (start) sums[i][0] += *(const VEC *)start, sums[i][1] += *(const VEC *)(start + LANES);
      *(VEC *)out = sums[i][0], *(VEC *)(out + LANES) = sums[i][1];
    } else {
      const REAL *sum = (const REAL *)sums[i];
      for (int64_t c = 0; c < columns; c++) out[c] = start ? start[c] + sum[c] : sum[c];
    }
  }
}

static void NAME(tile)(int rows, int64_t in, const REAL *left, int64_t stride, const REAL *right, int64_t step,
                       REAL *const *y, int64_t column, int64_t columns, const REAL *bias, int add) {
  switch (rows) { /* a loop of known length for each */
#define CASE(n) \
  case n: NAME(tile_of)(n, in, left, stride, right, step, y, column, columns, bias, add); break;
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE_ROWS > 6
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
  }
}

#define BLOCK (16 * TILE_ROWS) /* rows whose inputs are laid out at once */
#define DEPTH 512              /* inputs at a time */

/* y[r] = bias + x[r] @ weight, or += with `add`, for n rows; `weight` [in, out] in panels, `space` for BLOCK * DEPTH
   numbers. */
static void NAME(product)(REAL *space, int64_t n, REAL *const *x, int64_t in, const REAL *weight, int64_t out, REAL *const *y,
                          const REAL *bias, int add) {
  for (int64_t begin = 0; begin < n; begin += BLOCK, x += BLOCK, y += BLOCK) {
    const int64_t rows = at_most(n - begin, BLOCK), tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int64_t first = 0; first < in; first += DEPTH) {
      const int64_t depth = at_most(in - first, DEPTH);
      for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t from = rows * tile / tiles, count = rows * (tile + 1) / tiles - from;
        REAL *left = space + from * depth;
        for (int64_t i = 0; i < count; i++)
          for (int64_t j = 0; j < depth; j++) left[j * count + i] = x[from + i][first + j];
      }
      const REAL *panel = weight + first * PANEL;
      for (int64_t column = 0; column < out; column += PANEL, panel += in * PANEL)
        for (int64_t tile = 0; tile < tiles; tile++) {
          const int64_t from = rows * tile / tiles, count = rows * (tile + 1) / tiles - from;
          NAME(tile)((int)count, depth, space + from * depth, count, panel, PANEL, y + from, column, at_most(out - column, PANEL),
                     bias, add || first);
        }
    }
  }
}

/* The same for a few rows and a weight as it lies, [in, out]: read once, in a few long runs. */
static void NAME(stream)(int64_t n, REAL *const *x, int64_t in, const REAL *weight, int64_t out, REAL *const *y,
                         const REAL *bias, int add) {
  if (!add)
    for (int64_t r = 0; r < n; r++)
      for (int64_t c = 0; c < out; c++) y[r][c] = bias ? bias[c] : 0;
  int64_t j = 0;
  for (; j + 4 <= in; j += 4) {
    const REAL *w0 = weight + j * out, *w1 = w0 + out, *w2 = w1 + out, *w3 = w2 + out;
    for (int64_t r = 0; r < n; r++) {
      const REAL x0 = x[r][j], x1 = x[r][j + 1], x2 = x[r][j + 2], x3 = x[r][j + 3];
      REAL *sum = y[r];
#pragma GCC ivdep
      for (int64_t c = 0; c < out; c++) sum[c] += x0 * w0[c] + x1 * w1[c] + x2 * w2[c] + x3 * w3[c];
    }
  }
  for (; j < in; j++)
    for (int64_t r = 0; r < n; r++) NAME(add_scaled)(y[r], x[r][j], weight + j * out, out);
}

/* Rows of what went into a product and of the gradient of what came out, collected until there are enough to
   add their part of the weight's gradient by one product. */
typedef struct {
  int64_t in, out, count, most;
  REAL *left, *right; /* [most, in], [most, out] and room for a panel */
  REAL **gradient;    /* its rows, one for each input */
} NAME(Pile);

static void NAME(flush)(NAME(Pile) * pile) {
  if (!pile->count) return;
  for (int64_t column = 0; column < pile->out; column += PANEL)
    for (int64_t row = 0; row < pile->in; row += TILE_ROWS)
      NAME(tile)((int)at_most(pile->in - row, TILE_ROWS), pile->count, pile->left + row, pile->in, pile->right + column, pile->out,
                 pile->gradient + row, column, at_most(pile->out - column, PANEL), 0, 1);
  pile->count = 0;
}

/* One row: x = [first, second], dy. */
static void NAME(collect)(NAME(Pile) * pile, const REAL *first, int64_t size, const REAL *second, const REAL *dy) {
  REAL *x = pile->left + pile->count * pile->in;
  memcpy(x, first, size * sizeof(REAL));
  if (size < pile->in) memcpy(x + size, second, (pile->in - size) * sizeof(REAL));
  memcpy(pile->right + pile->count * pile->out, dy, pile->out * sizeof(REAL));
  if (++pile->count == pile->most) NAME(flush)(pile);
}
