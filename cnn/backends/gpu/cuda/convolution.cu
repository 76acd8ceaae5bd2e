// Convolution, the gradients of its input and of its weight: implicit matrix products (see operands.cuh, product.cuh).

template <class T, int PASS> struct Output { typedef T type; };
template <class T> struct Output<T, WEIGHT> { typedef WideOf<T> type; };

// The gathered image is (images, height, width, channels), `pitch` elements from pixel to pixel; out_height x out_width
// are the pixels of the rows (WEIGHT: of the sum), `cols` the columns. FORWARD and WEIGHT: the weight has `real` of the
// channels; the others, where VEC > real, are padding. A block of WEIGHT sums `stretch` pixels, to out[blockIdx.z].
// `statistics`, if not null, gets of each tile's columns the mean and the sum of squared distances from it.
template <class T, int MATH, int PASS, int ROWS, int COLS, bool ALIGNED>
__global__ void __launch_bounds__(TILE_THREADS, ALIGNED && ROWS * COLS < 128 * 128 ? 3 : 2) convolve(
    const T* __restrict__ gathered, const T* __restrict__ right, const WideOf<T>* __restrict__ bias,
    typename Output<T, PASS>::type* __restrict__ out, WideOf<T>* __restrict__ statistics,
    int images, int height, int width, int channels, int pitch, int real, int out_height, int out_width, int cols,
    int window_height, int window_width, int stride_down, int stride_across, int top, int left, int kind, int stretch) {
    typedef WideOf<T> W;
    typedef typename Output<T, PASS>::type O;
    typedef Layout<T, PASS != WEIGHT, ROWS> L;
    typedef Layout<T, PASS == INPUT, COLS> R;
    typedef Product<T, MATH, L, R, ROWS, COLS> P;
    constexpr int V = ALIGNED ? VEC<T> : 1, STAGES = ROWS * COLS > 128 * 64 ? 3 : 4, SLICES = L::size + R::size;
    extern __shared__ __align__(16) char shared[];
    const int thread = threadIdx.x;

    const int col_tiles = (cols + COLS - 1) / COLS, row_tile = blockIdx.x / col_tiles;
    const int row0 = row_tile * ROWS, col0 = (blockIdx.x - row_tile * col_tiles) * COLS;
    const int phase_down = PASS == INPUT ? blockIdx.z / stride_across : 0, phase_across = PASS == INPUT ? blockIdx.z % stride_across : 0;
    const Axis down = make_axis<PASS>(height, out_height, window_height, stride_down, top, phase_down);
    const Axis across = make_axis<PASS>(width, out_width, window_width, stride_across, left, phase_across);
    const int pixels = images * down.pixels * across.pixels, tapped = down.taps * across.taps * channels;
    const int rows = PASS == WEIGHT ? tapped : pixels;
    const int first = PASS == WEIGHT ? blockIdx.z * stretch : 0, last = PASS == WEIGHT ? min(first + stretch, pixels) : tapped;
    if (row0 >= rows) return;  // INPUT: phases differ in their number of pixels

    // A row's pixel, of which the image's number is returned.
    auto pixel_of = [&](int row, int& i, int& j) {
        const int line = row / across.pixels;
        j = row - line * across.pixels;
        i = line % down.pixels;
        return line / down.pixels;
    };
    auto tap_of = [&](int m) {  // taps and channels in one number
        const int tap = m / channels, a = tap / max(across.taps, 1);  // INPUT: phases without taps exist
        return Tap{a, tap - a * across.taps, m - tap * channels};
    };

    // load(slice) copies the next slices of both operands, each time it is called.
    Corners<ROWS>& corners = *(Corners<ROWS>*)shared;
    if constexpr (PASS != WEIGHT) {
        for (int r = thread; r < ROWS; r += TILE_THREADS) {
            int i, j, image = pixel_of(row0 + r, i, j), y = i * down.step + down.shift, x = j * across.step + across.shift;
            const bool valid = row0 + r < rows;
            corners.y[r] = valid ? y : -(1 << 30);
            corners.x[r] = x;
            corners.offset[r] = valid ? (((long long)image * height + y) * width + x) * pitch : 0;
        }
        __syncthreads();
    }
    auto make_left = [&] {
        if constexpr (PASS == WEIGHT) return Pixels<T, L, V>(gathered, tap_of(row0 + Copies<L, V>::element()), first, last, down, across, pitch);
        else return Patches<T, L, V>(gathered, corners);
    };
    auto make_right = [&] {
        if constexpr (PASS == INPUT) return Filters<T, R, V>(right, col0, cols, channels);
        else return Lines<T, R, V>(right, first, last, col0, cols, PASS == FORWARD ? channels - real : 0);
    };
    auto left_source = make_left();
    auto right_source = make_right();
    Tap tap = tap_of(Copies<L, V>::element());
    if constexpr (PASS != WEIGHT) __syncthreads();  // all have read their corners
    auto load = [&](T* slice) {
        if constexpr (PASS == WEIGHT) left_source.load(slice, down, across);
        else left_source.load(slice, tap, (tap.a * width + tap.b) * pitch + tap.channel, down, across);
        if constexpr (PASS == INPUT) {
            const int a = down.last_tap - tap.a * stride_down, b = across.last_tap - tap.b * stride_across;
            right_source.load(slice + L::size, (a * window_width + b) * cols * channels + tap.channel, tap.a < down.taps);
        } else right_source.load(slice + L::size);
        if constexpr (PASS != WEIGHT) tap.advance(DEPTH<T>, channels, across.taps);
    };

    // The slices of the next STAGES - 1 steps are on their way while one is multiplied.
    T* slices = (T*)shared;
    P product;
    const int steps = (last - first + DEPTH<T> - 1) / DEPTH<T>;
#pragma unroll 1
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) load(slices + step * SLICES);
        copies_commit();
    }
    for (int step = 0, now = 0, next = STAGES - 1; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();  // this step's slices are there for all, and all are done with those of the step before
        const T* slice = slices + now * SLICES;
        product.add(slice, slice + L::size, [&] {
            if (step + STAGES - 1 < steps) load(slices + next * SLICES);
            copies_commit();
        });
        now = now + 1 < STAGES ? now + 1 : 0;
        next = next + 1 < STAGES ? next + 1 : 0;
    }
    copies_wait<0>();
    __syncthreads();

    const Stage<O, P, ROWS, COLS, STAGES * SLICES * (int)sizeof(T)> stage(shared);
    for (int r = thread; r < ROWS; r += TILE_THREADS) {
        const int row = row0 + r;
        int to = row;
        if constexpr (PASS == WEIGHT) {
            const Tap tap = tap_of(row);
            to = tap.channel < real ? (tap.a * across.taps + tap.b) * real + tap.channel : -1;
        } else if (PASS == INPUT && gridDim.z > 1) {
            int i, j, image = pixel_of(row, i, j);
            to = (image * out_height + down.first + i * down.stride) * out_width + across.first + j * across.stride;
        }
        stage.target[r] = row < rows ? to : -1;
    }
    if (PASS == WEIGHT) out += (long long)blockIdx.z * down.taps * across.taps * real * cols;
