// paged_attention.py on a CPU: each query over its own context, found through its sequence's block table.
#include <algorithm>
#include <memory>
#include <vector>

#include "scalar.h"

namespace {

// How many keys one task looks at. Fixed, so that results depend neither on threads nor on other sequences.
constexpr int64_t CHUNK = 256;

// Keys or values taken at once, so that their sums are read and written less often.
constexpr int64_t STEP = 4;

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

// Keys and values of consecutive tokens that lie beside each other: a part of a block.
template <class T>
struct Run {
    const T *keys, *values;
    int64_t count;
};

// Attention of a group of query heads over up to CHUNK keys of their key-value head.
//   q: [group, d], times the scale. found: [group, d + EXTRA]. scores: room for [group, CHUNK]. rows: room for [STEP, d].
//   D: the head size if known when this is compiled, else 0.
template <class T, int64_t D>
void attend_chunk(const float* q, const std::vector<Run<T>>& runs, int64_t group, int64_t size, float softcap,
                  float* scores, float* rows, float* found) {
    const int64_t d = D ? D : size;
    int64_t count = 0;
    for (size_t r = 0; r < runs.size(); r++) {
        const Run<T>& run = runs[r];
        for (int64_t s = 0; s < run.count; s += STEP) {
            const int64_t n = std::min(STEP, run.count - s);
            // blocks lie anywhere: the CPU does not see the next one coming
            if (r + 1 < runs.size() && s < runs[r + 1].count) fetch(runs[r + 1].keys + s * d, n * d);
            fetch(run.values + s * d, n * d);
#pragma omp simd
            for (int64_t i = 0; i < n * d; i++) rows[i] = widen(run.keys[s * d + i]);
            for (int64_t g = 0; g < group; g++) {
                float* z = scores + g * (CHUNK + STEP) + count + s;
                if (d % 16 == 0) {
                    dot4(q + g * d, rows, d, z);  // of rows behind the last, too, which are written over
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
        count += run.count;
    }
    for (int64_t g = 0; g < group; g++) {
        float* z = scores + g * (CHUNK + STEP);
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
    int64_t before = 0;
    for (const Run<T>& run : runs) {
        int64_t s = 0;
        for (; s + STEP <= run.count; s += STEP) {
            const T* v = run.values + s * d;
            for (int64_t g = 0; g < group; g++) {
                float* mine = found + g * (d + EXTRA);
                const float* w = scores + g * (CHUNK + STEP) + before + s;
#pragma omp simd
                for (int64_t i = 0; i < d; i++) {
                    mine[i] += w[0] * widen(v[i]) + w[1] * widen(v[d + i]) + w[2] * widen(v[2 * d + i]) +
                               w[3] * widen(v[3 * d + i]);
                }
            }
        }
        for (; s < run.count; s++) {
            for (int64_t g = 0; g < group; g++) {
                float* mine = found + g * (d + EXTRA);
                const float w = scores[g * (CHUNK + STEP) + before + s];
#pragma omp simd
                for (int64_t i = 0; i < d; i++) mine[i] += w * widen(run.values[s * d + i]);
            }
        }
        before += run.count;
    }
}

// A layer's cache, [num_blocks, num_kv_heads, block_size, d], and the blocks of each sequence, [S, table_stride].
template <class T>
struct Cache {
    const T *keys, *values;
    const int32_t* tables;
    int64_t table_stride, num_kv_heads, block_size, d;

    // The parts of blocks that hold tokens [begin, end) of a sequence, for one head.
    void find(int64_t sequence, int64_t head, int64_t begin, int64_t end, std::vector<Run<T>>& runs) const {
        runs.clear();
        while (begin < end) {
            const int64_t slot = begin % block_size, count = std::min(block_size - slot, end - begin);
            const int64_t block = tables[sequence * table_stride + begin / block_size];
            const int64_t at = ((block * num_kv_heads + head) * block_size + slot) * d;
            runs.push_back({keys + at, values + at, count});
            begin += count;
        }
    }
};

// A token of the step: its sequence, and how many tokens it sees without a window, itself included.
struct Query {
    int64_t sequence, context;
};

// Attention of single queries. D: as above.
template <class T, int64_t D>
struct Attention {
    const T* q;
    Cache<T> cache;
    std::vector<Query> queries;
    int64_t num_heads;
    float scale, softcap;
    int64_t window;
    T* out;

    int64_t d() const { return D ? D : cache.d; }
    int64_t num_queries() const { return static_cast<int64_t>(queries.size()); }
    int64_t group() const { return num_heads / cache.num_kv_heads; }
    int64_t width() const { return group() * (d() + EXTRA); }  // of what is found for one piece
    int64_t room() const { return group() * (d() + CHUNK + STEP) + STEP * d(); }
    int64_t first(int64_t i) const { return window ? std::max<int64_t>(0, queries[i].context - window) : 0; }
    int64_t num_pieces(int64_t i) const { return (queries[i].context - first(i) + CHUNK - 1) / CHUNK; }

    // What one key-value head finds in piece `number` of a query's keys.
    void attend(int64_t i, int64_t head, int64_t number, std::vector<Run<T>>& runs, float* room, float* found) const {
        float *wide_q = room, *scores = wide_q + group() * d(), *wide = scores + group() * (CHUNK + STEP);
        const T* mine = q + (i * num_heads + head * group()) * d();
        for (int64_t j = 0; j < group() * d(); j++) wide_q[j] = widen(mine[j]) * scale;
        const int64_t begin = first(i) + number * CHUNK, end = std::min(begin + CHUNK, queries[i].context);
        cache.find(queries[i].sequence, head, begin, end, runs);
        attend_chunk<T, D>(wide_q, runs, group(), d(), softcap, scores, wide, found);
    }

    // Puts the pieces of a query together, which lie `stride` apart.
    void combine(int64_t query, int64_t head, const float* found, int64_t stride, float* total) const {
        for (int64_t g = 0; g < group(); g++, found += d() + EXTRA) {
            float greatest = -INFINITY, sum = 0;
            for (int64_t i = 0; i < num_pieces(query); i++) greatest = std::max(greatest, found[i * stride + d()]);
            std::fill(total, total + d(), 0.0f);
            for (int64_t i = 0; i < num_pieces(query); i++) {
                const float* piece = found + i * stride;
                const float weight = exp_of(piece[d()] - greatest);
                sum += weight * piece[d() + 1];
#pragma omp simd
                for (int64_t j = 0; j < d(); j++) total[j] += weight * piece[j];
            }
            T* to = out + (query * num_heads + head * group() + g) * d();
            for (int64_t j = 0; j < d(); j++) to[j] = narrow<T>(total[j] / sum);
        }
    }

    // One task for each query and key-value head: enough of them to keep all threads busy.
    void run_by_head(bool is_parallel) const {
        int64_t most = 0;
        for (int64_t i = 0; i < num_queries(); i++) most = std::max(most, num_pieces(i));
#pragma omp parallel if (is_parallel)
        {
            std::vector<Run<T>> runs;
            std::vector<float> mine(room() + most * width());
            float* found = mine.data() + room();
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < num_queries() * cache.num_kv_heads; task++) {
                const int64_t query = task / cache.num_kv_heads, head = task % cache.num_kv_heads;
                for (int64_t i = 0; i < num_pieces(query); i++) {
                    attend(query, head, i, runs, mine.data(), found + i * width());
                }
                combine(query, head, found, width(), mine.data());
            }
        }
    }

    // One task for each piece, too, of few queries: the same sums in the same order.
    void run_by_piece() const {
        std::vector<int64_t> owners, starts;  // the query of a piece, and the first piece of a query
        for (int64_t i = 0; i < num_queries(); i++) {
            starts.push_back(static_cast<int64_t>(owners.size()));
            owners.insert(owners.end(), num_pieces(i), i);
        }
        const int64_t heads = cache.num_kv_heads;
        const int64_t stride = heads * width(), num_tasks = static_cast<int64_t>(owners.size()) * heads;
        const std::unique_ptr<float[]> found(new float[num_tasks * width()]);
#pragma omp parallel
        {
            std::vector<Run<T>> runs;
            std::vector<float> mine(room());
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < num_tasks; task++) {
                const int64_t piece = task / heads, query = owners[piece];
                attend(query, task % heads, piece - starts[query], runs, mine.data(), found.get() + task * width());
            }
#pragma omp for
            for (int64_t task = 0; task < num_queries() * heads; task++) {
                const int64_t query = task / heads, head = task % heads;
                combine(query, head, found.get() + starts[query] * stride + head * width(), stride, mine.data());
            }
        }
    }

    void run() const {
        int64_t num_keys = 0;
        for (int64_t i = 0; i < num_queries(); i++) num_keys += queries[i].context - first(i);
        const bool is_much = num_keys * num_heads * d() > 8 * SMALL;
        if (is_much && num_queries() * cache.num_kv_heads < 4 * num_threads()) return run_by_piece();
        run_by_head(is_much);
    }
};

}  // namespace

EXPORT void tandem_paged_attention(int64_t type, const void* q, const void* keys, const void* values,
                                   const int32_t* starts, const int32_t* contexts, const int32_t* tables,
                                   int64_t table_stride, int64_t num_sequences, int64_t num_heads,
                                   int64_t num_kv_heads, int64_t block_size, int64_t d, float scale, float softcap,
                                   int64_t window, void* out) {
    std::vector<Query> queries;
    for (int64_t s = 0; s < num_sequences; s++) {
        for (int64_t t = starts[s]; t < starts[s + 1]; t++) queries.push_back({s, contexts[s] - (starts[s + 1] - 1 - t)});
    }
    with_type(type, [&](auto zero) {
        using T = decltype(zero);
        const Cache<T> cache{static_cast<const T*>(keys), static_cast<const T*>(values), tables, table_stride,
                             num_kv_heads, block_size, d};
        auto run = [&](auto size) {
            Attention<T, decltype(size)::value>{static_cast<const T*>(q), cache, std::move(queries), num_heads, scale,
                                                softcap, window, static_cast<T*>(out)}.run();
        };
        switch (d) {
            case 64: return run(std::integral_constant<int64_t, 64>{});
            case 128: return run(std::integral_constant<int64_t, 128>{});
            default: return run(std::integral_constant<int64_t, 0>{});
        }
    });
}
