/* Backwards: through time, the steps in reverse. dh and dc hold the gradients of the state after a step, and then, in
   place, of that before it. Weights come transposed. */

/* The piles of one RIM's weights, and of the projection that all share. */
typedef struct {
  NAME(Pile) dynamics, recurrent, ask, told, query;
} NAME(Piles);

static void NAME(pile)(NAME(Pile) * pile, char **at, int64_t *total, int64_t in, int64_t out, int64_t most) {
  pile->in = in, pile->out = out, pile->most = most, pile->count = 0;
  pile->left = NAME(take)(at, total, most * in * sizeof(REAL));
  pile->right = NAME(take)(at, total, (most * out + PANEL) * sizeof(REAL));
  pile->gradient = NAME(take)(at, total, in * sizeof(REAL *));
}

/* The rows of a gradient [K, in, out], RIM k's, from the pile's row `from` on. */
static void NAME(aim)(NAME(Pile) * pile, int64_t from, void *gradient, int64_t k, int64_t in) {
  for (int64_t i = 0; i < in; i++) pile->gradient[from + i] = (REAL *)gradient + (k * in + i) * pile->out;
}

typedef struct {
  REAL *d_out, *d_heard, *d_query, *d_told, *d_write, *d_sums, *d_state, *d_read, *d_asks, *read, *scores;
  NAME(Piles) * rims;
  NAME(Pile) out;
} NAME(Gradients);

/* Through what the active RIMs heard: to the gradients of `fresh` and of the states of RIMs that were heard. */
static void NAME(communicate_backward)(const Sequence *s, NAME(Work) * w, NAME(Gradients) * g, int64_t t, int64_t row) {
  const int64_t K = s->rims, A = s->active_rims, D = s->rim_size, B = s->batch;
  int64_t n = 0;
  for (int64_t p = 0; p < w->num_present; p++)
    for (int64_t a = 0; a < A; a++, n++) {
      const int64_t b = w->present[p], slot = (row + b) * A + a, k = ((const int32_t *)s->active)[slot];
      const REAL *dh = ROW(dh, b, K * D) + k * D;
      REAL *d_out = g->d_out + n * D;
      memcpy(d_out, dh, D * sizeof(REAL));
      const REAL *squashed = s->squash ? ROW(squashed, slot, D) : 0;
      if (s->gru) {
        const REAL *z = ROW(sums, slot, w->gates) + D;
        REAL *d_write = g->d_write + ((b - s->first) * A + a) * D;
        for (int64_t d = 0; d < D; d++) {
          d_write[d] = dh[d] * squashed[d];
          d_out[d] *= 1 - z[d];
        }
      }
      if (squashed)
        for (int64_t d = 0; d < D; d++) d_out[d] *= 1 - squashed[d] * squashed[d];
      if (s->comm_keep) NAME(drop)(d_out, (const uint8_t *)s->comm_keep + ((t * B + b) * K + k) * D, s->comm_scale, D);
      NAME(collect)(&g->out, d_out, D, 0, ROW(heard, slot, w->heard));
      NAME(add_scaled)((REAL *)s->d_out_bias, 1, d_out, D);
      w->x[n] = d_out;
      w->y[n] = g->d_heard + n * w->heard;
    }
  NAME(multiply)(s, w, n, D, s->out_weight, 0, w->heard, w->y, 0, 0);

  memset(g->d_told, 0, (s->last - s->first) * K * w->told * sizeof(REAL));
  n = 0;
  for (int64_t p = 0; p < w->num_present; p++)
    for (int64_t a = 0; a < A; a++, n++) {
      const int64_t b = w->present[p], slot = (row + b) * A + a, k = ((const int32_t *)s->active)[slot];
      NAME(listen_backward)(s->comm_heads, s->comm_key_size, s->comm_value_size, K, ROW(queries, slot, w->queries),
                            ROW(told, (row + b) * K, w->told), ROW(weights, slot, s->comm_heads * K), g->d_heard + n * w->heard,
                            s->communication_grad ? ROW(communication_grad, (row + b) * s->comm_heads * K + k, K) : 0, K * K,
                            g->d_query + ((b - s->first) * A + a) * w->queries, g->d_told + (b - s->first) * K * w->told,
                            g->scores);
    }
  for (int64_t k = 0; k < K; k++) {
    for (int64_t p = 0; p < w->num_present; p++) {
      const int64_t b = w->present[p];
      w->x[p] = g->d_told + ((b - s->first) * K + k) * w->told;
      w->y[p] = ROW(dh, b, K * D) + k * D;
      NAME(collect)(&g->rims[k].told, NAME(told_state)(s, w, row, b, k), D, 0, w->x[p]);
    }
    NAME(multiply)(s, w, w->num_present, w->told, s->told_weight, k, D, w->y, 0, 1);
    const int64_t count = w->starts[k + 1] - w->starts[k], *slots = w->slots + w->starts[k];
    for (int64_t j = 0; j < count; j++) {
      w->x[j] = g->d_query + (slots[j] - s->first * A) * w->queries;
      w->y[j] = ROW(dh, slots[j] / A, K * D) + k * D;
      NAME(collect)(&g->rims[k].query, ROW(fresh, row * A + slots[j], D), D, 0, w->x[j]);
    }
    NAME(multiply)(s, w, count, w->queries, s->query_weight, k, D, w->y, 0, 1);
  }
}

