// What sampling and learning compute between their products on a CPU, each in one pass over the numbers.
//
// Compiled for one type of numbers (NUMBER: float or bfloat16), which lie in rows, and one shape of attention (WIDTH:
// numbers of a head, a multiple of 16; SHARE: query heads of a group). Sums are float32. OpenMP's threads take rows, or
// groups of sequences, and no sum depends on how many threads there are.

#include <cstdint>
#include <cstring>

namespace {

struct bfloat16 {
    uint16_t bits;
};

// Sixteen numbers that are computed with together.
typedef float block __attribute__((vector_size(64)));
typedef int32_t signed_block __attribute__((vector_size(64)));
typedef uint32_t unsigned_block __attribute__((vector_size(64)));
typedef uint16_t half_block __attribute__((vector_size(32)));

const int BLOCK = 16, PARTS = WIDTH / BLOCK;

inline block widened(block x) { return x; }

inline block widened(half_block x) {
    unsigned_block bits = __builtin_convertvector(x, unsigned_block) << 16;
    block y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}

inline void narrow(block x, block& to) { to = x; }

inline void narrow(block x, half_block& to) {  // to the nearest, ties to the even one; what is no number stays none
    unsigned_block bits;
    std::memcpy(&bits, &x, sizeof bits);
    unsigned_block rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to = __builtin_convertvector(rounded | ((unsigned_block)(x != x) & 0x7fc0), half_block);
}

template <typename T>
struct in_memory;
template <>
struct in_memory<float> {
    typedef block type;
};
template <>
struct in_memory<bfloat16> {
    typedef half_block type;
};

// A block of a row, or the few numbers at its end, followed by zeros.
template <typename T>
inline block load(const T* from, int64_t count = BLOCK) {
    typename in_memory<T>::type x = {};
    std::memcpy(&x, from, count < BLOCK ? count * sizeof(T) : sizeof x);
    return widened(x);
}

template <typename T>
inline void store(T* to, block x, int64_t count = BLOCK) {
    typename in_memory<T>::type y;
    narrow(x, y);
    std::memcpy(to, &y, count < BLOCK ? count * sizeof(T) : sizeof y);
}

// Calls with the place and the length of each block of a row.
template <typename Call>
inline void blocks(int64_t width, Call call) {
    int64_t i = 0;
    for (; i + BLOCK <= width; i += BLOCK) call(i, int64_t(BLOCK));
    if (i < width) call(i, width - i);
}

// e to the power of x, which is bounded to what a float can hold (Cephes's expf, to some two units in the last place).
inline block exponential(block x) {
    const block zero = {};
    x = x < -87.0f ? zero - 87.0f : x;
    x = x > 88.0f ? zero + 88.0f : x;
    block turns = x * 1.44269504088896341f;
    signed_block whole = __builtin_convertvector(turns + (turns < 0 ? zero - 0.5f : zero + 0.5f), signed_block);
    block rounded = __builtin_convertvector(whole, block);
    block rest = x - rounded * 0.693359375f + rounded * 2.12194440e-4f;
    block y = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1.0f;
    signed_block bits = (whole + 127) << 23;
    block power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}

// The sum of each of sixteen blocks, which are overwritten.
inline block sums(block* x) {
#if defined(__clang__) || __GNUC__ >= 12
#define HALVES(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define HALVES(a, b, ...) __builtin_shuffle(a, b, signed_block{__VA_ARGS__})
#endif
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2)
        x[i] = HALVES(x[i], x[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
               HALVES(x[i], x[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 4)
        x[i] = HALVES(x[i], x[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               HALVES(x[i], x[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 8)
        x[i] = HALVES(x[i], x[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               HALVES(x[i], x[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    return HALVES(x[0], x[8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           HALVES(x[0], x[8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
#undef HALVES
}

// The first numbers of a block, and another in place of the rest.
inline block bounded(block x, int64_t count, float rest) {
    const signed_block lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const block zero = {};
    return lanes < int32_t(count) ? x : zero + rest;
}

inline float total(block x) {
    float found = 0;
    for (int i = 0; i < BLOCK; i++) found += x[i];
    return found;
}

// Each number becomes e to the power of what it is below the largest; returns their sum.
inline float exponentials(float* x, int64_t width) {
    block most = block{} + x[0], powers = {};
    blocks(width, [&](int64_t i, int64_t count) {
        block next = bounded(load(x + i, count), count, x[0]);
        most = next > most ? next : most;
    });
    float largest = most[0];
    for (int i = 1; i < BLOCK; i++) largest = most[i] > largest ? most[i] : largest;
    blocks(width, [&](int64_t i, int64_t count) {
        block power = bounded(exponential(load(x + i, count) - largest), count, 0);
        powers += power;
        store(x + i, power, count);
    });
    return total(powers);
}

// Heads whose sums stay in registers.
const int TOGETHER = 16 / PARTS < 1 ? 1 : 16 / PARTS < SHARE ? 16 / PARTS : SHARE;
const int REST = SHARE % TOGETHER;

const int AHEAD = 16;  // rows that are asked for before they are read

inline void fetch(const NUMBER* row) {
    for (size_t byte = 0; byte < WIDTH * sizeof(NUMBER); byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(row) + byte);
}

// Attention of HEADS query heads over the first `length` tokens of one sequence and group; scores: HEADS * stride.
template <int HEADS>
void mix(const NUMBER* queries, const NUMBER* keys, const NUMBER* values, NUMBER* out, float* scores, int64_t length,
         int64_t stride) {
    block query[HEADS][PARTS];
    for (int head = 0; head < HEADS; head++)
        for (int part = 0; part < PARTS; part++) query[head][part] = load(queries + head * WIDTH + part * BLOCK);
    for (int64_t first = 0; first < length; first += BLOCK) {
        block dots[HEADS][BLOCK];
#pragma GCC unroll 4
        for (int i = 0; i < BLOCK; i++) {  // past the end the last key again, whose scores nobody reads
            const NUMBER* key = keys + (first + i < length ? first + i : length - 1) * WIDTH;
            fetch(key + AHEAD * WIDTH);
            block x[PARTS];
#pragma GCC unroll 16
            for (int part = 0; part < PARTS; part++) x[part] = load(key + part * BLOCK);
#pragma GCC unroll 16
            for (int head = 0; head < HEADS; head++) {
                block dot = query[head][0] * x[0];
#pragma GCC unroll 16
                for (int part = 1; part < PARTS; part++) dot += query[head][part] * x[part];
                dots[head][i] = dot;
            }
        }
        for (int head = 0; head < HEADS; head++) {
            block found = sums(dots[head]);
            std::memcpy(scores + head * stride + first, &found, sizeof found);
        }
    }
    float scale[HEADS];
    for (int head = 0; head < HEADS; head++)
        scale[head] = 1.0f / exponentials(scores + head * stride, length);
    block mixed[HEADS][PARTS] = {};
    for (int64_t place = 0; place < length; place++) {
        const NUMBER* value = values + place * WIDTH;
        fetch(value + AHEAD * WIDTH);
#pragma GCC unroll 16
        for (int part = 0; part < PARTS; part++) {
            block x = load(value + part * BLOCK);
#pragma GCC unroll 16
            for (int head = 0; head < HEADS; head++) mixed[head][part] += scores[head * stride + place] * x;
        }
    }
    for (int head = 0; head < HEADS; head++)
        for (int part = 0; part < PARTS; part++)
            store(out + head * WIDTH + part * BLOCK, mixed[head][part] * scale[head]);
}

}  // namespace

extern "C" {

// sum = x + y, then out = sum by the root of its mean square, times weight, of each row; the factor goes to scales.
// y, weight and scales may be missing; sum may be x.
void add_normalise(const float* x, const NUMBER* y, const float* weight, float* sum, NUMBER* out, float* scales,
                   int64_t rows, int64_t width, float epsilon) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t first = row * width;
        block squares = {};
        blocks(width, [&](int64_t i, int64_t count) {
            block number = load(x + first + i, count);
            if (y) number += load(y + first + i, count);
            store(sum + first + i, number, count);
            squares += number * number;
        });
        const float scale = 1.0f / __builtin_sqrtf(total(squares) / float(width) + epsilon);
        if (scales) scales[row] = scale;
        blocks(width, [&](int64_t i, int64_t count) {
            block number = load(sum + first + i, count) * scale;
            store(out + first + i, weight ? number * load(weight + i, count) : number, count);
        });
    }
}

// The gradients of that: of sum (slope) and out (out_slope) to x (x_slope) and y (y_slope, which may be missing).
void add_normalise_backward(const float* sum, const float* scales, const float* weight, const float* slope,
                            const NUMBER* out_slope, float* x_slope, NUMBER* y_slope, float* weight_slope, int64_t rows,
                            int64_t width) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            const int64_t first = row * width;
            const float scale = scales[row];
            block products = {};
            blocks(width, [&](int64_t i, int64_t count) {
                products += load(out_slope + first + i, count) * load(weight + i, count) * load(sum + first + i, count);
            });
            const float along = total(products) * scale * scale / float(width);
            blocks(width, [&](int64_t i, int64_t count) {
                block across = load(out_slope + first + i, count) * load(weight + i, count);
                block found = scale * (across - along * load(sum + first + i, count));
                found += load(slope + first + i, count);
                store(x_slope + first + i, found, count);
                if (y_slope) store(y_slope + first + i, found, count);
            });
        }
#pragma omp for schedule(static)
        for (int64_t part = 0; part < (width + BLOCK - 1) / BLOCK; part++) {
            const int64_t i = part * BLOCK, count = width - i < BLOCK ? width - i : BLOCK;
            block found = {};
            for (int64_t row = 0; row < rows; row++)
                found += load(out_slope + row * width + i, count) * load(sum + row * width + i, count) * scales[row];
            store(weight_slope + i, found, count);
        }
    }
}

// out = silu(gates) * ups, of rows; the next row of gates and of ups lies a stride further.
void gate(const NUMBER* gates, const NUMBER* ups, NUMBER* out, int64_t rows, int64_t width, int64_t stride) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++)
        blocks(width, [&](int64_t i, int64_t count) {
            block x = load(gates + row * stride + i, count);
            store(out + row * width + i, x / (1.0f + exponential(-x)) * load(ups + row * stride + i, count), count);
        });
}

// The gradients of that, of dense rows.
void gate_backward(const NUMBER* gates, const NUMBER* ups, const NUMBER* slope, NUMBER* gate_slope, NUMBER* up_slope,
                   int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++)
        blocks(width, [&](int64_t i, int64_t count) {
            const int64_t place = row * width + i;
            block x = load(gates + place, count), found = load(slope + place, count);
            block share = 1.0f / (1.0f + exponential(-x)), silu = x * share;
            store(up_slope + place, found * silu, count);
            store(gate_slope + place, found * load(ups + place, count) * (share + silu * (1.0f - share)), count);
        });
}

// Rotary position embedding, in place, of the first `turned` of a row's `heads`.
void rotate(NUMBER* x, const float* cos, const float* sin, int64_t rows, int64_t heads, int64_t turned) {
    const int half = WIDTH / 2;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t head = 0; head < turned; head++) {
            NUMBER* one = x + (row * heads + head) * WIDTH;
            NUMBER* other = one + half;
            blocks(half, [&](int64_t i, int64_t count) {
                block a = load(one + i, count), b = load(other + i, count);
                block c = load(cos + row * half + i, count), s = load(sin + row * half + i, count);
                store(one + i, a * c - b * s, count);
                store(other + i, b * c + a * s, count);
            });
        }
    }
}

// Puts the keys and values of each chunk's tokens into its slot, and mixes the slot's values for each token's queries.
//
// Rows of tokens: queries (SHARE heads of each group), keys and values, each with its stride. Memory: key_slots and
// value_slots (slots, groups, room, WIDTH). Chunks: slot, first row, first place in the slot, tokens.
// out: (rows, groups, SHARE, WIDTH).
void attend(const NUMBER* queries, const NUMBER* keys, const NUMBER* values, int64_t query_stride, int64_t key_stride,
            int64_t value_stride, NUMBER* key_slots, NUMBER* value_slots, NUMBER* out, const int64_t (*chunks)[4],
            int64_t count, int64_t groups, int64_t room) {
#pragma omp parallel
    {
        const int64_t stride = room + BLOCK;
        float* scores = new float[TOGETHER * stride];
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < count * groups; item++) {
            const int64_t* chunk = chunks[item / groups];
            const int64_t group = item % groups, slot = (chunk[0] * groups + group) * room * WIDTH;
            for (int64_t i = 0; i < chunk[3]; i++) {
                const int64_t row = chunk[1] + i, place = chunk[2] + i, length = place + 1;
                NUMBER* known_keys = key_slots + slot;
                NUMBER* known_values = value_slots + slot;
                const NUMBER* key = keys + row * key_stride + group * WIDTH;
                const NUMBER* value = values + row * value_stride + group * WIDTH;
                std::memcpy(known_keys + place * WIDTH, key, WIDTH * sizeof(NUMBER));
                std::memcpy(known_values + place * WIDTH, value, WIDTH * sizeof(NUMBER));
                const NUMBER* asked = queries + row * query_stride + group * SHARE * WIDTH;
                NUMBER* mixed = out + (row * groups + group) * SHARE * WIDTH;
                int head = 0;
                for (; head + TOGETHER <= SHARE; head += TOGETHER)
                    mix<TOGETHER>(asked + head * WIDTH, known_keys, known_values, mixed + head * WIDTH, scores, length,
                                  stride);
                if (REST)
                    mix<REST ? REST : 1>(asked + head * WIDTH, known_keys, known_values, mixed + head * WIDTH, scores,
                                         length, stride);
            }
        }
        delete[] scores;
    }
}

}  // extern "C"
