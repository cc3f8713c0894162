/* int4 weights; included by linear.h.
 *
 * A code is the number plus 8. A row of codes (runtime/int4.py packs it) is cut into blocks of 128 inputs, then, of what
 * is left, at most one block of 64 and one of 32, and a rest. A block of 16 c inputs, c = 8, 4, 2, is 16 words of c
 * codes: code i of word l, counted from the low end, belongs to input 16 i + l, so that one mask takes 16 neighbouring
 * inputs out of the words. A byte j of the rest holds inputs 2j, low, and 2j + 1.
 */

#ifdef __AVX512F__
typedef int32_t vwi __attribute__((vector_size(64)));
INLINE vw to_float(vwi x) { return (vw)_mm512_cvtepi32_ps((__m512i)x); }
#else
typedef v8i vwi;
INLINE vw to_float(vwi x) {
#ifdef __AVX2__
    return (v8)_mm256_cvtepi32_ps((__m256i)x);
#else
    return __builtin_convertvector(x, v8);
#endif
}
#endif

/* Words [first, first + LANES) of a block of 16 words of `bytes` bytes. */
INLINE vwi load_words(const char *block, int bytes, int first) {
    const char *p = block + first * bytes;
#ifdef __AVX512F__
    if (bytes == 4) return (vwi)_mm512_loadu_si512(p);
    if (bytes == 2) return (vwi)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return (vwi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif defined(__AVX2__)
    if (bytes == 4) return (vwi)_mm256_loadu_si256((const __m256i *)p);
    if (bytes == 2) return (vwi)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return (vwi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    vwi words;
    for (int l = 0; l < LANES; l++) {
        const uint8_t *byte = (const uint8_t *)p + l * bytes;
        uint32_t word = byte[0];
        for (int i = 1; i < bytes; i++) word |= (uint32_t)byte[i] << 8 * i;
        words[l] = (int32_t)word;
    }
    return words;
#endif
}

/* Code i of every word times 16^i: it stays where it is, which saves a shift. The last of eight would run into the
 * sign, so it is shifted down, and 16^0. */
INLINE vw code_in_place(vwi words, int i) {
    typedef uint32_t vwui __attribute__((vector_size(4 * LANES)));
    return to_float(i == 7 ? (vwi)((vwui)words >> 28) : words & (int32_t)(15u << 4 * i));
}
INLINE float inverse_place(int i) { return i == 7 ? 1.0f : 1.0f / (float)(1u << 4 * i); }

/* A block against one token; a group ends after every `steps` codes of a word, `steps` 0: never, if `left` says so. */
typedef struct { vw sum[GEMV_N], total[GEMV_N]; int left, group; } sums_t;

INLINE void int4_block(const part_t *p, int n_count, int at, int bytes, int steps, sums_t *s) {
    const float *x = p->x + at;
    const char *w = p->w + at / 2;
    for (int n = 0; n < n_count; n++) __builtin_prefetch(w + (n + n_count) * p->ldw);
#pragma GCC unroll 8
    for (int i = 0; i < 2 * bytes; i++) {
#pragma GCC unroll 2
        for (int half = 0; half < 16; half += LANES) {
            vw xi = *(const vwu *)(x + 16 * i + half) * wide(inverse_place(i));
            KEEP(xi);
            for (int n = 0; n < n_count; n++)
                s->sum[n] = fma_wide(xi, code_in_place(load_words(w + n * p->ldw, bytes, half), i), s->sum[n]);
        }
        if (steps && (i + 1) % steps == 0 && --s->left == 0) {
            for (int n = 0; n < n_count; n++) {
                s->total[n] = fma_wide(wide(p->scale[n * p->lds + s->group]), s->sum[n], s->total[n]);
                s->sum[n] = (vw){0};
            }
            s->group++;
            s->left = p->group / (16 * steps);
        }
    }
}

INLINE float code_of_rest(const char *rest, int t) { return (float)((uint8_t)rest[t / 2] >> 4 * (t % 2) & 15); }

/* n_count rows against one token, in the order of `tile`. */
INLINE void int4_rows(const part_t *p, int n_count, int steps) {
    sums_t s = {.left = steps ? p->group / (16 * steps) : 0};
    int k = p->k, at = 0;
    for (; at + 128 <= k; at += 128) int4_block(p, n_count, at, 4, steps, &s);
    if (steps < 8) { /* a group of 128 leaves nothing */
        if (at + 64 <= k) { int4_block(p, n_count, at, 2, steps, &s); at += 64; }
        if (steps < 4 && at + 32 <= k) { int4_block(p, n_count, at, 1, steps, &s); at += 32; }
    }
    int rest = at;
    if (!steps)
        for (; at + LANES <= k; at += LANES)
            for (int n = 0; n < n_count; n++) {
                vw w;
                for (int l = 0; l < LANES; l++) w[l] = code_of_rest(p->w + n * p->ldw + rest / 2, at - rest + l);
                s.sum[n] = fma_wide(*(const vwu *)(p->x + at), w, s.sum[n]);
            }
    if (steps) add_offsets(p, 1, n_count, s.total);
    float sums[GEMV_N];
    sum_lanes(steps ? s.total : s.sum, n_count, sums);
    for (int n = 0; n < n_count; n++) {
        float y = sums[n];
        for (int t = at; t < k; t++) y = fma1(p->x[t], code_of_rest(p->w + n * p->ldw + rest / 2, t - rest), y);
        finish(p, steps != 0, 0, n, y);
    }
}

INLINE void int4_steps(const part_t *p, int steps) {
    if (p->n_count == GEMV_N) int4_rows(p, GEMV_N, steps);
    else int4_rows(p, 1, steps);
}

/* One token. */
INLINE void any_int4(const part_t *p, int grouped) {
    if (!grouped) int4_steps(p, 0);
    else if (p->group % 128 == 0) int4_steps(p, 8);
    else if (p->group % 64 == 0) int4_steps(p, 4);
    else int4_steps(p, 2);
}

INLINE void expand_block(const char *w, int bytes, float *out) {
    for (int half = 0; half < 16; half += LANES) {
        vwi words = load_words(w, bytes, half);
        for (int i = 0; i < 2 * bytes; i++, words >>= 4) *(vwu *)(out + 16 * i + half) = to_float(words & 15);
    }
}

/* The codes of some rows as float32. */
static void expand_int4(const part_t *p, float *out) {
    for (int n = 0; n < p->n_count; n++, out += p->k) {
        const char *row = p->w + n * p->ldw;
        int at = 0;
        for (; at + 128 <= p->k; at += 128) {
            __builtin_prefetch(row + p->n_count * p->ldw + at / 2);
            expand_block(row + at / 2, 4, out + at);
        }
        if (at + 64 <= p->k) { expand_block(row + at / 2, 2, out + at); at += 64; }
        if (at + 32 <= p->k) { expand_block(row + at / 2, 1, out + at); at += 32; }
        for (int rest = at; at < p->k; at++) out[at] = code_of_rest(row + rest / 2, at - rest);
    }
}
