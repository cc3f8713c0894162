/* Operations beside linear and attention: norms, activations, positions. Included by kernels.c, whose rules hold here:
 * what is summed is summed in an order that depends on the reduced dimension alone.
 */

/* Values of runtime/ops.py Kind and runtime/features.py Activation. */
enum { LAYER_NORM = 20, HEAD_NORM, ACT, SOFT_CAP, ADD_POSITION };
enum { SILU, GELU, GELU_TANH, RELU, SQUARED_RELU };

INLINE v8 select8(v8i mask, v8 yes, v8 no) { return (v8)((mask & (v8i)yes) | (~mask & (v8i)no)); }
INLINE v8 abs8(v8 x) { return (v8)((v8i)x & 0x7fffffff); }
INLINE v8 with_sign(v8 x, v8 of) { return (v8)((v8i)x | ((v8i)of & (int32_t)0x80000000)); }

INLINE v8 poly8(v8 x, const float *c, int count) {
    v8 p = splat(c[0]);
    for (int i = 1; i < count; i++) p = fma8(p, x, splat(c[i]));
    return p;
}

/* tanh and erf to about 1e-7 (polynomials of Cephes). */
INLINE v8 tanh8(v8 x) {
    static const float near[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f};
    v8 a = abs8(x), square = x * x;
    v8 small = fma8(poly8(square, near, 5) * square, x, x);
    v8 large = splat(1.0f) - splat(2.0f) / (exp8(a + a) + splat(1.0f));
    return select8(a < splat(0.625f), small, with_sign(large, x));
}

INLINE v8 erf8(v8 x) {
    static const float near[] = {7.853861353153693e-5f, -8.010193625184903e-4f, 5.188327685732524e-3f, -2.685381193529856e-2f,
                                 1.128358514861418e-1f, -3.761262582423300e-1f, 1.128379165726710e+0f};
    static const float middle[] = {2.326819970068386e-2f, -1.387039388740657e-1f, 3.687424674597105e-1f, -5.824733027278666e-1f,
                                   6.210004621745983e-1f, -4.944515323274145e-1f, 3.404879937665872e-1f, -2.741127028184656e-1f,
                                   5.638259427386472e-1f};
    static const float far[] = {-1.047766399936249e+1f, 1.297719955372516e+1f, -7.495518717768503e+0f, 2.921019019210786e+0f,
                                -1.015265279202700e+0f, 4.218463358204948e-1f, -2.820767439740514e-1f, 5.641895067754075e-1f};
    v8 a = max8(abs8(x), splat(1.0f)), inverse = splat(1.0f) / a, y = inverse * inverse;
    v8 tail = exp8(-a * a) * inverse * select8(a < splat(2.0f), poly8(y, middle, 9), poly8(y, far, 8));
    return select8(abs8(x) < splat(1.0f), x * poly8(x * x, near, 7), with_sign(splat(1.0f) - tail, x));
}

INLINE v8 activate(v8 x, int act) {
    if (act == SILU) return x / (splat(1) + exp8(-x));
    if (act == RELU) return max8(x, splat(0));
    if (act == SQUARED_RELU) return max8(x, splat(0)) * max8(x, splat(0));
    if (act == GELU) return splat(0.5f) * x * (splat(1) + erf8(x * splat(0.70710678118654752f)));
    v8 inner = splat(0.79788456080286536f) * fma8(splat(0.044715f) * x * x, x, x);
    return splat(0.5f) * x * (splat(1) + tanh8(inner));
}

/* Elements [i, end) of out = act(a) * other; without `other` out = act(a). */
INLINE void activate_run(const float *a, const float *other, float *out, int64_t i, int64_t end, int act) {
    for (; i + 8 <= end; i += 8) {
        v8 y = activate(load(a + i), act);
        store(out + i, other ? y * load(other + i) : y);
    }
    for (; i < end; i++) {
        v8 y = activate(splat(a[i]), act);
        out[i] = other ? y[0] * other[i] : y[0];
    }
}

/* ACT_MUL: in is [T, 2n], the activated half begins at `column`, the other one is its factor. ACT: in is [T, n]. */
static void act(const op_t *op, const batch_t *b, int thread) {
    int64_t from, to, n = op->n, width = b->width[op->in];
    share(b->num_tokens * n, 64, thread, b->num_threads, &from, &to);
    for (int64_t at = from; at < to;) {
        int64_t t = at / n, i = at % n, end = i + (to - at) < n ? i + (to - at) : n;
        const float *a = b->buffer[op->in] + t * width + op->column;
        const float *other = op->kind == ACT ? 0 : op->column ? a - n : a + n;
        float *out = b->buffer[op->out] + t * b->width[op->out];
        at += end - i;
        if (op->act == SILU) activate_run(a, other, out, i, end, SILU);
        else if (op->act == GELU) activate_run(a, other, out, i, end, GELU);
        else if (op->act == GELU_TANH) activate_run(a, other, out, i, end, GELU_TANH);
        else if (op->act == RELU) activate_run(a, other, out, i, end, RELU);
        else activate_run(a, other, out, i, end, SQUARED_RELU);
    }
}

