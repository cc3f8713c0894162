/* Mixture of experts; included by kernels.c behind `linear` and `act`, on which it is built.
 *
 * ROUTER [T, E] holds, after `route`, the weight of every expert for every token, 0 where it was not chosen.
 * A pair is a token with a chosen expert that this rank holds: experts [row, row + column) of the operation. Pairs are
 * ordered by expert, then by token; P of them, so that the tokens of an expert are neighbours and share its weights.
 * A row of a pair depends on nothing but its token and expert, and a token's rows are summed in the order of experts:
 * the same bits alone and in company.
 */

enum { ROUTE = 32, GATHER, EXPERT_LINEAR, EXPERT_ACT, COMBINE, GATED_ADD };

/* In place on ROUTER: softmax over the n experts, the k best (of equals the first), renormalized when row is 1. */
static void route(const op_t *op, const batch_t *b, int thread) {
    int64_t from, to;
    int n = op->n;
    share(b->num_tokens, 1, thread, b->num_threads, &from, &to);
    for (int64_t t = from; t < to; t++) {
        float *p = b->buffer[op->out] + t * b->width[op->out], top = p[0], total = 0, chosen = 0;
        for (int e = 1; e < n; e++) top = p[e] > top ? p[e] : top;
        for (int e = 0; e < n; e += 8) {
            int lanes = n - e < 8 ? n - e : 8;
            v8 x = splat(top);
            memcpy(&x, p + e, lanes * sizeof(float));
            x = exp8(x - splat(top));
            memcpy(p + e, &x, lanes * sizeof(float));
            for (int i = 0; i < lanes; i++) total += x[i];
        }
        for (int e = 0; e < n; e++) p[e] /= total;
        for (int i = 0; i < op->k; i++) { /* a negative weight is one that was chosen */
            int best = -1;
            for (int e = 0; e < n; e++)
                if (p[e] > (best < 0 ? 0 : p[best])) best = e;
            if (best < 0) break;
            chosen += p[best];
            p[best] = -p[best];
        }
        for (int e = 0; e < n; e++) p[e] = p[e] < 0 ? -p[e] / (op->row ? chosen : 1) : 0;
    }
}

/* Weight of the rank's expert `e` for token t. */
INLINE float weight_of(const op_t *op, const batch_t *b, int e, int64_t t) {
    return b->buffer[op->in2][t * b->width[op->in2] + op->row + e];
}

static int64_t count_pairs(const op_t *op, const batch_t *b, int first, int last) {
    int64_t pairs = 0;
    for (int e = first; e < last; e++)
        for (int64_t t = 0; t < b->num_tokens; t++) pairs += weight_of(op, b, e, t) != 0;
    return pairs;
}

/* out [P, k] = the token of each pair. */
static void gather(const op_t *op, const batch_t *b, int thread) {
    int64_t pair = 0;
    for (int e = 0; e < op->column; e++)
        for (int64_t t = 0; t < b->num_tokens; t++) {
            if (weight_of(op, b, e, t) == 0) continue;
            if (pair % b->num_threads == thread)
                memcpy(b->buffer[op->out] + pair * op->k, b->buffer[op->in] + t * b->width[op->in], op->k * sizeof(float));
            pair++;
        }
}

/* out [P, n] = in [P, k] times the weight [column, n, k] of each pair's expert; scales lie the same way. */
static void expert_linear(const op_t *op, const batch_t *b, int thread) {
    op_t one = *op;
    batch_t own = *b;
    own.width[op->in] = op->k;
    own.width[op->out] = op->n;
    one.column = 0;
    int64_t scales = op->group ? (int64_t)op->n * (op->k / op->group) : op->n;
    for (int e = 0; e < op->column; e++) {
        int64_t pairs = count_pairs(op, b, e, e + 1);
        if (pairs) linear(&one, &own, (int)pairs, thread);
        own.buffer[op->in] += pairs * op->k;
        own.buffer[op->out] += pairs * op->n;
        one.weight = (const char *)one.weight + op->n * row_bytes(op->wtype, op->k);
        if (op->scale) one.scale += scales;
        if (op->zero) one.zero += scales;
    }
}

/* The inputs [P, k] of the experts' linears as their form wants them. */
static void prepare_pairs(const op_t *op, const batch_t *b, int thread) {
    batch_t own = *b;
    own.width[op->in] = own.width[op->out] = op->k;
    prepare(op, &own, (int)count_pairs(op, b, 0, op->column), thread);
}

/* out [P, n] = act(gate) * up of in [P, up; gate]. */
static void expert_act(const op_t *op, const batch_t *b, int thread) {
    op_t one = *op;
    batch_t own = *b;
    one.column = op->n;
    own.num_tokens = (int32_t)count_pairs(op, b, 0, op->column);
    own.width[op->in] = 2 * op->n;
    own.width[op->out] = op->n;
    act(&one, &own, thread);
}

/* out[t] = the sum of token t's pairs in [P, k], each times its weight; zeros where it has none here. */
static void combine(const op_t *op, const batch_t *b, int thread) {
    int64_t from, to, width = b->width[op->out];
    const float *in = b->buffer[op->in];
    share(op->k, 8, thread, b->num_threads, &from, &to);
    for (int64_t t = 0; t < b->num_tokens; t++)
        memset(b->buffer[op->out] + t * width + from, 0, (to - from) * sizeof(float));
    for (int e = 0; e < op->column; e++)
        for (int64_t t = 0; t < b->num_tokens; t++) {
            float weight = weight_of(op, b, e, t), *out = b->buffer[op->out] + t * width;
            if (weight == 0) continue;
            int64_t i = from;
            for (; i + 8 <= to; i += 8) store(out + i, fma8(splat(weight), load(in + i), load(out + i)));
            for (; i < to; i++) out[i] = fma1(weight, in[i], out[i]);
            in += op->k;
        }
}

/* out[t] += sigmoid(in2[t]) * in[t] over k channels: the shared expert. */
static void gated_add(const op_t *op, const batch_t *b, int thread) {
    int64_t from, to;
    share(op->k, 8, thread, b->num_threads, &from, &to);
    for (int64_t t = 0; t < b->num_tokens; t++) {
        const float *in = b->buffer[op->in] + t * b->width[op->in];
        float *out = b->buffer[op->out] + t * b->width[op->out];
        v8 gate = splat(1) / (splat(1) + exp8(-splat(b->buffer[op->in2][t * b->width[op->in2]])));
        int64_t i = from;
        for (; i + 8 <= to; i += 8) store(out + i, fma8(gate, load(in + i), load(out + i)));
        for (; i < to; i++) out[i] = fma1(gate[0], in[i], out[i]);
    }
}

static void run_experts(const op_t *op, const batch_t *b, int thread) {
    switch (op->kind) {
    case ROUTE: route(op, b, thread); break;
    case GATHER: gather(op, b, thread); break;
    case EXPERT_LINEAR: expert_linear(op, b, thread); break;
    case EXPERT_ACT: expert_act(op, b, thread); break;
    case COMBINE: combine(op, b, thread); break;
    case GATED_ADD: gated_add(op, b, thread); break;
    }
}
