// Convolution and the gradients of its input and weight, as implicit matrix products. operands.cuh says of what;
// product.cuh multiplies; output.cuh stores.

template <class T, int PASS> struct Output { typedef T type; };
template <class T> struct Output<T, WEIGHT> { typedef WideOf<T> type; };

// The gathered image is (images, height, width, channels), `pitch` elements from pixel to pixel. The pixels of the rows
// (WEIGHT: of the sum) are out_height x out_width, the columns `cols`. FORWARD and WEIGHT: only the first `real`
// channels are in the weight, the others are padding. WEIGHT: blocks sum `stretch` pixels each, to out[blockIdx.z].
// FORWARD: `statistics`, if not null, gets of each tile's columns the mean and the sum of squared distances from it.
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

    // Neighbouring blocks share rows: the gathered image is larger than the right operand.
    const int col_tiles = (cols + COLS - 1) / COLS, row_tile = blockIdx.x / col_tiles;
    const int row0 = row_tile * ROWS, col0 = (blockIdx.x - row_tile * col_tiles) * COLS;
    const int phase_down = PASS == INPUT ? blockIdx.z / stride_across : 0;
    const int phase_across = PASS == INPUT ? blockIdx.z % stride_across : 0;
    const Domain domain = {
        make_axis<PASS>(height, out_height, window_height, stride_down, top, phase_down),
        make_axis<PASS>(width, out_width, window_width, stride_across, left, phase_across), channels, pitch};
    const int pixels = images * domain.pixels(), tapped = domain.taps() * channels;
    const int rows = PASS == WEIGHT ? tapped : pixels;
    const int first = PASS == WEIGHT ? blockIdx.z * stretch : 0;  // of the sum
    const int last = PASS == WEIGHT ? min(first + stretch, pixels) : tapped;
    if (row0 >= rows) return;  // INPUT: phases differ in their number of pixels

    Corners<ROWS>& corners = *(Corners<ROWS>*)shared;
    if constexpr (PASS != WEIGHT) {
        corners.fill(domain, row0, rows);
        __syncthreads();
    }
    auto left_operand = [&] {
        if constexpr (PASS == WEIGHT) {
            const Tap tap = domain.tap(row0 + Copies<L, V>::element());
            return Pixels<T, L, V>(gathered, domain, tap, first, last);
        } else return Patches<T, L, V>(gathered, corners);
    }();
    auto right_operand = [&] {
        if constexpr (PASS == INPUT) return Filters<T, R, V>(right, col0, cols, channels, window_width);
        else return Lines<T, R, V>(right, first, last, col0, cols, PASS == FORWARD ? channels - real : 0);
    }();
    if constexpr (PASS != WEIGHT) __syncthreads();  // the corners are read, and their memory free

    Tap tap = domain.tap(Copies<L, V>::element());
    auto load = [&](T* slice) {  // copy the next slices of both operands
        if constexpr (PASS == WEIGHT) left_operand.load(slice, domain);
        else left_operand.load(slice, domain, tap);
        if constexpr (PASS == INPUT) right_operand.load(slice + L::size, domain, tap);
        else right_operand.load(slice + L::size);
        if constexpr (PASS != WEIGHT) tap.advance(DEPTH<T>, channels, domain.across.taps);
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

    Stage<O, P, ROWS, COLS, STAGES * SLICES * (int)sizeof(T)> stage(shared);
    for (int r = threadIdx.x; r < ROWS; r += TILE_THREADS) {
        const int row = row0 + r;
        int to = row;
        if constexpr (PASS == WEIGHT) {
            const Tap tap = domain.tap(row);
            to = tap.channel < real ? (tap.a * window_width + tap.b) * real + tap.channel : -1;
        } else if (PASS == INPUT && gridDim.z > 1) {
            const Pixel pixel = domain.pixel(row);
            const int i = domain.down.first + pixel.i * stride_down, j = domain.across.first + pixel.j * stride_across;
            to = (pixel.image * out_height + i) * out_width + j;
        }
        stage.target[r] = row < rows ? to : -1;
    }
    if (PASS == WEIGHT) out += (long long)blockIdx.z * domain.taps() * real * cols;
    const W floor = kind == RELU ? (W)0 : -(W)__uint_as_float(0x7f800000);  // minus infinity
#pragma unroll
    for (int part = 0; part < stage.parts; part++) {
        if (part) __syncthreads();
        stage.put(product, part, bias, floor, col0, cols);
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