/* What a trace's gradient says of the attention of RIM k on the input, the null slot's taken off. */
INLINE REAL NAME(traced)(const Sequence *s, int64_t row, int64_t head, int64_t k) {
  if (!s->attention_grad) return 0;
  const REAL *pair = ROW(attention_grad, (row * s->heads + head) * s->rims + k, 2);
  return pair[1] - pair[0];
}

/* The same of RIM k where it is not active: nothing else depends on that. */
static void NAME(traced_backward)(const Sequence *s, NAME(Work) * w, NAME(Gradients) * g, int64_t t, int64_t row, int64_t k) {
  const int64_t K = s->rims, D = s->rim_size, H = s->heads, E = s->key_size;
  int64_t n = 0;
  for (int64_t p = 0; p < w->num_present; p++) {
    const int64_t b = w->present[p], from = NAME(source)(s, t, b, k);
    if (w->place[(b - s->first) * K + k] >= 0) continue;
    const REAL *asks = ROW(asks, (row + b) * K + k, w->keys), *keys = ROW(keys, from, w->keys);
    REAL *d_asks = g->d_asks + n * w->keys, *d_keys = ROW(d_keys, from, w->keys);
    for (int64_t head = 0; head < H; head++) {
      const REAL weight = ROW(all_attention, (row + b) * K + k, H)[head];
      const REAL d_score = NAME(traced)(s, row + b, head, k) * weight * (1 - weight);
      for (int64_t e = head * E; e < (head + 1) * E; e++) {
        d_asks[e] = d_score * keys[e];
        d_keys[e] += d_score * asks[e];
      }
    }
    NAME(collect)(&g->rims[k].ask, w->before[b - s->first] + k * D, D, 0, d_asks);
    w->x[n] = d_asks;
    w->y[n++] = ROW(dh, b, K * D) + k * D;
  }
  NAME(multiply)(s, w, n, w->keys, s->ask_weight, k, D, w->y, 0, 1);
}

