// From uint8 images to a network's input: crops, flips, shifts, colours, cutout, normalisation, MixUp and CutMix.
// cnn/inputs/augment.py and mixup.py define the numbers, and ReferenceBackend.resample and blend the images.
// Images have 3 channels. Pixels of the output are padded with zeros to 8 (bf16) or 4 channels: one wide store each.

template <class A> struct Rgb { A c[3]; };

__device__ __forceinline__ void store_pixel(bf16* out, const Rgb<float>& v) {
    unsigned red_green = narrow<bf16>(v.c[0]) | (unsigned)narrow<bf16>(v.c[1]) << 16;
    *(uint4*)out = make_uint4(red_green, narrow<bf16>(v.c[2]), 0, 0);
}
__device__ __forceinline__ void store_pixel(float* out, const Rgb<float>& v) {
    *(float4*)out = make_float4(v.c[0], v.c[1], v.c[2], 0);
}
__device__ __forceinline__ void store_pixel(double* out, const Rgb<double>& v) {
    ((double2*)out)[0] = make_double2(v.c[0], v.c[1]);
    ((double2*)out)[1] = make_double2(v.c[2], 0);
}
template <class T> struct Padded { static const int CHANNELS = 4; };
template <> struct Padded<bf16> { static const int CHANNELS = 8; };

// Top, bottom, left and right.
template <class I> __device__ __forceinline__ bool is_inside(const I* box, int i, int j) {
    return i >= box[0] && i < box[1] && j >= box[2] && j < box[3];
}

// Mean colour and 1 / std of the dataset, and one image's colour matrix, which acts on normalised colours.
template <class A> struct Colours {
    A mean[3], inverse[3], matrix[12];

    __device__ __forceinline__ void load(const A* means, const A* stds) {
        for (int c = 0; c < 3; c++) {
            mean[c] = means[c];
            inverse[c] = 1 / stds[c];
        }
    }
    __device__ __forceinline__ void load_matrix(const float* from) {
        for (int k = 0; k < 12; k++) matrix[k] = from ? (A)from[k] : (A)(k % 5 == 0);
    }
    __device__ __forceinline__ Rgb<A> apply(const Rgb<A>& v) const {
        Rgb<A> x, y;
        for (int c = 0; c < 3; c++) x.c[c] = (v.c[c] - mean[c]) * inverse[c];
        for (int c = 0; c < 3; c++) {
            const A* row = matrix + 4 * c;
            y.c[c] = row[0] * x.c[0] + row[1] * x.c[1] + row[2] * x.c[2] + row[3];
        }
        return y;
    }
};

// The colour at a position inside the image, by bilinear interpolation.
template <class A>
__device__ __forceinline__ Rgb<A> sample(const unsigned char* image, int height, int width, float y, float x) {
    int y0 = (int)y, x0 = (int)x;
    A down = (A)(y - y0), right = (A)(x - x0);
    const unsigned char* upper = image + ((long long)y0 * width + x0) * 3;
    const unsigned char* lower = upper + (y0 + 1 < height ? width * 3 : 0);
    int next = x0 + 1 < width ? 3 : 0;
    Rgb<A> v;
    for (int c = 0; c < 3; c++) {
        A above = (A)upper[c] * (1 - right) + (A)upper[next + c] * right;
        A below = (A)lower[c] * (1 - right) + (A)lower[next + c] * right;
        v.c[c] = above * (1 - down) + below * down;
    }
    return v;
}

