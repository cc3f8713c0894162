/* Rounding of activations to the values that an int8 or fp8 (e4m3) number can take. They stay float32: a value is its
 * number on the grid times the scale. Included by kernels.c.
 */

enum { PREPARE = 38 };
/* Values of Round: NONE, then a scale that is given or one of each token. */
enum { ROUND_NONE, INT8_STATIC, INT8_TOKEN, FP8_STATIC, FP8_TOKEN };

/* Adding and taking away 1.5 * 2^23 leaves no bits behind the point: the nearest integer, of two the even one. */
INLINE v8 round_int8(v8 x) {
    x = -max8(-max8(x, splat(-128)), splat(-127));
    return (x + splat(0x1.8p23f)) - splat(0x1.8p23f);
}

/* Four bits of mantissa, the smallest step 2^-9, nothing beyond 448: the same trick with a number 2^20 times the power
 * of two below x. */
INLINE v8 round_fp8(v8 x) {
    v8 a = -max8(-abs8(x), splat(-448));
    v8i exponent = (v8i)max8(a, splat(0x1p-6f)) & 0x7f800000;
    v8 magic = (v8)(exponent + (20 << 23)) * splat(1.5f);
    return with_sign((a + magic) - magic, x);
}

INLINE v8 round8(v8 x, float scale, int round) {
    if (round == ROUND_NONE) return x;
    v8 y = x / splat(scale);
    return (round <= INT8_TOKEN ? round_int8(y) : round_fp8(y)) * splat(scale);
}

INLINE void round_as(const float *x, const float *factor, float *out, int count, float scale, int round) {
    int i = 0;
    for (; i + 8 <= count; i += 8) {
        v8 y = load(x + i);
        store(out + i, round8(factor ? y * load(factor + i) : y, scale, round));
    }
    for (; i < count; i++) {
        v8 y = round8(splat(factor ? x[i] * factor[i] : x[i]), scale, round);
        out[i] = y[0];
    }
}

/* out = x * factor on the grid; `factor` may be null, and out may be x. */
static void round_run(const float *x, const float *factor, float *out, int count, float scale, int round) {
    if (round == ROUND_NONE) round_as(x, factor, out, count, scale, ROUND_NONE);
    else if (round <= INT8_TOKEN) round_as(x, factor, out, count, scale, INT8_STATIC);
    else round_as(x, factor, out, count, scale, FP8_STATIC);
}

static float largest(const float *x, const float *factor, int count) {
    v8 best = splat(0);
    int i = 0;
    for (; i + 8 <= count; i += 8) best = max8(best, abs8(factor ? load(x + i) * load(factor + i) : load(x + i)));
    for (; i < count; i++) best = max8(best, abs8(splat(factor ? x[i] * factor[i] : x[i])));
    float top = best[0];
    for (int lane = 1; lane < 8; lane++) top = best[lane] > top ? best[lane] : top;
    return top;
}

/* The input of a linear as its form wants it: times `weight` [k], where there is one, and rounded as `act` says. */
static void prepare(const op_t *op, const batch_t *b, int tokens, int thread) {
    int64_t from, to;
    const float *factor = op->weight;
    share(tokens, 1, thread, b->num_threads, &from, &to);
    for (int64_t t = from; t < to; t++) {
        const float *x = b->buffer[op->in] + t * b->width[op->in];
        float *out = b->buffer[op->out] + t * b->width[op->out], scale = 1;
        if (op->act == INT8_TOKEN || op->act == FP8_TOKEN) {
            scale = largest(x, factor, op->k) / (op->act == INT8_TOKEN ? 127.0f : 448.0f);
            /* of a token of zeros; that of fp8 is TensorRT-LLM's (quantization/functional.py) */
            float least = op->act == INT8_TOKEN ? 0x1p-126f : 1.0f / (448.0f * 512.0f);
            if (scale < least) scale = least;
        } else if (op->act) {
            scale = *op->bias;
        }
        round_run(x, factor, out, op->k, scale, op->act);
    }
}