/* Through RIM k's dynamics and what it read. */
static void NAME(move_backward)(const Sequence *s, NAME(Work) * w, NAME(Gradients) * g, int64_t t, int64_t row, int64_t k) {
  const int64_t K = s->rims, A = s->active_rims, D = s->rim_size, H = s->heads, V = s->value_size, E = s->key_size;
  const int64_t n = w->starts[k + 1] - w->starts[k], *slots = w->slots + w->starts[k];
  for (int64_t j = 0; j < n; j++) {
    const int64_t b = slots[j] / A, slot = row * A + slots[j];
    const REAL *before = w->before[b - s->first] + k * D, *sums = ROW(sums, slot, w->gates), *aside = ROW(aside, slot, D);
    REAL *dh = ROW(dh, b, K * D) + k * D, *d_sums = g->d_sums + j * w->gates, *d_state = d_sums;
    if (s->gru) {
      d_state = g->d_state + j * w->gates;
      const REAL *d_write = s->communicate ? g->d_write + (slots[j] - s->first * A) * D : 0;
      NAME(gru_backward)(D, sums, aside, before, dh, d_write, d_sums, d_state);
      if (s->d_hh_bias) NAME(add_scaled)((REAL *)s->d_hh_bias + k * w->gates, 1, d_state, w->gates);
      NAME(collect)(&g->rims[k].recurrent, before, D, 0, d_state);
    } else {
      NAME(lstm_backward)(D, sums, aside, dh, ROW(dc, b, K * D) + k * D, d_sums);
    }
    if (s->d_ih_bias) NAME(add_scaled)((REAL *)s->d_ih_bias + k * w->gates, 1, d_sums, w->gates);
    w->x[j] = d_state;
    w->y[j] = dh;
  }
  NAME(multiply)(s, w, n, w->gates, s->hh_weight, k, D, w->y, 0, s->gru);
  for (int64_t j = 0; j < n; j++) {
    w->x[j] = g->d_sums + j * w->gates;
    w->z[j] = g->d_read + j * w->read;
  }
  NAME(multiply)(s, w, n, w->gates, s->ih_weight, k, w->read, w->z, 0, 0);

  for (int64_t j = 0; j < n; j++) {
    const int64_t b = slots[j] / A, from = NAME(source)(s, t, b, k);
    const uint8_t *kept = s->input_keep ? (const uint8_t *)s->input_keep + ((t * s->batch + b) * K + k) * w->read : 0;
    const REAL *values = ROW(values, from, w->read), *before = w->before[b - s->first] + k * D;
    REAL *d_read = w->z[j], *read = g->read, *d_values = ROW(d_values, from, w->read);
    if (kept) NAME(drop)(d_read, kept, s->input_scale, w->read);
    if (s->attend) {
      const REAL *asks = ROW(asks, (row + b) * K + k, w->keys), *keys = ROW(keys, from, w->keys);
      REAL *d_asks = g->d_asks + j * w->keys, *d_keys = ROW(d_keys, from, w->keys);
      for (int64_t head = 0; head < H; head++) {
        const REAL weight = ROW(attention, row * A + slots[j], H)[head];
        const REAL d_weight = NAME(dot)(d_read + head * V, values + head * V, V) + NAME(traced)(s, row + b, head, k);
        const REAL d_score = d_weight * weight * (1 - weight);
        for (int64_t v = head * V; v < (head + 1) * V; v++) {
          read[v] = weight * values[v];
          d_values[v] += weight * d_read[v];
        }
        for (int64_t e = head * E; e < (head + 1) * E; e++) {
          d_asks[e] = d_score * keys[e];
          d_keys[e] += d_score * asks[e];
        }
      }
      NAME(collect)(&g->rims[k].ask, before, D, 0, d_asks);
    } else {
      memcpy(read, values, w->read * sizeof(REAL));
      NAME(add_scaled)(d_values, 1, d_read, w->read);
    }
    if (kept) NAME(drop)(read, kept, s->input_scale, w->read);
    NAME(collect)(&g->rims[k].dynamics, read, w->read, before, g->d_sums + j * w->gates);
  }
  if (!s->attend) return;
  for (int64_t j = 0; j < n; j++) w->x[j] = g->d_asks + j * w->keys;
  NAME(multiply)(s, w, n, w->keys, s->ask_weight, k, D, w->y, 0, 1);
}