// Output pixel (i, j) of image n is at row ys[n, i] and column xs[n, j] of images (count, height, width, 3); holes
// (count, 4) and colours (count, 3, 4) may be null. A block computes blockDim.x pixels of one image.
template <class T>
__global__ void __launch_bounds__(256) resample(const unsigned char* __restrict__ images, const float* __restrict__ ys,
                         const float* __restrict__ xs, const long long* __restrict__ holes,
                         const typename Wide<T>::type* __restrict__ mean, const typename Wide<T>::type* __restrict__ std,
                         const float* __restrict__ colours, T* __restrict__ out,
                         int height, int width, int out_h, int out_w) {
    typedef typename Wide<T>::type A;
    int tiles = (out_h * out_w + blockDim.x - 1) / blockDim.x, n = blockIdx.x / tiles;
    int pixel = (blockIdx.x - n * tiles) * blockDim.x + threadIdx.x;
    if (pixel >= out_h * out_w) return;
    int i = pixel / out_w, j = pixel - i * out_w;
    Rgb<A> v = {};
    if (!holes || !is_inside(holes + 4 * n, i, j)) {
        Colours<A> colour;
        colour.load(mean, std);
        colour.load_matrix(colours ? colours + 12 * n : 0);
        const unsigned char* image = images + (long long)n * height * width * 3;
        v = colour.apply(sample<A>(image, height, width, ys[(long long)n * out_h + i], xs[(long long)n * out_w + j]));
    }
    store_pixel(out + ((long long)n * out_h * out_w + pixel) * Padded<T>::CHANNELS, v);
}

// Image n of x (count, height, width, 3) and image partners[n], weighted inside box n: out, padded.
template <class T>
__global__ void __launch_bounds__(256) blend(const T* __restrict__ x, const long long* __restrict__ partners,
                      const float* __restrict__ weights, const long long* __restrict__ boxes, T* __restrict__ out,
                      int height, int width) {
    typedef typename Wide<T>::type A;
    int pixels = height * width, tiles = (pixels + blockDim.x - 1) / blockDim.x, n = blockIdx.x / tiles;
    int pixel = (blockIdx.x - n * tiles) * blockDim.x + threadIdx.x;
    if (pixel >= pixels) return;
    int i = pixel / width, j = pixel - i * width;
    const T* own = x + ((long long)n * pixels + pixel) * 3;
    Rgb<A> v;
    for (int c = 0; c < 3; c++) v.c[c] = widen(own[c]);
    if (is_inside(boxes + 4 * n, i, j)) {
        const T* other = x + (partners[n] * pixels + pixel) * 3;
        A weight = weights[n];
        for (int c = 0; c < 3; c++) v.c[c] = weight * v.c[c] + (1 - weight) * widen(other[c]);
    }
    store_pixel(out + ((long long)n * pixels + pixel) * Padded<T>::CHANNELS, v);
}

