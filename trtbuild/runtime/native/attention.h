/* Attention over the paged cache, whose layout kernels.c explains and which includes this. */

#define MAX_GROUP 3  /* query heads that share one pass over a block of keys */

/* Scores of `group` query heads against the keys of one block, eight tokens a vector. */
INLINE void block_scores(const float *q, int hd, int bt, const float *keys, int group, float scale, float *scores, int64_t lds) {
    for (int s = 0; s < bt; s += 32) {
        int lanes = bt - s < 32 ? (bt - s) / 8 : 4;
        v8 sum[MAX_GROUP][4];
        for (int g = 0; g < group; g++)
            for (int j = 0; j < 4; j++) sum[g][j] = splat(0);
        for (int i = 0; i < hd; i++) {
            const float *row = keys + (int64_t)i * bt + s;
            v8 k0 = load(row), k1 = lanes > 1 ? load(row + 8) : k0, k2 = lanes > 2 ? load(row + 16) : k0, k3 = lanes > 3 ? load(row + 24) : k0;
            for (int g = 0; g < group; g++) {
                v8 qi = splat(q[g * hd + i]);
                sum[g][0] = fma8(qi, k0, sum[g][0]);
                sum[g][1] = fma8(qi, k1, sum[g][1]);
                sum[g][2] = fma8(qi, k2, sum[g][2]);
                sum[g][3] = fma8(qi, k3, sum[g][3]);
            }
        }
        for (int g = 0; g < group; g++)
            for (int j = 0; j < lanes; j++) store(scores + g * lds + s + 8 * j, sum[g][j] * splat(scale));
    }
}

/* Channels [i, i + 8 * vectors) of softmax(scores) . values, for each query head. */
INLINE void weigh_channels(const batch_t *b, const int32_t *table, int64_t base, int first, int context, int group, int vectors, int i,
                           const float *probs, int64_t ldp, float *out) {
    int hd = b->head_size, bt = b->block_tokens;
    v8 sum[MAX_GROUP][2];
    for (int g = 0; g < group; g++) sum[g][0] = sum[g][1] = splat(0);
    for (int t = first; t < context; t++) {
        const float *v = b->values + base + (int64_t)table[t / bt] * b->block_stride + (int64_t)(t % bt) * hd + i;
        v8 v0 = load(v), v1 = vectors > 1 ? load(v + 8) : v0;
        for (int g = 0; g < group; g++) {
            v8 p = splat(probs[g * ldp + t]);
            sum[g][0] = fma8(p, v0, sum[g][0]);
            sum[g][1] = fma8(p, v1, sum[g][1]);
        }
    }
    for (int g = 0; g < group; g++)
        for (int n = 0; n < vectors; n++) store(out + g * hd + i + 8 * n, sum[g][n]);
}

INLINE void weigh_values(const batch_t *b, const int32_t *table, int64_t base, int first, int context, int group, const float *probs,
                         int64_t ldp, float *out) {
    int hd = b->head_size, bt = b->block_tokens, i = 0;
    for (; i + 16 <= hd; i += 16) weigh_channels(b, table, base, first, context, group, 2, i, probs, ldp, out);
    for (; i + 8 <= hd; i += 8) weigh_channels(b, table, base, first, context, group, 1, i, probs, ldp, out);
    for (; i < hd; i++)
        for (int g = 0; g < group; g++) {
            float sum = 0;
            for (int t = first; t < context; t++)
                sum = fma1(probs[g * ldp + t], b->values[base + (int64_t)table[t / bt] * b->block_stride + (int64_t)(t % bt) * hd + i], sum);
            out[g * hd + i] = sum;
        }
}

/* Of scores [first, context); from..to are the whole vectors around them. */
static void softmax(float *scores, int first, int context, int from, int to) {
    v8 best = splat(-INFINITY);
    for (int t = from; t < first; t++) scores[t] = -INFINITY;
    for (int t = context; t < to; t++) scores[t] = -INFINITY;
    for (int t = from; t < to; t += 8) best = max8(best, load(scores + t));
    float top = best[0];
    for (int i = 1; i < 8; i++) top = best[i] > top ? best[i] : top;
    v8 total = splat(0);
    for (int t = from; t < to; t += 8) {
        v8 e = exp8(load(scores + t) - splat(top));
        if (t < first || t + 8 > context)
            for (int i = 0; i < 8; i++) if (t + i < first || t + i >= context) e[i] = 0;
        store(scores + t, e);
        total += e;
    }
    v8 inverse = splat(1.0f / sum8(total));
    for (int t = from; t < to; t += 8) store(scores + t, load(scores + t) * inverse);
}

/* The soft cap, then the position bias; no family has both. */
static void adjust_scores(const batch_t *b, int head, int from, int to, float *scores) {
    if (b->soft_cap > 0)
        for (int t = from; t < to; t += 8) store(scores + t, cap8(load(scores + t), b->soft_cap));
    if (b->position_bias) {
        const float *bias = b->position_bias + head * b->bias_stride;
        for (int t = from; t < to; t += 8) store(scores + t, load(scores + t) + load(bias + t));
    }
}

INLINE void attend(const op_t *op, const batch_t *b, int64_t t, int head, int group, float *scores) {
    int hd = b->head_size, bt = b->block_tokens, context = b->positions[t] + 1, blocks = (context + bt - 1) / bt;
    int64_t lds = (int64_t)b->max_blocks * bt;
    const int32_t *table = b->block_tables + (int64_t)b->slots[t] * b->max_blocks;
    int kv = head / (b->num_heads / b->num_kv_heads);
    const float *q = b->buffer[op->in] + t * b->width[op->in] + (int64_t)head * hd;
    int64_t base = op->layer * b->layer_stride + (int64_t)kv * hd * bt;
    int first = op->window && context > op->window ? context - op->window : 0;
    int from = first & ~7, to = (context + 7) & ~7;
    for (int n = first / bt; n < blocks; n++)
        block_scores(q, hd, bt, b->keys + base + (int64_t)table[n] * b->block_stride, group, b->score_scale, scores + (int64_t)n * bt, lds);
    for (int g = 0; g < group; g++) {
        adjust_scores(b, head + g, from, to, scores + g * lds);
        softmax(scores + g * lds, first, context, from, to);
    }
    weigh_values(b, table, base, first, context, group, scores, lds, b->buffer[op->out] + t * b->width[op->out] + (int64_t)head * hd);
}

/* Heads that share keys go together; a lone token is cut by head so that all threads have work. */
static void attention(const op_t *op, const batch_t *b, int thread) {
    int share_by = b->num_heads / b->num_kv_heads, width = 1;
    if ((int64_t)b->num_tokens * b->num_kv_heads >= 4 * b->num_threads)
        for (int g = 2; g <= MAX_GROUP; g++) if (share_by % g == 0) width = g;
    float *scores = b->scratch + thread * b->scratch_stride;
    int64_t per_token = b->num_heads / width, items = b->num_tokens * per_token;
    for (int64_t i = thread; i < items; i += b->num_threads) {
        int64_t t = i / per_token;
        int head = (int)(i % per_token) * width;
        if (width == 3) attend(op, b, t, head, 3, scores);
        else if (width == 2) attend(op, b, t, head, 2, scores);
        else attend(op, b, t, head, 1, scores);
    }
}
