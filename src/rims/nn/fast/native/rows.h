/* Which rows a step computes, where they lie, and the memory that both passes work in. */

#undef ROW
#define ROW(base, index, width) ((REAL *)s->base + (index) * (width))

typedef struct {
  int64_t keys, read, gates, told, queries, heard; /* widths: H * E, H * V, G * D and so on */
  REAL *zero;                                      /* a state [K * D] of zeros */
  REAL **before;                                   /* [rows]: the state that a batch element starts a step with */
  int64_t *present, num_present;                   /* batch elements that are computed */
  int64_t *slots, *starts;                         /* active rows b * A + a, sorted by RIM; where each RIM's begin [K + 1] */
  int64_t *place;                                  /* [rows * K]: a of an active RIM, or -1 */
  REAL **x, **y, **z;                              /* rows of a product */
  REAL *space;                                     /* of a product */
} NAME(Work);

/* `size` bytes after *at; counts only while *at is null. */
static void *NAME(take)(char **at, int64_t *total, int64_t size) {
  char *here = *at;
  size = (size + 63) / 64 * 64;
  *total += size;
  if (here) *at += size;
  return here;
}

static void NAME(lay_out)(const Sequence *s, NAME(Work) * w, char **at, int64_t *total) {
  const int64_t rows = s->last - s->first, K = s->rims, D = s->rim_size;
  w->keys = s->heads * s->key_size, w->read = s->heads * s->value_size, w->gates = s->gates * D;
  w->queries = s->comm_heads * s->comm_key_size, w->heard = s->comm_heads * s->comm_value_size;
  w->told = w->queries + w->heard;
  int64_t widest = at_least(at_least(w->read, w->gates), at_least(at_least(w->told, w->keys), D));
  w->zero = NAME(take)(at, total, K * D * sizeof(REAL));
  if (w->zero) memset(w->zero, 0, K * D * sizeof(REAL));
  w->before = NAME(take)(at, total, rows * sizeof(REAL *));
  w->present = NAME(take)(at, total, rows * sizeof(int64_t));
  w->slots = NAME(take)(at, total, rows * s->active_rims * sizeof(int64_t));
  w->starts = NAME(take)(at, total, (K + 1) * sizeof(int64_t));
  w->place = NAME(take)(at, total, rows * K * sizeof(int64_t));
  w->x = NAME(take)(at, total, rows * K * sizeof(REAL *));
  w->y = NAME(take)(at, total, rows * K * sizeof(REAL *));
  w->z = NAME(take)(at, total, rows * K * sizeof(REAL *));
  w->space = NAME(take)(at, total, BLOCK * at_most(widest, DEPTH) * sizeof(REAL));
}

/* What step t begins with, and who is there. */
static void NAME(begin)(const Sequence *s, NAME(Work) * w, int64_t t, int64_t previous) {
  const int64_t width = s->rims * s->rim_size;
  w->num_present = 0;
  for (int64_t b = s->first; b < s->last; b++) {
    const int fresh = s->reset && ((const uint8_t *)s->reset)[t * s->batch + b];
    w->before[b - s->first] = fresh ? w->zero : previous < 0 ? ROW(h0, b, width) : ROW(states, previous * s->batch + b, width);
    if (!s->valid || ((const uint8_t *)s->valid)[t * s->batch + b]) w->present[w->num_present++] = b;
  }
}

/* Sorts the active rows of a step by RIM; `active` [B, A] lists each batch element's. */
static void NAME(sort_rows)(const Sequence *s, NAME(Work) * w, const int32_t *active) {
  const int64_t K = s->rims, A = s->active_rims;
  memset(w->starts, 0, (K + 1) * sizeof(int64_t));
  for (int64_t i = 0; i < (s->last - s->first) * K; i++) w->place[i] = -1;
  for (int64_t p = 0; p < w->num_present; p++)
    for (int64_t a = 0; a < A; a++) w->starts[active[w->present[p] * A + a] + 1]++;
  for (int64_t k = 0; k < K; k++) w->starts[k + 1] += w->starts[k];
  for (int64_t p = 0; p < w->num_present; p++)
    for (int64_t a = 0; a < A; a++) {
      const int64_t b = w->present[p], k = active[b * A + a];
      w->slots[w->starts[k]++] = b * A + a;
      w->place[(b - s->first) * K + k] = a;
    }
  for (int64_t k = K; k > 0; k--) w->starts[k] = w->starts[k - 1]; /* filling moved each to the next one's place */
  w->starts[0] = 0;
}

/* y = bias + x @ weight: RIM k's of K weights [in, out]; they lie in panels, or as they are. */
INLINE void NAME(multiply)(const Sequence *s, NAME(Work) * w, int64_t n, int64_t in, const void *weights, int64_t k, int64_t out,
                           REAL **y, const void *biases, int add) {
  const REAL *bias = biases ? (const REAL *)biases + k * out : 0;
  if (s->packed)
    NAME(product)(w->space, n, w->x, in, (const REAL *)weights + k * NAME(panels_size)(in, out), out, y, bias, add);
  else
    NAME(stream)(n, w->x, in, (const REAL *)weights + k * in * out, out, y, bias, add);
}

/* Where RIM k of batch element b finds its input of step t among all. */
INLINE int64_t NAME(source)(const Sequence *s, int64_t t, int64_t b, int64_t k) {
  return s->private_inputs ? (t * s->batch + b) * s->rims + k : t * s->batch + b;
}

/* The state that RIM k is heard with: the one it keeps, or its new one. */
INLINE const REAL *NAME(told_state)(const Sequence *s, NAME(Work) * w, int64_t row, int64_t b, int64_t k) {
  const int64_t D = s->rim_size, a = w->place[(b - s->first) * s->rims + k];
  return a < 0 ? w->before[b - s->first] + k * D : ROW(fresh, (row + b) * s->active_rims + a, D);
}
