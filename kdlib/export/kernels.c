/* The operations of a network in whole numbers. Values lie in memory as height x width x channels. */

typedef struct {                 /* where an operation looks, and what it writes */
    int height, width, channels; /* of the input */
    int out_height, out_width, out_channels;
    int kernel_height, kernel_width, stride_height, stride_width;
    int pad_top, pad_left, dilation_height, dilation_width;
    int zero_in, zero_out, low, high; /* zero points, and the limits of the output */
} Window;

typedef struct {
    Window window;
    int groups;
    const int8_t *weights; /* out_channels x kernel_height x kernel_width x channels / groups */
    const int32_t *biases, *multipliers; /* of each output channel */
    const uint8_t *shifts;
} Convolution;

/* sum * multiplier / 2^shift, rounded; >> of a negative number keeps its sign with every compiler in use. */
static int64_t rescale(int64_t sum, int32_t multiplier, int shift) {
    return (sum * multiplier + ((int64_t)1 << (shift - 1))) >> shift;
}

static int8_t clip(int64_t value, const Window *w) {
    value += w->zero_out;
    return (int8_t)(value < w->low ? w->low : value > w->high ? w->high : value);
}

#ifdef __ARM_FEATURE_SIMD32
#include <arm_acle.h>
#define ROTATED(bytes) ((bytes) >> 8 | (bytes) << 24)
#endif

/* Nearly all the time is spent here; not inlined, so that the loop has all registers for itself. */
__attribute__((noinline)) static int32_t dot(const int8_t *a, const int8_t *b, int count) {
    int32_t sum = 0;
#ifdef __ARM_FEATURE_SIMD32 /* Cortex-M4, M7, M33: two products by one instruction, of the even and the odd bytes */
    for (; count >= 4; count -= 4, a += 4, b += 4) {
        uint32_t x, y;
        __builtin_memcpy(&x, a, 4);
        __builtin_memcpy(&y, b, 4);
        sum = __smlad(__sxtb16(x), __sxtb16(y), sum);
        sum = __smlad(__sxtb16(ROTATED(x)), __sxtb16(ROTATED(y)), sum);
    }
#endif
    while (count-- > 0) sum += *a++ * *b++;
    return sum;
}

/* Copies what the window at (row, column) sees of `count` channels; what lies outside of the input is zero_in. */
static void gather(const Window *w, const int8_t *x, int row, int column, int count, int8_t *patch) {
    for (int ky = 0; ky < w->kernel_height; ky++) {
        const int y = row * w->stride_height - w->pad_top + ky * w->dilation_height;
        for (int kx = 0; kx < w->kernel_width; kx++) {
            const int at = column * w->stride_width - w->pad_left + kx * w->dilation_width;
            const int inside = y >= 0 && y < w->height && at >= 0 && at < w->width;
            const int8_t *from = inside ? x + (y * w->width + at) * w->channels : 0;
            for (int c = 0; c < count; c++) *patch++ = inside ? from[c] : (int8_t)w->zero_in;
        }
    }
}

/* patch: kernel_height * kernel_width * channels / groups bytes. */
static void convolve(const Convolution *c, const int8_t *x, int8_t *y, int8_t *patch) {
    const Window *w = &c->window;
    const int inputs = w->channels / c->groups, outputs = w->out_channels / c->groups;
    const int count = w->kernel_height * w->kernel_width * inputs;
    for (int row = 0; row < w->out_height; row++)
        for (int column = 0; column < w->out_width; column++)
            for (int group = 0; group < c->groups; group++) {
                gather(w, x + group * inputs, row, column, inputs, patch);
                for (int o = group * outputs; o < (group + 1) * outputs; o++) {
                    const int32_t sum = c->biases[o] + dot(patch, c->weights + o * count, count);
                    *y++ = clip(rescale(sum, c->multipliers[o], c->shifts[o]), w);
                }
            }
}

/* The last layer, whose kernel is the whole input: logits are not clipped to 8 bits. */
static void classify(const Convolution *c, const int8_t *x, int32_t *logits) {
    const int count = c->window.height * c->window.width * c->window.channels;
    for (int o = 0; o < c->window.out_channels; o++) {
        const int32_t sum = c->biases[o] + dot(x, c->weights + o * count, count);
        logits[o] = (int32_t)rescale(sum, c->multipliers[o], c->shifts[o]);
    }
}

/* What a network gives that ends in another layer: 8 bits, from their zero point on. */
static void widen(const int8_t *x, int count, int zero, int32_t *logits) {
    for (int i = 0; i < count; i++) logits[i] = x[i] - zero;
}

static void add(const Window *w, const int8_t *a, const int8_t *b, int zero_b, int32_t multiplier_a,
                int32_t multiplier_b, int shift, int8_t *y) {
    const int count = w->height * w->width * w->channels;
    for (int i = 0; i < count; i++) {
        const int64_t sum = (int64_t)(a[i] - w->zero_in) * multiplier_a + (int64_t)(b[i] - zero_b) * multiplier_b;
        y[i] = clip(rescale(sum, 1, shift), w);
    }
}

static void relu(const Window *w, const int8_t *x, int8_t *y) {
    const int count = w->height * w->width * w->channels;
    for (int i = 0; i < count; i++) y[i] = (int8_t)(x[i] < w->low ? w->low : x[i] > w->high ? w->high : x[i]);
}

/* Both poolings look at one channel at a time; what lies outside of the input counts for nothing. */
static void max_pool(const Window *w, const int8_t *x, int8_t *y) {
    for (int row = 0; row < w->out_height; row++)
        for (int column = 0; column < w->out_width; column++)
            for (int c = 0; c < w->channels; c++) {
                int largest = -128;
                for (int ky = 0; ky < w->kernel_height; ky++)
                    for (int kx = 0; kx < w->kernel_width; kx++) {
                        const int i = row * w->stride_height - w->pad_top + ky * w->dilation_height;
                        const int j = column * w->stride_width - w->pad_left + kx * w->dilation_width;
                        if (i < 0 || i >= w->height || j < 0 || j >= w->width) continue;
                        const int value = x[(i * w->width + j) * w->channels + c];
                        if (value > largest) largest = value;
                    }
                *y++ = (int8_t)largest;
            }
}

static void average_pool(const Window *w, const int8_t *x, int32_t multiplier, int shift, int8_t *y) {
    for (int row = 0; row < w->out_height; row++)
        for (int column = 0; column < w->out_width; column++)
            for (int c = 0; c < w->channels; c++) {
                int32_t sum = 0;
                for (int ky = 0; ky < w->kernel_height; ky++)
                    for (int kx = 0; kx < w->kernel_width; kx++) {
                        const int i = row * w->stride_height - w->pad_top + ky;
                        const int j = column * w->stride_width - w->pad_left + kx;
                        if (i < 0 || i >= w->height || j < 0 || j >= w->width) continue;
                        sum += x[(i * w->width + j) * w->channels + c] - w->zero_in;
                    }
                *y++ = clip(rescale(sum, multiplier, shift), w);
            }
}
