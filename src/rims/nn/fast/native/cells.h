/* The dynamics of one RIM of one batch element, D units, and the attention on the other RIMs. */

/* sums [4D] become the gates; c in place, h written. */
static void NAME(lstm)(int64_t D, REAL *sums, REAL *c, REAL *h) {
  for (int64_t d = 0; d < D; d += LANES) {
    int64_t n = D - d;
    VEC i = NAME(sigmoid)(NAME(load)(sums + d, n)), f = NAME(sigmoid)(NAME(load)(sums + D + d, n));
    VEC g = NAME(tangent)(NAME(load)(sums + 2 * D + d, n)), o = NAME(sigmoid)(NAME(load)(sums + 3 * D + d, n));
    VEC now = f * NAME(load)(c + d, n) + i * g;
    NAME(store)(sums + d, i, n), NAME(store)(sums + D + d, f, n);
    NAME(store)(sums + 2 * D + d, g, n), NAME(store)(sums + 3 * D + d, o, n);
    NAME(store)(c + d, now, n);
    NAME(store)(h + d, o * NAME(tangent)(now), n);
  }
}

/* From the gradients of the new h and c to those of the sums and, in place, of the old c. */
static void NAME(lstm_backward)(int64_t D, const REAL *gates, const REAL *c, const REAL *dh, REAL *dc, REAL *dsums) {
  for (int64_t d = 0; d < D; d += LANES) {
    int64_t n = D - d;
    VEC i = NAME(load)(gates + d, n), f = NAME(load)(gates + D + d, n);
    VEC g = NAME(load)(gates + 2 * D + d, n), o = NAME(load)(gates + 3 * D + d, n);
    VEC before = NAME(load)(c + d, n), squashed = NAME(tangent)(f * before + i * g), dy = NAME(load)(dh + d, n);
    VEC d_now = NAME(load)(dc + d, n) + dy * o * (1 - squashed * squashed);
    NAME(store)(dsums + d, d_now * g * i * (1 - i), n);
    NAME(store)(dsums + D + d, d_now * before * f * (1 - f), n);
    NAME(store)(dsums + 2 * D + d, d_now * i * (1 - g * g), n);
    NAME(store)(dsums + 3 * D + d, dy * squashed * o * (1 - o), n);
    NAME(store)(dc + d, d_now * f, n);
  }
}

/* sums [3D], of the input, become the gates r, z and n; h is written from `before`. */
static void NAME(gru)(int64_t D, REAL *sums, const REAL *from_state, const REAL *before, REAL *h) {
  for (int64_t d = 0; d < D; d += LANES) {
    int64_t n = D - d;
    VEC r = NAME(sigmoid)(NAME(load)(sums + d, n) + NAME(load)(from_state + d, n));
    VEC z = NAME(sigmoid)(NAME(load)(sums + D + d, n) + NAME(load)(from_state + D + d, n));
    VEC new = NAME(tangent)(NAME(load)(sums + 2 * D + d, n) + r * NAME(load)(from_state + 2 * D + d, n));
    NAME(store)(sums + d, r, n), NAME(store)(sums + D + d, z, n), NAME(store)(sums + 2 * D + d, new, n);
    NAME(store)(h + d, (1 - z) * new + z * NAME(load)(before + d, n), n);
  }
}

/* From the gradients of the new h, in place to what goes straight to the old h, and of 1 - z (or none) to those
   of both sums; n_state [D]: the state's part of the new gate. */