#pragma unroll
    for (int part = 0; part < stage.parts; part++) {
        if (part) __syncthreads();
        stage.put(product, part, bias, kind == RELU ? (W)0 : -(W)__uint_as_float(0x7f800000), col0, cols);
        __syncthreads();
        if (PASS == FORWARD && kind > RELU) {
            stage.activate(kind);
            __syncthreads();
        }
        stage.template write<ALIGNED ? VEC<O> : 1>(out, part, col0, cols);
        if (PASS == FORWARD && statistics)
            stage.statistics(statistics + (long long)row_tile * 2 * cols, part, min(ROWS, rows - row0), col0, cols);
    }
}

// out (size,) = the sum of parts (splits, size): always in the same order, by eight threads an element.
template <class W> __global__ void __launch_bounds__(256) add_splits(
    const W* __restrict__ parts, W* __restrict__ out, int size, int splits) {
    __shared__ W sums[8][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * 32 + lane;
    const int each = (splits + 7) / 8, last = min((warp + 1) * each, splits);
    W sum = 0;
    if (i < size)
#pragma unroll 8
        for (int s = warp * each; s < last; s++) sum += parts[(long long)s * size + i];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp || i >= size) return;
    for (int s = 1; s < 8; s++) sum += sums[s][lane];
    out[i] = sum;
}
