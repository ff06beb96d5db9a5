// row_attention.py on a CPU.
#include <algorithm>
#include <memory>
#include <vector>

#include "scalar.h"

namespace {

// Turn the channel pairs (i, half + i) by the token's angles; channels behind them stay.
template <class T>
void rotate(const T* x, const float* cos, const float* sin, int64_t half, int64_t d, T* y) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float a = widen(x[i]), b = widen(x[half + i]);
        y[i] = narrow<T>(a * cos[i] - b * sin[i]);
        y[half + i] = narrow<T>(b * cos[i] + a * sin[i]);
    }
    std::copy(x + 2 * half, x + d, y + 2 * half);
}

// How many keys one task looks at. Fixed, so that results depend neither on threads nor on other sequences.
constexpr int64_t CHUNK = 256;

// Keys or values taken at once, so that their sums are read and written less often.
constexpr int64_t STEP = 4;

// How many keys before their turn they are asked for: rows of a cache are too short for the CPU to see it coming.
constexpr int64_t AHEAD = 24;

template <class T>
inline void fetch(const T* x, int64_t count) {
    constexpr int64_t LINE = 64 / sizeof(T);
    for (int64_t i = 0; i < count; i += LINE) __builtin_prefetch(x + i);
}

// What a task finds for one query head: the weighted sum of values [d], the greatest score, the sum of weights.
constexpr int64_t EXTRA = 2;

// Sixteen lanes; compilers make of them what the CPU has.
typedef float Lanes __attribute__((vector_size(64)));

inline Lanes load(const float* x) {
    Lanes y;
    __builtin_memcpy(&y, x, sizeof y);
    return y;
}