/* 0, or 1 when there is no memory. */
EXPORT int64_t NAME(backward)(const Sequence *s) {
  const int64_t rows = s->last - s->first, K = s->rims, A = s->active_rims, D = s->rim_size, B = s->batch;
  NAME(Work) w;
  NAME(Gradients) g;
  char *memory = 0, *at = 0;
  for (int64_t total = 0;; at = memory) { /* once to count, once to hand out */
    NAME(lay_out)(s, &w, &at, &total);
    g.d_out = NAME(take)(&at, &total, rows * A * D * sizeof(REAL));
    g.d_heard = NAME(take)(&at, &total, rows * A * w.heard * sizeof(REAL));
    g.d_query = NAME(take)(&at, &total, rows * A * w.queries * sizeof(REAL));
    g.d_told = NAME(take)(&at, &total, rows * K * w.told * sizeof(REAL));
    g.d_write = NAME(take)(&at, &total, (s->gru ? rows * A * D : 0) * sizeof(REAL));
    g.d_sums = NAME(take)(&at, &total, rows * w.gates * sizeof(REAL));
    g.d_state = NAME(take)(&at, &total, (s->gru ? rows * w.gates : 0) * sizeof(REAL));
    g.d_read = NAME(take)(&at, &total, rows * w.read * sizeof(REAL));
    g.d_asks = NAME(take)(&at, &total, rows * w.keys * sizeof(REAL));
    g.read = NAME(take)(&at, &total, w.read * sizeof(REAL));
    g.scores = NAME(take)(&at, &total, K * sizeof(REAL));
    g.rims = NAME(take)(&at, &total, K * sizeof(NAME(Piles)));
    NAME(Piles) none, *piles;
    const int64_t most = s->collect;
    for (int64_t k = 0; k < K; k++) {
      piles = memory ? g.rims + k : &none;
      NAME(pile)(&piles->dynamics, &at, &total, w.read + (s->gru ? 0 : D), w.gates, most);
      NAME(pile)(&piles->recurrent, &at, &total, s->gru ? D : 0, w.gates, most);
      NAME(pile)(&piles->ask, &at, &total, s->attend ? D : 0, w.keys, most);
      NAME(pile)(&piles->told, &at, &total, s->communicate ? D : 0, w.told, most);
      NAME(pile)(&piles->query, &at, &total, s->communicate ? D : 0, w.queries, most);
      if (!memory) continue;
      NAME(aim)(&piles->dynamics, 0, s->d_ih, k, w.read);
      NAME(aim)(s->gru ? &piles->recurrent : &piles->dynamics, s->gru ? 0 : w.read, s->d_hh, k, D);
      if (s->attend) NAME(aim)(&piles->ask, 0, s->d_ask, k, D);
      if (s->communicate) NAME(aim)(&piles->told, 0, s->d_told, k, D), NAME(aim)(&piles->query, 0, s->d_query, k, D);
    }
    NAME(pile)(&g.out, &at, &total, s->communicate ? D : 0, w.heard, most);
    if (memory) break;
    if (!(memory = aligned_alloc(64, total))) return 1;
    total = 0;
  }
  if (s->communicate) NAME(aim)(&g.out, 0, s->d_out, 0, D);

  for (int64_t i = s->steps - 1; i >= 0; i--) {
    const int64_t t = s->reverse ? s->steps - 1 - i : i, row = t * B;
    NAME(begin)(s, &w, t, i ? (s->reverse ? t + 1 : t - 1) : -1);
    NAME(sort_rows)(s, &w, (const int32_t *)s->active + row * A);
    if (s->dy)
      NAME(add_scaled)(ROW(dh, s->first, K * D), 1, ROW(dy, row + s->first, K * D), rows * K * D);
    if (s->communicate) NAME(communicate_backward)(s, &w, &g, t, row);
    for (int64_t k = 0; k < K; k++) {
      NAME(move_backward)(s, &w, &g, t, row, k);
      if (s->attend && s->attention_grad) NAME(traced_backward)(s, &w, &g, t, row, k);
    }
    for (int64_t b = s->first; b < s->last; b++)
      if (w.before[b - s->first] == w.zero) {
        memset(ROW(dh, b, K * D), 0, K * D * sizeof(REAL));
        memset(ROW(dc, b, K * D), 0, K * D * sizeof(REAL));
      }
  }
  for (int64_t k = 0; k < K; k++) {
    NAME(Piles) *piles = g.rims + k;
    NAME(flush)(&piles->dynamics), NAME(flush)(&piles->recurrent), NAME(flush)(&piles->ask);
    NAME(flush)(&piles->told), NAME(flush)(&piles->query);
  }
  NAME(flush)(&g.out);
  free(memory);
  return 0;
}
