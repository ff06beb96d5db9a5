// matmul.py on a CPU.
#include <algorithm>
#include <cstring>

#include "scalar.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

// Rows and vectors of outputs that are multiplied together: as many sums as registers hold beside the weights.
#ifdef __AVX512F__
constexpr int64_t LANES = 16, ROWS = 6;
constexpr int64_t parts_of(int64_t rows) { return 4; }
#else
constexpr int64_t LANES = 8, ROWS = 4;
constexpr int64_t parts_of(int64_t rows) { return rows > 2 ? 2 : 8 / rows; }
#endif

constexpr int64_t WIDTH = 64;    // outputs of a block: one word for each, of two neighbouring inputs
constexpr int64_t CHUNK = 96;    // rows of a task
constexpr int64_t DEPTH = 2048;  // pairs of inputs at once, so that a block's part stays in the cache for all rows

// A vector of sums, and the products of a pair of inputs that are added to them: in float32, in the order of the
// inputs, whatever the other rows.
#ifdef __AVX512BF16__
using Sums = __m512;
using Words = __m512bh;
inline Words pair_of(const BFloat16* x) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    return (__m512bh)_mm512_set1_epi32(pair);
}
inline Sums add_products(Sums sums, Words weights, Words pair) { return _mm512_dpbf16_ps(sums, weights, pair); }
#else
typedef float Sums __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
struct Pair {
    float even, odd;
};
inline Pair pair_of(const BFloat16* x) { return {widen(x[0]), widen(x[1])}; }
inline Sums add_products(Sums sums, Words weights, Pair pair) {
    return sums + (Sums)(weights << 16) * pair.even + (Sums)(weights & 0xffff0000u) * pair.odd;
}
#endif

// One vector: of more at once compilers would not keep the parts in registers.
template <class V>
inline V load(const void* from) {
    V x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

// sums [R, WIDTH] += x [R, 2 * num_pairs] times a part of a block.
template <int64_t R, int64_t PARTS = parts_of(R)>
void multiply(const BFloat16* block, const BFloat16* x, int64_t x_stride, int64_t num_pairs, float* sums) {
    for (int64_t first = 0; first < WIDTH; first += PARTS * LANES) {
        Sums all[R][PARTS];
        for (int64_t r = 0; r < R; r++) {
            for (int64_t j = 0; j < PARTS; j++) all[r][j] = load<Sums>(sums + r * WIDTH + first + j * LANES);
        }
        for (int64_t p = 0; p < num_pairs; p++) {
            Words weights[PARTS];
            for (int64_t j = 0; j < PARTS; j++) weights[j] = load<Words>(block + (p * WIDTH + first + j * LANES) * 2);
            for (int64_t r = 0; r < R; r++) {
                const auto pair = pair_of(x + r * x_stride + 2 * p);
                for (int64_t j = 0; j < PARTS; j++) all[r][j] = add_products(all[r][j], weights[j], pair);
            }
        }
        for (int64_t r = 0; r < R; r++) {
            for (int64_t j = 0; j < PARTS; j++) {
                std::memcpy(sums + r * WIDTH + first + j * LANES, &all[r][j], sizeof(Sums));
            }
        }
    }
}

void multiply(int64_t rows, const BFloat16* block, const BFloat16* x, int64_t x_stride, int64_t num_pairs,
              float* sums) {
    switch (rows) {
        case 1: return multiply<1>(block, x, x_stride, num_pairs, sums);
        case 2: return multiply<2>(block, x, x_stride, num_pairs, sums);
        case 3: return multiply<3>(block, x, x_stride, num_pairs, sums);
        case 4: return multiply<4>(block, x, x_stride, num_pairs, sums);
#ifdef __AVX512F__
        case 5: return multiply<5>(block, x, x_stride, num_pairs, sums);
        case 6: return multiply<6>(block, x, x_stride, num_pairs, sums);
#endif
    }
}

inline void write(const float* sums, const float* biases, int64_t width, BFloat16* y) {
    if (width == WIDTH) {
#pragma omp simd
        for (int64_t i = 0; i < WIDTH; i++) y[i] = narrow<BFloat16>(sums[i] + biases[i]);
        return;
    }
    for (int64_t i = 0; i < width; i++) y[i] = narrow<BFloat16>(sums[i] + biases[i]);
}

}  // namespace

// weight: [ceil(num_outputs / WIDTH), num_pairs, WIDTH, 2]. y: [num_rows, num_outputs].
EXPORT void tandem_matmul(const void* weight, const void* x, int64_t x_stride, int64_t num_rows, const void* bias,
                          int64_t num_outputs, int64_t num_pairs, void* y) {
    const auto *w = static_cast<const BFloat16*>(weight), *from = static_cast<const BFloat16*>(x);
    const auto* b = static_cast<const BFloat16*>(bias);
    auto* to = static_cast<BFloat16*>(y);
    const int64_t num_chunks = (num_rows + CHUNK - 1) / CHUNK;
    const int64_t num_tasks = (num_outputs + WIDTH - 1) / WIDTH * num_chunks;
#pragma omp parallel for schedule(static) if (num_rows * num_outputs * num_pairs > 4 * SMALL)
    for (int64_t task = 0; task < num_tasks; task++) {
        const int64_t first = task / num_chunks * WIDTH, start = task % num_chunks * CHUNK;
        const int64_t count = std::min(CHUNK, num_rows - start), width = std::min(WIDTH, num_outputs - first);
        const BFloat16* block = w + first * 2 * num_pairs;
        float sums[CHUNK * WIDTH] __attribute__((aligned(64))), biases[WIDTH] = {};
        for (int64_t i = 0; b != nullptr && i < width; i++) biases[i] = widen(b[first + i]);
        for (int64_t p = 0; p < num_pairs; p += DEPTH) {
            const int64_t depth = std::min(DEPTH, num_pairs - p);
            for (int64_t r = 0; r < count; r += ROWS) {
                const int64_t rows = std::min(ROWS, count - r);
                float* mine = sums + r * WIDTH;
                if (p == 0) std::fill(mine, mine + rows * WIDTH, 0.0f);
                multiply(rows, block + p * 2 * WIDTH, from + (start + r) * x_stride + 2 * p, x_stride, depth, mine);
                if (p + depth < num_pairs) continue;
                for (int64_t k = 0; k < rows; k++) {
                    write(mine + k * WIDTH, biases, width, to + (start + r + k) * num_outputs + first);
                }
            }
        }
    }
}