static void NAME(gru_backward)(int64_t D, const REAL *gates, const REAL *n_state, const REAL *before, REAL *dh,
                               const REAL *dwrite, REAL *dinput, REAL *dstate) {
  for (int64_t d = 0; d < D; d += LANES) {
    int64_t n = D - d;
    VEC r = NAME(load)(gates + d, n), z = NAME(load)(gates + D + d, n), new = NAME(load)(gates + 2 * D + d, n);
    VEC dy = NAME(load)(dh + d, n), dz = dy * (NAME(load)(before + d, n) - new);
    if (dwrite) dz -= NAME(load)(dwrite + d, n);
    dz *= z * (1 - z);
    VEC dnew = dy * (1 - z) * (1 - new * new), dr = dnew * NAME(load)(n_state + d, n) * r * (1 - r);
    NAME(store)(dinput + d, dr, n), NAME(store)(dinput + D + d, dz, n), NAME(store)(dinput + 2 * D + d, dnew, n);
    NAME(store)(dstate + d, dr, n), NAME(store)(dstate + D + d, dz, n), NAME(store)(dstate + 2 * D + d, dnew * r, n);
    NAME(store)(dh + d, dy * z, n);
  }
}

/* softmax of scores over `count` RIMs less those removed, in place */
static void NAME(softmax)(int64_t count, REAL *scores, const uint8_t *removed) {
  REAL most = -INFINITY, total = 0;
  for (int64_t k = 0; k < count; k++)
    if (!(removed && removed[k]) && !(scores[k] <= most)) most = scores[k]; /* NaN is kept */
  for (int64_t k = 0; k < count; k += LANES)
    NAME(store)(scores + k, NAME(exponential)(NAME(load)(scores + k, count - k) - most), count - k);
  for (int64_t k = 0; k < count; k++) {
    if (removed && removed[k]) scores[k] = 0;
    total += scores[k];
  }
  for (int64_t k = 0; k < count; k++) scores[k] /= total;
}

/* What one RIM hears of all of a batch element, head by head: query [heads * E]; keys and values of the RIMs in
   `told` [count, heads * (E + V)], keys first; weights [heads, count] and heard [heads * V] are written. */
static void NAME(listen)(int64_t heads, int64_t E, int64_t V, int64_t count, const REAL *query, const REAL *told,
                         const uint8_t *removed, REAL *weights, REAL *heard) {
  const int64_t width = heads * (E + V);
  const REAL scale = 1 / (REAL)sqrt((double)E);
  memset(heard, 0, heads * V * sizeof(REAL));
  for (int64_t head = 0; head < heads; head++, weights += count) {
    for (int64_t k = 0; k < count; k++)
      weights[k] = NAME(dot)(query + head * E, told + k * width + head * E, E) * scale;
    NAME(softmax)(count, weights, removed);
    for (int64_t k = 0; k < count; k++)
      NAME(add_scaled)(heard + head * V, weights[k], told + k * width + heads * E + head * V, V);
  }
}

/* From the gradient of heard, and of the weights themselves [heads] `step` apart (or none), to that of the query, written,
   and of keys and values, added to d_told; `space` for `count` numbers. */
static void NAME(listen_backward)(int64_t heads, int64_t E, int64_t V, int64_t count, const REAL *query, const REAL *told,
                                  const REAL *weights, const REAL *d_heard, const REAL *d_weights, int64_t step,
                                  REAL *d_query, REAL *d_told, REAL *space) {
  const int64_t width = heads * (E + V);
  const REAL scale = 1 / (REAL)sqrt((double)E);
  memset(d_query, 0, heads * E * sizeof(REAL));
  for (int64_t head = 0; head < heads; head++, weights += count) {
    REAL total = 0;
    for (int64_t k = 0; k < count; k++) {
      const int64_t value = k * width + heads * E + head * V;
      space[k] = NAME(dot)(d_heard + head * V, told + value, V) + (d_weights ? d_weights[head * step + k] : 0);
      total += weights[k] * space[k];
      NAME(add_scaled)(d_told + value, weights[k], d_heard + head * V, V);
    }
    for (int64_t k = 0; k < count; k++) {
      const int64_t key = k * width + head * E;
      const REAL d_score = weights[k] * (space[k] - total) * scale;
      NAME(add_scaled)(d_query + head * E, d_score, told + key, E);
      NAME(add_scaled)(d_told + key, d_score, query + head * E, E);
    }
  }
}