// The four dot products of q with rows [4, d], d a multiple of 16. Lanes are summed four rows at once: alone, the sum
// of one row's lanes would take as long as its products.
inline void dot4(const float* q, const float* rows, int64_t d, float* out) {
    Lanes a{}, b{}, c{}, e{};
    for (int64_t i = 0; i < d; i += 16) {
        const Lanes x = load(q + i);
        a += x * load(rows + i);
        b += x * load(rows + d + i);
        c += x * load(rows + 2 * d + i);
        e += x * load(rows + 3 * d + i);
    }
#define LOW(x, y) __builtin_shufflevector(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define HIGH(x, y) __builtin_shufflevector(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
    const Lanes ab = LOW(a, b) + HIGH(a, b), ce = LOW(c, e) + HIGH(c, e);  // a b a b, c e c e in each quarter
    const Lanes sums = __builtin_shufflevector(ab, ce, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                       __builtin_shufflevector(ab, ce, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    for (int64_t i = 0; i < 4; i++) out[i] = (sums[i] + sums[4 + i]) + (sums[8 + i] + sums[12 + i]);
#undef LOW
#undef HIGH
}

// Attention of a group of query heads over up to CHUNK keys of their key-value head.
//   q: [group, d], times the scale. found: [group, d + EXTRA]. scores: room for [group, CHUNK]. rows: room for [STEP, d].
//   D: the head size if known when this is compiled, else 0.
template <class T, int64_t D>
void attend_chunk(const float* q, const T* keys, const T* values, int64_t count, int64_t group, int64_t size,
                  float softcap, float* scores, float* rows, float* found) {
    const int64_t d = D ? D : size;
    for (int64_t s = 0; s < count; s += STEP) {
        const int64_t n = std::min(STEP, count - s);
        if (s + AHEAD < count) fetch(keys + (s + AHEAD) * d, n * d);
        fetch(values + s * d, n * d);
#pragma omp simd
        for (int64_t i = 0; i < n * d; i++) rows[i] = widen(keys[s * d + i]);
        for (int64_t g = 0; g < group; g++) {
            float* z = scores + g * CHUNK + s;
            if (d % 16 == 0) {
                dot4(q + g * d, rows, d, z);  // of rows behind the last, too, which nobody looks at
                continue;
            }
            for (int64_t j = 0; j < n; j++) {
                float dot = 0;
#pragma omp simd reduction(+ : dot)
                for (int64_t i = 0; i < d; i++) dot += q[g * d + i] * rows[j * d + i];
                z[j] = dot;
            }
        }
    }
    for (int64_t g = 0; g < group; g++) {
        float* z = scores + g * CHUNK;
        if (softcap > 0) {
#pragma omp simd
            for (int64_t s = 0; s < count; s++) z[s] = softcap * (1.0f - 2.0f / (1.0f + exp_of(2.0f * z[s] / softcap)));
        }
        float greatest = z[0], sum = 0;
#pragma omp simd reduction(max : greatest)
        for (int64_t s = 0; s < count; s++) greatest = z[s] > greatest ? z[s] : greatest;
#pragma omp simd reduction(+ : sum)
        for (int64_t s = 0; s < count; s++) {
            z[s] = exp_of(z[s] - greatest);
            sum += z[s];
        }
        float* mine = found + g * (d + EXTRA);
        std::fill(mine, mine + d, 0.0f);
        mine[d] = greatest;
        mine[d + 1] = sum;
    }
    int64_t s = 0;
    for (; s + STEP <= count; s += STEP) {
        const T* v = values + s * d;
        for (int64_t g = 0; g < group; g++) {
            float* mine = found + g * (d + EXTRA);
            const float* w = scores + g * CHUNK + s;
#pragma omp simd
            for (int64_t i = 0; i < d; i++) {
                mine[i] += w[0] * widen(v[i]) + w[1] * widen(v[d + i]) + w[2] * widen(v[2 * d + i]) +
                           w[3] * widen(v[3 * d + i]);
            }
        }
    }
    for (; s < count; s++) {
        for (int64_t g = 0; g < group; g++) {
            float* mine = found + g * (d + EXTRA);
            const float w = scores[g * CHUNK + s];
#pragma omp simd
            for (int64_t i = 0; i < d; i++) mine[i] += w * widen(values[s * d + i]);
        }
    }
}

// Attention of single queries, each over its own row. D: as above.
template <class T, int64_t D>
struct Attention {
    const T *q, *keys, *values;
    const int64_t *rows, *contexts;
    int64_t num_seqs, num_heads, num_kv_heads, capacity, size;
    float scale, softcap;
    int64_t window;
    T* out;

    int64_t d() const { return D ? D : size; }
    int64_t group() const { return num_heads / num_kv_heads; }
    int64_t width() const { return group() * (d() + EXTRA); }  // of what is found for one piece
    int64_t room() const { return group() * (d() + CHUNK) + STEP * d(); }
    int64_t first(int64_t seq) const { return window ? std::max<int64_t>(0, contexts[seq] - window) : 0; }
    int64_t num_pieces(int64_t seq) const { return (contexts[seq] - first(seq) + CHUNK - 1) / CHUNK; }

    // What one key-value head finds in piece `number` of a sequence's keys.
    void attend(int64_t seq, int64_t head, int64_t number, float* room, float* found) const {
        float *queries = room, *scores = queries + group() * d(), *wide = scores + group() * CHUNK;
        const T* mine = q + (seq * num_heads + head * group()) * d();
        for (int64_t i = 0; i < group() * d(); i++) queries[i] = widen(mine[i]) * scale;
        const int64_t begin = first(seq) + number * CHUNK, count = std::min(CHUNK, contexts[seq] - begin);
        const int64_t at = ((rows[seq] * num_kv_heads + head) * capacity + begin) * d();
        attend_chunk<T, D>(queries, keys + at, values + at, count, group(), d(), softcap, scores, wide, found);
    }

    // Puts the pieces of a sequence together, which lie `stride` apart.
    void combine(int64_t seq, int64_t head, const float* found, int64_t stride, float* total) const {
        for (int64_t g = 0; g < group(); g++, found += d() + EXTRA) {
            float greatest = -INFINITY, sum = 0;
            for (int64_t i = 0; i < num_pieces(seq); i++) greatest = std::max(greatest, found[i * stride + d()]);
            std::fill(total, total + d(), 0.0f);
            for (int64_t i = 0; i < num_pieces(seq); i++) {
                const float* piece = found + i * stride;
                const float weight = exp_of(piece[d()] - greatest);
                sum += weight * piece[d() + 1];
#pragma omp simd
                for (int64_t j = 0; j < d(); j++) total[j] += weight * piece[j];
            }
            T* to = out + (seq * num_heads + head * group() + g) * d();
            for (int64_t j = 0; j < d(); j++) to[j] = narrow<T>(total[j] / sum);
        }
    }

    // One task for each sequence and key-value head: enough of them to keep all threads busy.
    void run_by_head(bool is_parallel) const {
        int64_t most = 0;
        for (int64_t seq = 0; seq < num_seqs; seq++) most = std::max(most, num_pieces(seq));
#pragma omp parallel if (is_parallel)
        {
            std::vector<float> mine(room() + most * width());
            float* found = mine.data() + room();
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < num_seqs * num_kv_heads; task++) {
                const int64_t seq = task / num_kv_heads, head = task % num_kv_heads;
                for (int64_t i = 0; i < num_pieces(seq); i++) attend(seq, head, i, mine.data(), found + i * width());
                combine(seq, head, found, width(), mine.data());
            }
        }
    }

    // One task for each piece, too, of few sequences: the same sums in the same order.
    void run_by_piece() const {
        std::vector<int64_t> owners, starts;  // the sequence of a piece, and the first piece of a sequence
        for (int64_t seq = 0; seq < num_seqs; seq++) {
            starts.push_back(static_cast<int64_t>(owners.size()));
            owners.insert(owners.end(), num_pieces(seq), seq);
        }
        const int64_t stride = num_kv_heads * width(), num_tasks = static_cast<int64_t>(owners.size()) * num_kv_heads;
        const std::unique_ptr<float[]> found(new float[num_tasks * width()]);
#pragma omp parallel
        {
            std::vector<float> mine(room());
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < num_tasks; task++) {
                const int64_t piece = task / num_kv_heads, head = task % num_kv_heads, seq = owners[piece];
                attend(seq, head, piece - starts[seq], mine.data(), found.get() + task * width());
            }
#pragma omp for
            for (int64_t task = 0; task < num_seqs * num_kv_heads; task++) {
                const int64_t seq = task / num_kv_heads, head = task % num_kv_heads;
                combine(seq, head, found.get() + starts[seq] * stride + head * width(), stride, mine.data());
            }
        }
    }

    void run() const {
        int64_t num_keys = 0;
        for (int64_t seq = 0; seq < num_seqs; seq++) num_keys += contexts[seq] - first(seq);
        const bool is_much = num_keys * num_heads * d() > 8 * SMALL;
        if (is_much && num_seqs * num_kv_heads < 4 * num_threads()) return run_by_piece();
        run_by_head(is_much);
    }
};

}  // namespace