INLINE v8 cap8(v8 x, float cap) { return splat(cap) * tanh8(x / splat(cap)); }

static void soft_cap(const op_t *op, const batch_t *b, int tokens, int thread) {
    int64_t from, to, n = op->n;
    share(tokens * n, 64, thread, b->num_threads, &from, &to);
    const float *in = b->buffer[op->in];
    float *out = b->buffer[op->out];
    int64_t i = from;
    for (; i + 8 <= to; i += 8) store(out + i, cap8(load(in + i), op->factor));
    for (; i < to; i++) { v8 y = cap8(splat(in[i]), op->factor); out[i] = y[0]; }
}

/* LayerNorm of rows of `in`; with in2 >= 0 first in += in2, as `norm` does. */
static void layer_norm(const op_t *op, const batch_t *b, int tokens, int thread) {
    int64_t from, to, width = op->k;
    const float *w = op->weight, *bias = op->bias;
    share(tokens, 1, thread, b->num_threads, &from, &to);
    for (int64_t t = from; t < to; t++) {
        float *x = b->buffer[op->in] + t * width, *out = b->buffer[op->out] + t * width;
        const float *add = op->in2 >= 0 ? b->buffer[op->in2] + t * width : 0;
        v8 sums = splat(0), squares = splat(0);
        int i = 0;
        for (; i + 8 <= width; i += 8) {
            v8 xi = load(x + i);
            if (add) { xi += load(add + i); store(x + i, xi); }
            sums += xi;
        }
        float total = sum8(sums);
        for (; i < width; i++) {
            if (add) x[i] += add[i];
            total += x[i];
        }
        float mean = total / (float)width;
        for (i = 0; i + 8 <= width; i += 8) { v8 d = load(x + i) - splat(mean); squares = fma8(d, d, squares); }
        total = sum8(squares);
        for (; i < width; i++) total = fma1(x[i] - mean, x[i] - mean, total);
        float inverse = 1.0f / sqrtf(total / (float)width + op->eps);
        for (i = 0; i + 8 <= width; i += 8)
            store(out + i, (load(x + i) - splat(mean)) * splat(inverse) * load(w + i) + load(bias + i));
        for (; i < width; i++) out[i] = (x[i] - mean) * inverse * w[i] + bias[i];
    }
}

/* RMSNorm in place of each of the n heads of k channels that begin at `column`: q or k of qkv. */
static void head_norm(const op_t *op, const batch_t *b, int thread) {
    int64_t from, to, width = b->width[op->in];
    int size = op->k;
    const float *w = op->weight;
    share((int64_t)b->num_tokens * op->n, 1, thread, b->num_threads, &from, &to);
    for (int64_t at = from; at < to; at++) {
        float *x = b->buffer[op->in] + at / op->n * width + op->column + at % op->n * size;
        v8 squares = splat(0);
        int i = 0;
        for (; i + 8 <= size; i += 8) { v8 xi = load(x + i); squares = fma8(xi, xi, squares); }
        float total = sum8(squares);
        for (; i < size; i++) total = fma1(x[i], x[i], total);
        float inverse = 1.0f / sqrtf(total / (float)size + op->eps);
        for (i = 0; i + 8 <= size; i += 8) store(x + i, load(x + i) * splat(inverse) * load(w + i));
        for (; i < size; i++) x[i] = x[i] * inverse * w[i];
    }
}

/* Adds the learned embedding of each token's position, as far as this rank holds the table. */
static void add_position(const op_t *op, const batch_t *b, int thread) {
    int64_t from, to, ldw = row_bytes(op->wtype, op->k);
    share(b->num_tokens, 1, thread, b->num_threads, &from, &to);
    for (int64_t t = from; t < to; t++) {
        int64_t position = (int64_t)b->positions[t] - op->row;
        if (position < 0 || position >= op->n) continue;
        float *out = b->buffer[op->out] + t * b->width[op->out] + op->column;
        const char *row = (const char *)op->weight + position * ldw;
        for (int i = 0; i < op->k; i++) out[i] += one_weight(row, op->wtype, i);
    }
}
