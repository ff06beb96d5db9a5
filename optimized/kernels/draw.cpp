// draw.py on a CPU.
#include "scalar.h"

namespace {

constexpr int64_t BLOCK = 256;
constexpr float NOISE_MAX = 16.64f;  // no noise is greater

// Natural logarithm of a positive number (Moshier's Cephes, logf.c), to two units in the last place, also near 1.
inline float log_of(float x) {
    const int32_t bits = __builtin_bit_cast(int32_t, x);
    const float half = __builtin_bit_cast(float, (bits & 0x7fffff) | 0x3f000000);  // in [1/2, 1)
    const bool is_small = half < 0.707106781f;
    const float e = static_cast<float>((bits >> 23) - 126 - (is_small ? 1 : 0));
    const float r = (is_small ? half + half : half) - 1.0f;
    const float z = r * r;
    float y = 7.0376836292e-2f;
    y = y * r - 1.1514610310e-1f;
    y = y * r + 1.1676998740e-1f;
    y = y * r - 1.2420140846e-1f;
    y = y * r + 1.4249322787e-1f;
    y = y * r - 1.6668057665e-1f;
    y = y * r + 2.0000714765e-1f;
    y = y * r - 2.4999993993e-1f;
    y = y * r + 3.3333331174e-1f;
    y = y * r * z + e * -2.12194440e-4f - 0.5f * z;
    return r + y + e * 0.693359375f;
}

// Gumbel noise from the first word of Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
inline float noise(uint32_t token, uint32_t position, uint32_t choice, uint64_t seed) {
    uint32_t c0 = token, c1 = position, c2 = choice, c3 = 0;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u, p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
        c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(p1);
        c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const float u = (static_cast<float>(static_cast<int32_t>(c0 >> 9)) + 0.5f) * 0x1p-23f;
    return -log_of(-log_of(u));
}

// The first token of the greatest score. Blocks that could not win with the greatest noise are passed over.
int64_t draw(const float* z, int64_t size, uint64_t seed, uint32_t position, uint32_t choice) {
    float greatest = -INFINITY, best = -INFINITY;
#pragma omp simd reduction(max : greatest)
    for (int64_t i = 0; i < size; i++) greatest = z[i] > greatest ? z[i] : greatest;
    int64_t winner = 0;
    float scores[BLOCK];
    for (int64_t start = 0; start < size; start += BLOCK) {
        const int64_t count = start + BLOCK < size ? BLOCK : size - start;
        float top = -INFINITY;
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < count; i++) top = z[start + i] > top ? z[start + i] : top;
        if (!(top - greatest + NOISE_MAX >= best)) continue;
        top = -INFINITY;
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < count; i++) {
            scores[i] = z[start + i] - greatest + noise(static_cast<uint32_t>(start + i), position, choice, seed);
            top = scores[i] > top ? scores[i] : top;
        }
        if (!(top > best)) continue;
        best = top;
        int64_t i = 0;
        while (scores[i] != top) i++;
        winner = start + i;
    }
    return winner;
}

}  // namespace

EXPORT void tandem_draw(const float* z, int64_t stride, int64_t num_rows, int64_t size, const int64_t* seeds,
                        const int64_t* positions, const int64_t* choices, int64_t* tokens) {
#pragma omp parallel for schedule(dynamic, 1) if (num_rows * size > SMALL)
    for (int64_t r = 0; r < num_rows; r++) {
        tokens[r] = draw(z + r * stride, size, static_cast<uint64_t>(seeds[r]), static_cast<uint32_t>(positions[r]),
                         static_cast<uint32_t>(choices[r]));
    }
}