EXPORT void tandem_write_rotated(int64_t type, const void* q, const void* k, const void* v, int64_t q_stride,
                                 int64_t k_stride, int64_t v_stride, const float* cos, const float* sin,
                                 int64_t half, const int64_t* rows, const int64_t* positions, int64_t num_tokens,
                                 int64_t num_heads, int64_t num_kv_heads, int64_t capacity, int64_t d, void* q_out,
                                 void* keys, void* values) {
    with_type(type, [&](auto zero) {
        using T = decltype(zero);
#pragma omp parallel for if (num_tokens * num_heads * d > SMALL)
        for (int64_t t = 0; t < num_tokens; t++) {
            const float *c = cos + t * half, *s = sin + t * half;
            for (int64_t h = 0; h < num_heads; h++) {
                T* to = static_cast<T*>(q_out) + (t * num_heads + h) * d;
                rotate(static_cast<const T*>(q) + t * q_stride + h * d, c, s, half, d, to);
            }
            for (int64_t h = 0; h < num_kv_heads; h++) {
                const int64_t at = ((rows[t] * num_kv_heads + h) * capacity + positions[t]) * d;
                rotate(static_cast<const T*>(k) + t * k_stride + h * d, c, s, half, d, static_cast<T*>(keys) + at);
                const T* from = static_cast<const T*>(v) + t * v_stride + h * d;
                std::copy(from, from + d, static_cast<T*>(values) + at);
            }
        }
    });
}

EXPORT void tandem_attend_rows(int64_t type, const void* q, const void* keys, const void* values, const int64_t* rows,
                               const int64_t* contexts, int64_t num_seqs, int64_t num_heads, int64_t num_kv_heads,
                               int64_t capacity, int64_t d, float scale, float softcap, int64_t window, void* out) {
    with_type(type, [&](auto zero) {
        using T = decltype(zero);
        auto run = [&](auto size) {
            Attention<T, decltype(size)::value>{
                static_cast<const T*>(q), static_cast<const T*>(keys), static_cast<const T*>(values), rows, contexts,
                num_seqs, num_heads, num_kv_heads, capacity, d, scale, softcap, window, static_cast<T*>(out)}.run();
        };
        switch (d) {
            case 64: return run(std::integral_constant<int64_t, 64>{});
            case 128: return run(std::integral_constant<int64_t, 128>{});
            default: return run(std::integral_constant<int64_t, 0>{});
        }
    });
}