// Products and sums that the compiler must not contract: roundings, and so floor and rint, are those of the host.
__device__ __forceinline__ double times(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double plus(double a, double b) { return __dadd_rn(a, b); }

// One image's random numbers. preprocess.py has the same layout, as a dtype.
struct Plan {
    double start[2], scale[2];  // of the crop, down and across: position = start + (index + 0.5) * scale - 0.5
    int shift[2];               // added to the position
    int mirrored;
    float own_label;            // weight of the image's own label
    int hole[4];                // cutout
    int box[4];                 // where the image is blended with the next of the batch; empty without blending
    float own;                  // weight of the image's own pixels in the box
    float colours[12];          // matrix (3, 4)
    int padding;
};

// `inputs.augment.span`: start and stop of an interval of `length` pixels around `draw`, clipped.
__device__ __forceinline__ void span(double draw, int length, int size, int* range) {
    int start = (int)floor(times(draw, size)) - length / 2;
    range[0] = min(max(start, 0), size);
    range[1] = min(max(start + length, 0), size);
}

// `Augment.colours` of one image.
__device__ __forceinline__ void colour_matrix(double brightness, double contrast, double saturation,
                                              const double* mean, const double* std, float* matrix) {
    const double luma[3] = {0.299, 0.587, 0.114};
    for (int i = 0; i < 3; i++) {
        double constant = -mean[i];
        for (int j = 0; j < 3; j++) {
            double saturate = (i == j ? saturation : 0.0) + (1.0 - saturation) * luma[j];
            double linear = saturate * (contrast * brightness);
            constant += saturate * ((1.0 - contrast) * mean[j]) + linear * mean[j];
            matrix[4 * i + j] = (float)(linear * std[j] / std[i]);
        }
        matrix[4 * i + 3] = (float)(constant / std[i]);
    }
}

enum Mixing { NO_MIX, MIXUP, CUTMIX };

// The numbers of one image per thread: `Augment.maps`, `Augment.colours` and `Mix.draw`. A is the type of mean and std.
template <class A>
__global__ void __launch_bounds__(64) plan_augmentation(
    const long long* __restrict__ rows, Plan* __restrict__ plans, const A* __restrict__ mean, const A* __restrict__ std,
    int count, int height, int width, unsigned long long augment_key, double crop_scale, double log_stretch, int shift_y,
    int shift_x, int hole_h, int hole_w, int flips, unsigned long long flip_key, int flips_low,
    unsigned long long colour_key, double brightness, double contrast, double saturation, int mixing,
    unsigned long long mix_key, double alpha) {
    int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= count) return;
    long long row = rows[n];
    Draws draws(augment_key, row);  // mirror, down, across, area, stretch, crop_y, crop_x, hole_y, hole_x
    Plan plan = {};
    plan.scale[0] = plan.scale[1] = 1;
    if (crop_scale < 1) {
        double fraction = plus(crop_scale, times(1 - crop_scale, draws[3]));
        double ratio = exp(times(plus(2.0 * draws[4], -1.0), log_stretch));
        plan.scale[0] = min(sqrt(times(fraction, ratio)), 1.0);
        plan.scale[1] = min(sqrt(fraction / ratio), 1.0);
        plan.start[0] = times(times(draws[5], 1 - plan.scale[0]), height);
        plan.start[1] = times(times(draws[6], 1 - plan.scale[1]), width);
    }
    plan.shift[0] = (int)floor(times(draws[1], 2 * shift_y + 1)) - shift_y;
    plan.shift[1] = (int)floor(times(draws[2], 2 * shift_x + 1)) - shift_x;
    plan.mirrored = flips && (Draws(flip_key, row)[0] < 0.5f) == (flips_low != 0);
    span(draws[7], hole_h, height, plan.hole);
    span(draws[8], hole_w, width, plan.hole + 2);
    if (!hole_h || !hole_w) plan.hole[1] = plan.hole[0];

    for (int k = 0; k < 12; k++) plan.colours[k] = k % 5 == 0;
    if (brightness > 0 || contrast > 0 || saturation > 0) {
        Draws factors(colour_key, row);
        double means[3], stds[3];
        for (int c = 0; c < 3; c++) {
            means[c] = mean[c];
            stds[c] = std[c];
        }
        colour_matrix(1 + brightness * (2.0 * factors[0] - 1), 1 + contrast * (2.0 * factors[1] - 1),
                      1 + saturation * (2.0 * factors[2] - 1), means, stds, plan.colours);
    }

    plan.own_label = 1;
    if (mixing != NO_MIX) {
        Draws mix(mix_key, row);
        double power = pow(1.0 - mix[0], 1.0 / alpha);  // Beta(alpha, alpha), by Devroye's formula
        double across = times(cos(times(2 * 3.141592653589793, mix[1])), sqrt(1.0 - power));
        double own = 0.5 + 0.5 * across / sqrt(plus(times(across, across), power));
        if (mixing == MIXUP) {
            plan.own = plan.own_label = (float)own;
            plan.box[1] = height;
            plan.box[3] = width;
        } else {
            double side = sqrt(1.0 - own);
            span(mix[2], (int)rint(times(side, height)), height, plan.box);
            span(mix[3], (int)rint(times(side, width)), width, plan.box + 2);
            double pixels = (double)(plan.box[1] - plan.box[0]) * (plan.box[3] - plan.box[2]);
            plan.own_label = (float)(1.0 - pixels / ((double)height * width));
        }
    }
    plans[n] = plan;
}

// The position in the image of an output row or column: crop, then shift with reflection; see `Augment.maps`.
__device__ __forceinline__ float position(double start, double scale, int shift, int at, int size) {
    double last = size - 1;
    double x = plus(plus(start, times(at + 0.5, scale)), -0.5);
    x = fabs(min(max(x, 0.0), last) + shift);
    x = x > last ? 2 * last - x : x;
    return (float)min(max(x, 0.0), last);
}

