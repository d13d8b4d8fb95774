/* Forwards. */

/* What each RIM asks of the input, and which are active. */
static void NAME(choose)(const Sequence *s, NAME(Work) * w, int64_t t, int64_t row, REAL *penalty, REAL *weights) {
  const int64_t K = s->rims, A = s->active_rims, D = s->rim_size, H = s->heads, E = s->key_size;
  const uint8_t *removed = s->disabled;
  for (int64_t k = 0; k < K && s->attend; k++) {
    for (int64_t p = 0; p < w->num_present; p++) {
      const int64_t b = w->present[p];
      w->x[p] = w->before[b - s->first] + k * D;
      w->y[p] = ROW(asks, (row + b) * K + k, w->keys);
    }
    NAME(multiply)(s, w, w->num_present, D, s->ask_weight, k, w->keys, w->y, 0, 0);
  }
  for (int64_t p = 0; p < w->num_present; p++) {
    const int64_t b = w->present[p];
    int32_t *active = (int32_t *)s->active + (row + b) * A;
    for (int64_t k = 0; k < K && s->attend; k++) {
      const REAL *asks = ROW(asks, (row + b) * K + k, w->keys), *keys = ROW(keys, NAME(source)(s, t, b, k), w->keys);
      REAL on_null = 0;
      for (int64_t head = 0; head < H; head++) {
        const VEC score = NAME(all)(NAME(dot)(asks + head * E, keys + head * E, E));
        weights[k * H + head] = NAME(sigmoid)(score)[0];
        on_null += NAME(sigmoid)(-score)[0];
      }
      if (s->all_attention) memcpy(ROW(all_attention, (row + b) * K + k, H), weights + k * H, H * sizeof(REAL));
      penalty[k] = isnan(on_null) ? INFINITY : on_null / H;
    }
    for (int64_t k = 0, a = 0; k < K; k++) {
      if (removed && removed[k]) continue;
      int64_t ahead = 0;
      for (int64_t other = 0; other < K; other++)
        if (!(removed && removed[other]))
          ahead += s->attend ? penalty[other] < penalty[k] || (penalty[other] == penalty[k] && other < k) : other < k;
      if (ahead >= A) continue;
      for (int64_t head = 0; head < H && s->attend; head++) ROW(attention, (row + b) * A + a, H)[head] = weights[k * H + head];
      active[a++] = (int32_t)k;
    }
  }
}

/* The active RIMs' own LSTMs and GRUs: `fresh` from `before`, and c in place. `read` and `from_state`: space for a
   step's rows. */
static void NAME(move)(const Sequence *s, NAME(Work) * w, int64_t t, int64_t row, REAL *read, REAL *from_state) {
  const int64_t K = s->rims, A = s->active_rims, D = s->rim_size, H = s->heads, V = s->value_size;
  for (int64_t k = 0; k < K; k++) {
    const int64_t n = w->starts[k + 1] - w->starts[k], *slots = w->slots + w->starts[k];
    for (int64_t j = 0; j < n; j++) {
      const int64_t b = slots[j] / A;
      const REAL *values = ROW(values, NAME(source)(s, t, b, k), w->read);
      REAL *into = read + j * w->read;
      if (s->attend)
        for (int64_t head = 0; head < H; head++) {
          const REAL weight = ROW(attention, row * A + slots[j], H)[head];
          for (int64_t v = head * V; v < (head + 1) * V; v++) into[v] = weight * values[v];
        }
      else
        memcpy(into, values, w->read * sizeof(REAL));
      if (s->input_keep)
        NAME(drop)(into, (const uint8_t *)s->input_keep + ((t * s->batch + b) * K + k) * w->read, s->input_scale, w->read);
      w->x[j] = into;
      w->y[j] = ROW(sums, row * A + slots[j], w->gates);
      w->z[j] = s->gru ? from_state + j * w->gates : w->y[j];
    }
    NAME(multiply)(s, w, n, w->read, s->ih_weight, k, w->gates, w->y, s->ih_bias, 0);
    for (int64_t j = 0; j < n; j++) w->x[j] = w->before[slots[j] / A - s->first] + k * D;
    NAME(multiply)(s, w, n, D, s->hh_weight, k, w->gates, w->z, s->gru ? s->hh_bias : 0, !s->gru);
    for (int64_t j = 0; j < n; j++) {
      const int64_t slot = row * A + slots[j];
      if (s->gru) {
        NAME(gru)(D, w->y[j], w->z[j], w->x[j], ROW(fresh, slot, D));
        memcpy(ROW(aside, slot, D), w->z[j] + 2 * D, D * sizeof(REAL));
      } else {
        REAL *c = ROW(c, slots[j] / A, K * D) + k * D;
        memcpy(ROW(aside, slot, D), c, D * sizeof(REAL));
        NAME(lstm)(D, w->y[j], c, ROW(fresh, slot, D));
      }
    }
  }
}

