// matvec.py on a CPU.
#include <algorithm>
#include <vector>

#include "scalar.h"

namespace {

typedef float Lanes __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));

constexpr int64_t WIDTH = 64;           // outputs of a block: one word for each, of two neighbouring inputs
constexpr int64_t PARTS = WIDTH / 16;

// out [R, WIDTH] = x [R, num_pairs * 2] times one block.
template <int64_t R>
void multiply_block(const uint32_t* block, const float* x, int64_t num_pairs, float* out) {
    Lanes sums[R][PARTS] = {};
    for (int64_t p = 0; p < num_pairs; p++) {
        for (int64_t j = 0; j < PARTS; j++) {
            Words w;
            __builtin_memcpy(&w, block + p * WIDTH + j * 16, sizeof w);
            const Lanes even = (Lanes)(w << 16), odd = (Lanes)(w & 0xffff0000u);
            for (int64_t r = 0; r < R; r++) {
                const float* pair = x + (r * num_pairs + p) * 2;
                sums[r][j] += even * pair[0] + odd * pair[1];
            }
        }
    }
    __builtin_memcpy(out, sums, sizeof sums);
}

template <int64_t R>
void multiply(const BFloat16* weight, const BFloat16* x, int64_t x_stride, const BFloat16* bias, int64_t num_outputs,
              int64_t num_inputs, int64_t padded_inputs, BFloat16* y) {
    std::vector<float> wide(R * num_inputs);
    for (int64_t r = 0; r < R; r++) {
        for (int64_t i = 0; i < num_inputs; i++) wide[r * num_inputs + i] = widen(x[r * x_stride + i]);
    }
#pragma omp parallel for schedule(static) if (num_outputs * num_inputs > 8 * SMALL)
    for (int64_t first = 0; first < num_outputs; first += WIDTH) {
        float sums[R * WIDTH];
        const auto* block = reinterpret_cast<const uint32_t*>(weight + first * padded_inputs);
        multiply_block<R>(block, wide.data(), num_inputs / 2, sums);
        const int64_t count = std::min(WIDTH, num_outputs - first);
        for (int64_t r = 0; r < R; r++) {
            for (int64_t i = 0; i < count; i++) {
                const float sum = sums[r * WIDTH + i] + (bias == nullptr ? 0.0f : widen(bias[first + i]));
                y[r * num_outputs + first + i] = narrow<BFloat16>(sum);
            }
        }
    }
}

}  // namespace

EXPORT void tandem_matvec(const void* weight, const void* x, int64_t x_stride, int64_t num_rows, const void* bias,
                          int64_t num_outputs, int64_t num_inputs, int64_t padded_inputs, void* y) {
    const auto* w = static_cast<const BFloat16*>(weight);
    const auto *from = static_cast<const BFloat16*>(x), *b = static_cast<const BFloat16*>(bias);
    auto* to = static_cast<BFloat16*>(y);
    switch (num_rows) {
        case 1: return multiply<1>(w, from, x_stride, b, num_outputs, num_inputs, padded_inputs, to);
        case 2: return multiply<2>(w, from, x_stride, b, num_outputs, num_inputs, padded_inputs, to);
        case 3: return multiply<3>(w, from, x_stride, b, num_outputs, num_inputs, padded_inputs, to);
        case 4: return multiply<4>(w, from, x_stride, b, num_outputs, num_inputs, padded_inputs, to);
    }
}
