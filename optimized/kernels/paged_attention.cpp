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

// Tokens of a sequence that are computed together.
constexpr int64_t TILE = 4;

// How many keys before their turn they are asked for: blocks lie anywhere, and the CPU does not see the next one coming.
constexpr int64_t AHEAD = 48;

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

// Asks for keys in the order in which they will be used.
template <class T>
struct Prefetch {
    const std::vector<Run<T>>& runs;
    int64_t d;
    size_t run = 0;
    int64_t next = 0;  // key of that run

    void advance(int64_t count) {
        while (count > 0 && run < runs.size()) {
            const int64_t n = std::min(count, runs[run].count - next);
            fetch(runs[run].keys + next * d, n * d);
            count -= n, next += n;
            if (next == runs[run].count) run++, next = 0;
        }
    }
};

// Attention of query heads over up to CHUNK keys of their key-value head. Heads are those of consecutive tokens: each
// sees one key more than the one before it, but none sees less for being computed beside others.
//   q: [num_rows, d], times the scale. counts: of the rows' keys, at least one of which is all. found: [num_rows, d +
//   EXTRA]. scores: room for [num_rows, CHUNK + STEP]. wide: room for [STEP, d].
//   D: the head size if known when this is compiled, else 0.
template <class T, int64_t D>
void attend_chunk(const float* q, const std::vector<Run<T>>& runs, const std::vector<int64_t>& counts, int64_t size,
                  float softcap, float* scores, float* wide, float* found) {
    const int64_t d = D ? D : size, num_rows = static_cast<int64_t>(counts.size());
    int64_t before = 0;
    Prefetch<T> keys_ahead{runs, d};
    keys_ahead.advance(AHEAD);
    for (const Run<T>& run : runs) {
        for (int64_t s = 0; s < run.count; s += STEP) {
            const int64_t n = std::min(STEP, run.count - s);
            keys_ahead.advance(n);
            fetch(run.values + s * d, n * d);
#pragma omp simd
            for (int64_t i = 0; i < n * d; i++) wide[i] = widen(run.keys[s * d + i]);
            for (int64_t r = 0; r < num_rows; r++) {
                float* z = scores + r * (CHUNK + STEP) + before + s;
                if (d % 16 == 0) {
                    dot4(q + r * d, wide, d, z);  // of keys behind the last, too, which are written over
                    continue;
                }
                for (int64_t j = 0; j < n; j++) {
                    float dot = 0;
#pragma omp simd reduction(+ : dot)
                    for (int64_t i = 0; i < d; i++) dot += q[r * d + i] * wide[j * d + i];
                    z[j] = dot;
                }
            }
        }
        before += run.count;
    }
    for (int64_t r = 0; r < num_rows; r++) {
        float* z = scores + r * (CHUNK + STEP);
        const int64_t count = counts[r];
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
        float* mine = found + r * (d + EXTRA);
        std::fill(mine, mine + d, 0.0f);
        mine[d] = greatest;
        mine[d + 1] = sum;
    }
    before = 0;
    for (const Run<T>& run : runs) {
        for (int64_t s = 0; s < run.count; s += STEP) {
            const T* v = run.values + s * d;
            for (int64_t r = 0; r < num_rows; r++) {
                float* mine = found + r * (d + EXTRA);
                const float* w = scores + r * (CHUNK + STEP) + before + s;
                const int64_t n = std::min(run.count - s, counts[r] - before - s);
                if (n >= STEP) {
#pragma omp simd
                    for (int64_t i = 0; i < d; i++) {
                        mine[i] += w[0] * widen(v[i]) + w[1] * widen(v[d + i]) + w[2] * widen(v[2 * d + i]) +
                                   w[3] * widen(v[3 * d + i]);
                    }
                    continue;
                }
                for (int64_t j = 0; j < n; j++) {
#pragma omp simd
                    for (int64_t i = 0; i < d; i++) mine[i] += w[j] * widen(v[j * d + i]);
                }
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
        const int32_t* block = tables + sequence * table_stride + begin / block_size;
        for (int64_t slot = begin % block_size; begin < end; block++, slot = 0) {
            const int64_t count = std::min(block_size - slot, end - begin);
            const int64_t at = ((*block * num_kv_heads + head) * block_size + slot) * d;
            runs.push_back({keys + at, values + at, count});
            begin += count;
        }
    }
};

// Consecutive tokens of a sequence that are computed together, so that their keys are read once: the first one's
// number in the step, how many they are, and how many tokens the first sees without a window, itself included.
struct Tile {
    int64_t sequence, query, count, context;
};

// Attention of single queries. D: as above.
template <class T, int64_t D>
struct Attention {
    const T* q;
    Cache<T> cache;
    std::vector<Tile> tiles;
    int64_t num_heads;
    float scale, softcap;
    int64_t window;
    T* out;

    // What a thread needs for a piece.
    struct Room {
        std::vector<Run<T>> runs;
        std::vector<int64_t> counts;
        std::vector<float> floats;
    };

    int64_t d() const { return D ? D : cache.d; }
    int64_t num_tiles() const { return static_cast<int64_t>(tiles.size()); }
    int64_t group() const { return num_heads / cache.num_kv_heads; }
    int64_t width() const { return TILE * group() * (d() + EXTRA); }  // of what is found for one piece
    int64_t room() const { return TILE * group() * (d() + CHUNK + STEP) + STEP * d(); }
    int64_t first(const Tile& tile) const { return window ? std::max<int64_t>(0, tile.context - window) : 0; }
    int64_t num_pieces(const Tile& tile, int64_t context) const { return (context - first(tile) + CHUNK - 1) / CHUNK; }
    int64_t num_pieces(const Tile& tile) const { return num_pieces(tile, tile.context + tile.count - 1); }

    // What one key-value head finds in piece `number` of a tile's keys.
    void attend(const Tile& tile, int64_t head, int64_t number, Room& mine, float* found) const {
        float *wide_q = mine.floats.data(), *scores = wide_q + TILE * group() * d();
        float* wide = scores + TILE * group() * (CHUNK + STEP);
        const int64_t begin = first(tile) + number * CHUNK;
        const int64_t end = std::min(begin + CHUNK, tile.context + tile.count - 1);
        mine.counts.clear();
        for (int64_t t = 0; t < tile.count; t++) {
            const T* from = q + ((tile.query + t) * num_heads + head * group()) * d();
            for (int64_t i = 0; i < group() * d(); i++) wide_q[t * group() * d() + i] = widen(from[i]) * scale;
            mine.counts.insert(mine.counts.end(), group(), std::min(end, tile.context + t) - begin);
        }
        cache.find(tile.sequence, head, begin, end, mine.runs);
        attend_chunk<T, D>(wide_q, mine.runs, mine.counts, d(), softcap, scores, wide, found);
    }

    // Puts the pieces of a tile together, which lie `stride` apart.
    void combine(const Tile& tile, int64_t head, const float* found, int64_t stride, float* total) const {
        for (int64_t r = 0; r < tile.count * group(); r++, found += d() + EXTRA) {
            const int64_t t = r / group(), count = num_pieces(tile, tile.context + t);
            float greatest = -INFINITY, sum = 0;
            for (int64_t i = 0; i < count; i++) greatest = std::max(greatest, found[i * stride + d()]);
            std::fill(total, total + d(), 0.0f);
            for (int64_t i = 0; i < count; i++) {
                const float* piece = found + i * stride;
                const float weight = exp_of(piece[d()] - greatest);
                sum += weight * piece[d() + 1];
#pragma omp simd
                for (int64_t j = 0; j < d(); j++) total[j] += weight * piece[j];
            }
            T* to = out + ((tile.query + t) * num_heads + head * group() + r % group()) * d();
            for (int64_t j = 0; j < d(); j++) to[j] = narrow<T>(total[j] / sum);
        }
    }

    // One task for each tile and key-value head: enough of them to keep all threads busy.
    void run_by_head(bool is_parallel) const {
        int64_t most = 0;
        for (const Tile& tile : tiles) most = std::max(most, num_pieces(tile));
#pragma omp parallel if (is_parallel)
        {
            Room mine;
            mine.floats.resize(room() + most * width());
            float* found = mine.floats.data() + room();
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < num_tiles() * cache.num_kv_heads; task++) {
                const Tile& tile = tiles[task / cache.num_kv_heads];
                const int64_t head = task % cache.num_kv_heads;
                for (int64_t i = 0; i < num_pieces(tile); i++) attend(tile, head, i, mine, found + i * width());
                combine(tile, head, found, width(), mine.floats.data());
            }
        }
    }

    // One task for each piece, too, of few tiles: the same sums in the same order.
    void run_by_piece() const {
        std::vector<int64_t> owners, starts;  // the tile of a piece, and the first piece of a tile
        for (int64_t i = 0; i < num_tiles(); i++) {
            starts.push_back(static_cast<int64_t>(owners.size()));
            owners.insert(owners.end(), num_pieces(tiles[i]), i);
        }
        const int64_t heads = cache.num_kv_heads;
        const int64_t stride = heads * width(), num_tasks = static_cast<int64_t>(owners.size()) * heads;
        const std::unique_ptr<float[]> found(new float[num_tasks * width()]);
#pragma omp parallel
        {
            Room mine;
            mine.floats.resize(room());
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < num_tasks; task++) {
                const int64_t piece = task / heads, number = piece - starts[owners[piece]];
                attend(tiles[owners[piece]], task % heads, number, mine, found.get() + task * width());
            }
#pragma omp for
            for (int64_t task = 0; task < num_tiles() * heads; task++) {
                const int64_t i = task / heads, head = task % heads;
                const float* mine_found = found.get() + starts[i] * stride + head * width();
                combine(tiles[i], head, mine_found, stride, mine.floats.data());
            }
        }
    }

    void run() const {
        int64_t num_keys = 0;
        for (const Tile& tile : tiles) num_keys += tile.count * (tile.context - first(tile));
        const bool is_much = num_keys * num_heads * d() > 8 * SMALL;
        if (is_much && num_tiles() * cache.num_kv_heads < 4 * num_threads()) return run_by_piece();
        run_by_head(is_much);
    }
};