/* What the active RIMs hear of all, added to what they are. `out` [rows * A, D]: space. */
static void NAME(communicate)(const Sequence *s, NAME(Work) * w, int64_t t, int64_t row, REAL *out) {
  const int64_t K = s->rims, A = s->active_rims, D = s->rim_size;
  for (int64_t k = 0; k < K; k++) {
    for (int64_t p = 0; p < w->num_present; p++) {
      const int64_t b = w->present[p];
      w->x[p] = (REAL *)NAME(told_state)(s, w, row, b, k);
      w->y[p] = ROW(told, (row + b) * K + k, w->told);
      w->z[p] = w->y[p] + w->queries;
    }
    if (s->packed) {
      NAME(multiply)(s, w, w->num_present, D, s->told_weight, k, w->told, w->y, 0, 0);
    } else {
      NAME(multiply)(s, w, w->num_present, D, s->told_weight, k, w->queries, w->y, 0, 0);
      NAME(multiply)(s, w, w->num_present, D, s->value_weight, k, w->heard, w->z, 0, 0);
    }
    const int64_t n = w->starts[k + 1] - w->starts[k], *slots = w->slots + w->starts[k];
    for (int64_t j = 0; j < n; j++) {
      w->x[j] = ROW(fresh, row * A + slots[j], D);
      w->y[j] = ROW(queries, row * A + slots[j], w->queries);
    }
    NAME(multiply)(s, w, n, D, s->query_weight, k, w->queries, w->y, 0, 0);
  }
  int64_t n = 0;
  for (int64_t p = 0; p < w->num_present; p++)
    for (int64_t a = 0; a < A; a++, n++) {
      const int64_t b = w->present[p], slot = (row + b) * A + a;
      NAME(listen)(s->comm_heads, s->comm_key_size, s->comm_value_size, K, ROW(queries, slot, w->queries),
                   ROW(told, (row + b) * K, w->told), s->disabled, ROW(weights, slot, s->comm_heads * K),
                   ROW(heard, slot, w->heard));
      w->x[n] = ROW(heard, slot, w->heard);
      w->y[n] = out + n * D;
    }
  NAME(multiply)(s, w, n, w->heard, s->out_weight, 0, D, w->y, s->out_bias, 0);
  n = 0;
  for (int64_t p = 0; p < w->num_present; p++)
    for (int64_t a = 0; a < A; a++, n++, out += D) {
      const int64_t b = w->present[p], slot = (row + b) * A + a, k = ((const int32_t *)s->active)[slot];
      if (s->comm_keep)
        NAME(drop)(out, (const uint8_t *)s->comm_keep + ((t * s->batch + b) * K + k) * D, s->comm_scale, D);
      if (s->squash) {
        REAL *squashed = ROW(squashed, slot, D);
        for (int64_t d = 0; d < D; d += LANES) {
          const VEC now = NAME(tangent)(NAME(load)(out + d, D - d));
          NAME(store)(squashed + d, now, D - d);
          NAME(store)(out + d, now, D - d);
        }
      }
      if (s->gru) { /* writes through its update gate */
        const REAL *z = ROW(sums, slot, w->gates) + D;
        for (int64_t d = 0; d < D; d++) out[d] *= 1 - z[d];
      }
      REAL *state = ROW(states, t * s->batch + b, K * D) + k * D;
      const REAL *fresh = ROW(fresh, slot, D);
      for (int64_t d = 0; d < D; d++) state[d] = fresh[d] + out[d];
    }
}