// What a pixel needs of an image's plan, in shared memory: registers for two images would leave few warps on a
// multiprocessor.
template <class A> struct Look {
    const unsigned char* image;
    int hole[4];
    Colours<A> colours;

    __device__ __forceinline__ void load(const unsigned char* pixels, const Plan& plan, const A* mean, const A* std) {
        image = pixels;
        for (int k = 0; k < 4; k++) hole[k] = plan.hole[k];
        colours.load(mean, std);
        colours.load_matrix(plan.colours);
    }
    __device__ __forceinline__ Rgb<A> at(int i, int j, int height, int width, float y, float x) const {
        Rgb<A> zero = {};
        return is_inside(hole, i, j) ? zero : colours.apply(sample<A>(image, height, width, y, x));
    }
};

// Images by their plans: out (count, height, width, padded channels), and soft labels `targets` (count, classes) from
// class indices `labels` if MIXES. Image n is number n of `images`, or numbers[n] where those are not null: the whole
// dataset. A block computes `depth` rows of one image. Shared memory: positions of its columns and rows, for the image
// and, if MIXES, for the next of the batch, which it is blended with.
template <class T, bool MIXES>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 2 : 4) augment(const unsigned char* __restrict__ images, const long long* __restrict__ numbers,
                        const Plan* __restrict__ plans, const typename Wide<T>::type* __restrict__ mean,
                        const typename Wide<T>::type* __restrict__ std, const long long* __restrict__ labels,
                        T* __restrict__ out, float* __restrict__ targets, int count, int height, int width, int depth,
                        int classes) {
    typedef typename Wide<T>::type A;
    extern __shared__ float positions[];
    int tiles = (height + depth - 1) / depth, n = blockIdx.x / tiles, tile = blockIdx.x - n * tiles;
    int first = tile * depth, rows = min(depth, height - first), partner = n + 1 < count ? n + 1 : 0;
    const Plan &own = plans[n], &other = plans[partner];
    int entries = width + rows;  // of one image
    for (int k = threadIdx.x; k < (MIXES ? 2 * entries : entries); k += blockDim.x) {
        const Plan& plan = k < entries ? own : other;
        int at = k < entries ? k : k - entries;
        if (at < width) {
            positions[k] = position(plan.start[1], plan.scale[1], plan.shift[1], plan.mirrored ? width - 1 - at : at, width);
        } else {
            positions[k] = position(plan.start[0], plan.scale[0], plan.shift[0], first + at - width, height);
        }
    }
    __shared__ Look<A> looks[2];  // of the image and its partner
    if (threadIdx.x < (MIXES ? 2 : 1)) {
        int which = threadIdx.x ? partner : n;
        const unsigned char* image = images + (numbers ? numbers[which] : which) * ((long long)height * width * 3);
        looks[threadIdx.x].load(image, plans[which], mean, std);
    }
    int box[4] = {};
    A weight = 0;
    if (MIXES) {
        for (int k = 0; k < 4; k++) box[k] = own.box[k];
        weight = own.own;
    }
    __syncthreads();
    const float *xs = positions, *ys = positions + width;
    T* first_pixel = out + ((long long)n * height + first) * width * Padded<T>::CHANNELS;
    for (int pixel = threadIdx.x; pixel < rows * width; pixel += blockDim.x) {
        int row = pixel / width, j = pixel - row * width, i = first + row;
        bool blended = MIXES && is_inside(box, i, j);
        Rgb<A> v = {};
        #pragma unroll 1  // else both images' numbers are kept in registers
        for (int k = blended && weight == 0; k <= (int)blended; k++) {
            Rgb<A> w = looks[k].at(i, j, height, width, ys[k * entries + row], xs[k * entries + j]);
            A share = !blended ? 1 : k == 0 ? weight : 1 - weight;
            #pragma unroll
            for (int c = 0; c < 3; c++) v.c[c] += share * w.c[c];
        }
        store_pixel(first_pixel + (long long)pixel * Padded<T>::CHANNELS, v);
    }
    if (MIXES && tile == 0) {
        float own_label = own.own_label;
        long long label = labels[n], partner_label = labels[partner];
        for (int k = threadIdx.x; k < classes; k += blockDim.x) {
            targets[(long long)n * classes + k] = own_label * (k == label) + (1 - own_label) * (k == partner_label);
        }
    }
}