// Of sequence s the tokens [starts[s], starts[s + 1]). With a window each token's keys begin elsewhere.
std::vector<Tile> tiles_of(const int32_t* starts, const int32_t* contexts, int64_t num_sequences, int64_t window) {
    std::vector<Tile> tiles;
    for (int64_t s = 0; s < num_sequences; s++) {
        for (int64_t t = starts[s]; t < starts[s + 1]; t += tiles.back().count) {
            const int64_t count = std::min<int64_t>(TILE, starts[s + 1] - t);
            const int64_t context = contexts[s] - (starts[s + 1] - 1 - t);
            tiles.push_back({s, t, window && context + count - 1 > window ? 1 : count, context});
        }
    }
    return tiles;
}

}  // namespace

EXPORT void tandem_paged_attention(int64_t type, const void* q, const void* keys, const void* values,
                                   const int32_t* starts, const int32_t* contexts, const int32_t* tables,
                                   int64_t table_stride, int64_t num_sequences, int64_t num_heads,
                                   int64_t num_kv_heads, int64_t block_size, int64_t d, float scale, float softcap,
                                   int64_t window, void* out) {
    with_type(type, [&](auto zero) {
        using T = decltype(zero);
        const Cache<T> cache{static_cast<const T*>(keys), static_cast<const T*>(values), tables, table_stride,
                             num_kv_heads, block_size, d};
        auto run = [&](auto size) {
            Attention<T, decltype(size)::value>{static_cast<const T*>(q), cache,
                                                tiles_of(starts, contexts, num_sequences, window), num_heads, scale,
                                                softcap, window, static_cast<T*>(out)}.run();
        };
        switch (d) {
            case 64: return run(std::integral_constant<int64_t, 64>{});
            case 128: return run(std::integral_constant<int64_t, 128>{});
            default: return run(std::integral_constant<int64_t, 0>{});
        }
    });
}