/* Keys and values of a single step, of weights as they lie. */
static void NAME(project)(const Sequence *s, NAME(Work) * w) {
  const REAL scale = 1 / (REAL)sqrt((double)s->key_size);
  const int64_t groups = s->private_inputs ? s->rims : 1, from = s->first * groups, n = (s->last - s->first) * groups;
  for (int64_t i = 0; i < n; i++) {
    w->x[i] = ROW(x, from + i, s->input_size);
    w->y[i] = ROW(keys, from + i, w->keys);
    w->z[i] = ROW(values, from + i, w->read);
  }
  NAME(stream)(n, w->x, s->input_size, s->key_weight, w->keys, w->y, 0, 0);
  NAME(stream)(n, w->x, s->input_size, s->read_weight, w->read, w->z, 0, 0);
  for (int64_t i = 0; i < n * w->keys; i++) ROW(keys, from, w->keys)[i] *= scale;
}

/* 0, or 1 when there is no memory. */
EXPORT int64_t NAME(forward)(const Sequence *s) {
  const int64_t rows = s->last - s->first, K = s->rims, A = s->active_rims, D = s->rim_size, B = s->batch;
  NAME(Work) w;
  REAL *penalty, *weights, *read, *from_state, *out;
  char *memory = 0, *at = 0;
  for (int64_t total = 0;; at = memory) { /* once to count, once to hand out */
    NAME(lay_out)(s, &w, &at, &total);
    penalty = NAME(take)(&at, &total, K * sizeof(REAL));
    weights = NAME(take)(&at, &total, K * s->heads * sizeof(REAL));
    read = NAME(take)(&at, &total, rows * w.read * sizeof(REAL));
    from_state = NAME(take)(&at, &total, (s->gru ? rows * w.gates : 0) * sizeof(REAL));
    out = NAME(take)(&at, &total, rows * A * D * sizeof(REAL));
    if (memory) break;
    if (!(memory = aligned_alloc(64, total))) return 1;
    total = 0;
  }

  if (s->x) NAME(project)(s, &w);

  for (int64_t i = 0, previous = -1; i < s->steps; i++) {
    const int64_t t = s->reverse ? s->steps - 1 - i : i, row = s->keep ? t * B : 0;
    NAME(begin)(s, &w, t, previous);
    for (int64_t b = s->first; b < s->last; b++) {
      memcpy(ROW(states, t * B + b, K * D), w.before[b - s->first], K * D * sizeof(REAL));
      if (w.before[b - s->first] == w.zero) memset(ROW(c, b, K * D), 0, K * D * sizeof(REAL));
    }
    NAME(choose)(s, &w, t, row, penalty, weights);
    NAME(sort_rows)(s, &w, (const int32_t *)s->active + row * A);
    NAME(move)(s, &w, t, row, read, from_state);
    if (s->communicate)
      NAME(communicate)(s, &w, t, row, out);
    else
      for (int64_t k = 0; k < K; k++)
        for (int64_t j = w.starts[k]; j < w.starts[k + 1]; j++)
          memcpy(ROW(states, t * B + w.slots[j] / A, K * D) + k * D, ROW(fresh, row * A + w.slots[j], D), D * sizeof(REAL));
    previous = t;
  }
  free(memory);
  return 0;
}
