// sample.py on a CPU.
#include "scalar.h"

#include <algorithm>
#include <functional>
#include <vector>

namespace {

constexpr int64_t BLOCK = 256;
constexpr float NEVER = -INFINITY;
constexpr float NOISE_MAX = 16.64f;  // no noise is greater

inline float greatest_of(const float* x, int64_t count) {
    float greatest = NEVER;
#pragma omp simd reduction(max : greatest)
    for (int64_t i = 0; i < count; i++) greatest = x[i] > greatest ? x[i] : greatest;
    return greatest;
}

// As above, but not a number if any is none.
inline float greatest_or_nan(const float* x, int64_t size) {
    float greatest = NEVER;
    int is_spoiled = 0;
#pragma omp simd reduction(max : greatest) reduction(| : is_spoiled)
    for (int64_t i = 0; i < size; i++) {
        greatest = x[i] > greatest ? x[i] : greatest;
        is_spoiled |= x[i] != x[i];
    }
    return is_spoiled ? NAN : greatest;
}

// The first place of `value`; 0 if it is nowhere, such as NaN.
inline int64_t first_of(const float* x, int64_t size, float value) {
    for (int64_t start = 0; start < size; start += BLOCK) {
        const int64_t end = std::min(start + BLOCK, size);
        int is_here = 0;
#pragma omp simd reduction(| : is_here)
        for (int64_t i = start; i < end; i++) is_here |= x[i] == value;
        if (is_here) return std::find(x + start, x + end, value) - x;
    }
    return 0;
}

// ------------------------------------------------------------------ top-k

// The k-th greatest of x, or -inf if fewer are greater than that. Among the `kept`, all that may be it.
float kth_of(const float* x, int64_t size, int64_t k, std::vector<float>& kept) {
    const auto order = [&] { std::nth_element(kept.begin(), kept.begin() + (k - 1), kept.end(), std::greater<>()); };
    float bar = NEVER;  // k of those seen are at least this
    kept.clear();
    for (int64_t start = 0; start < size; start += BLOCK) {
        const int64_t count = std::min(BLOCK, size - start);
        if (!(greatest_of(x + start, count) > bar)) continue;
        for (int64_t i = start; i < start + count; i++) {
            if (x[i] > bar) kept.push_back(x[i]);
        }
        if (static_cast<int64_t>(kept.size()) < 2 * k) continue;
        order();
        kept.resize(k);
        bar = kept[k - 1];
    }
    if (static_cast<int64_t>(kept.size()) < k) return NEVER;
    order();
    return kept[k - 1];
}

// ------------------------------------------------------------------ top-p

constexpr int64_t BUCKETS = 2048;
constexpr double PER_NAT = 32.0;
constexpr double WEIGHTLESS = -(BUCKETS - 1) / PER_NAT;  // e^-64 of the greatest is nothing to a double

// e^x of x between WEIGHTLESS and 0, by 2^n times its Taylor series, to about a unit in the last place.
inline double share_of(double x) {
    const double shifted = x * 1.4426950408889634 + 0x1.8p52;  // n is in its last bits
    const double n = shifted - 0x1.8p52;
    const double r = (x - n * 0x1.62e42fefap-1) - n * 0x1.cf79abc9e3b39p-38;
    double y = 1.0 / 6227020800;
    y = y * r + 1.0 / 479001600;
    y = y * r + 1.0 / 39916800;
    y = y * r + 1.0 / 3628800;
    y = y * r + 1.0 / 362880;
    y = y * r + 1.0 / 40320;
    y = y * r + 1.0 / 5040;
    y = y * r + 1.0 / 720;
    y = y * r + 1.0 / 120;
    y = y * r + 1.0 / 24;
    y = y * r + 1.0 / 6;
    y = y * r + 0.5;
    y = y * r + 1.0;
    y = y * r + 1.0;
    return y * __builtin_bit_cast(double, (__builtin_bit_cast(int64_t, shifted) + 1023) << 52);
}

// How far below the greatest z is, kept above -inf.
inline double depth_of(float z, float greatest) {
    const double x = static_cast<double>(z) - static_cast<double>(greatest);
    return x > WEIGHTLESS ? x : WEIGHTLESS;
}

// The least z that has less than `top_p` of the mass of all z of at least `least` strictly above it. Buckets by depth
// say where about; only what is in that one is ordered.
float least_within_mass(const float* z, int64_t size, float greatest, float least, double top_p,
                        std::vector<float>& candidates) {
    static thread_local double sums[BUCKETS];
    double weights[BLOCK];
    int32_t buckets[BLOCK];
    const float bar = std::max(least, greatest + static_cast<float>(WEIGHTLESS));
    std::fill(sums, sums + BUCKETS, 0.0);
    for (int64_t start = 0; start < size; start += BLOCK) {
        const int64_t count = std::min(BLOCK, size - start);
        if (greatest_of(z + start, count) < bar) continue;
        for (int64_t i = 0; i < count; i++) {
            const double depth = depth_of(z[start + i], greatest);
            weights[i] = z[start + i] >= bar ? share_of(depth) : 0.0;
            buckets[i] = static_cast<int32_t>(depth * -PER_NAT);
        }
        for (int64_t i = 0; i < count; i++) sums[buckets[i]] += weights[i];
    }
    double total = 0.0;
    for (double sum : sums) total += sum;
    const double limit = top_p * total;
    double above = 0.0;
    int32_t last = 0;
    while (last < BUCKETS - 1 && above + sums[last] < limit) above += sums[last++];

    candidates.clear();
    for (int64_t start = 0; start < size; start += BLOCK) {
        const int64_t count = std::min(BLOCK, size - start);
        if (greatest_of(z + start, count) < bar) continue;
        for (int64_t i = start; i < start + count; i++) {
            if (z[i] >= bar && static_cast<int32_t>(depth_of(z[i], greatest) * -PER_NAT) == last)
                candidates.push_back(z[i]);
        }
    }
    auto first = candidates.begin(), end = candidates.end();
    while (end - first > 32) {  // halves, until few are left to be ordered
        const auto middle = first + (end - first) / 2;
        std::nth_element(first, middle, end, std::greater<>());
        double sum = 0.0;
        for (auto one = first; one != middle; one++) sum += share_of(depth_of(*one, greatest));
        if (above + sum < limit) {
            above += sum;
            first = middle;
        } else {
            end = middle;
        }
    }
    std::sort(first, end, std::greater<>());
    float kept = greatest;
    for (; first != end && above < limit; first++) {
        kept = *first;
        above += share_of(depth_of(kept, greatest));
    }
    return kept;
}

// ------------------------------------------------------------------ min-p and the draw

// The least x <= 0 whose e^x, rounded to float32, is at least `min_p`.
float least_of_share(float min_p) {
    if (!(min_p > 0)) return NEVER;
    uint32_t kept = 0, dropped = __builtin_bit_cast(uint32_t, 105.0f);  // of -x; the bits are in its order
    while (dropped - kept > 1) {
        const uint32_t middle = kept + (dropped - kept) / 2;
        const double x = -static_cast<double>(__builtin_bit_cast(float, middle));
        (static_cast<float>(std::exp(x)) >= min_p ? kept : dropped) = middle;
    }
    return -__builtin_bit_cast(float, kept);
}

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

struct Key {
    uint64_t seed;
    uint32_t position, choice;
};

// Gumbel noise from the first word of Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
inline float noise(uint32_t token, const Key& key) {
    uint32_t c0 = token, c1 = key.position, c2 = key.choice, c3 = 0;
    uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
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

// The first token of the greatest score among those of z >= least and z - greatest >= deepest. Blocks that could not
// win with the greatest noise are passed over.
int64_t draw(const float* z, int64_t size, float greatest, float least, float deepest, const Key& key) {
    float best = NEVER;
    int64_t winner = 0;
    float scores[BLOCK];
    for (int64_t start = 0; start < size; start += BLOCK) {
        const int64_t count = std::min(BLOCK, size - start);
        const float top = greatest_of(z + start, count);
        if (top < least || !(top - greatest + NOISE_MAX >= best)) continue;
#pragma omp simd
        for (int64_t i = 0; i < count; i++) {
            const float x = z[start + i] - greatest;
            const float score = x + noise(static_cast<uint32_t>(start + i), key);
            scores[i] = (z[start + i] >= least) & (x >= deepest) ? score : NEVER;
        }
        const float score = greatest_of(scores, count);
        if (!(score > best)) continue;
        best = score;
        winner = start + (std::find(scores, scores + count, score) - scores);
    }
    return winner;
}

}  // namespace

EXPORT void tandem_sample(const float* logits, int64_t stride, int64_t num_rows, int64_t size,
                          const float* temperature, const int64_t* top_k, const double* top_p, const float* min_p,
                          const int64_t* seeds, const int64_t* positions, const int64_t* choices, int64_t* tokens,
                          float* least, float* greatest) {
#pragma omp parallel for schedule(dynamic, 1) if (num_rows * size > 4 * SMALL)
    for (int64_t r = 0; r < num_rows; r++) {
        const float* row = logits + r * stride;
        const float t = temperature[r];
        greatest[r] = greatest_or_nan(row, size);
        least[r] = NEVER;
        if (!(t > 0) || !std::isfinite(greatest[r] / t)) {  // of a row with a NaN any token will do
            tokens[r] = first_of(row, size, greatest[r]);
            continue;
        }
        static thread_local std::vector<float> z, some;
        z.resize(size);
        for (int64_t i = 0; i < size; i++) z[i] = row[i] / t;
        const float top = greatest[r] / t;
        if (0 < top_k[r] && top_k[r] < size) least[r] = kth_of(z.data(), size, top_k[r], some);
        if (top_p[r] < 1) least[r] = least_within_mass(z.data(), size, top, least[r], top_p[r], some);
        const Key key = {static_cast<uint64_t>(seeds[r]), static_cast<uint32_t>(positions[r]),
                         static_cast<uint32_t>(choices[r])};
        tokens[r] = draw(z.data(), size, top, least[r], least_of_share(min_p[r]), key);
    }
}
