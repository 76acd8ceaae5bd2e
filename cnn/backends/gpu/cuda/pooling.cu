// Pooling of x (N, H, W, C) to y (N, OH, OW, C), and over whole images. Threads cover rows of channels as in `Columns`;
// a row is a pixel of the output, or of the input in the backward of overlapping windows, which gathers: it adds up
// what all windows over a pixel send back, so that no two threads write the same place.

// Sizes of x and y and the windows, in the order of the kernels' arguments.
#define GEOMETRY \
    int height, int in_w, int out_h, int out_w, int channels, int size_h, int size_w, int stride_h, int stride_w, \
        int top, int left

// A pixel's image, row and column from its number.
struct Pixel {
    int n, i, j;
    __device__ __forceinline__ Pixel(long long number, int rows, int columns) {
        unsigned line = (unsigned)number / columns;
        j = (unsigned)number - line * columns;
        n = line / rows;
        i = line - n * rows;
    }
};

// The first of `count` windows along an axis that covers a position (padding included), and the end.
__device__ __forceinline__ int first_window(int position, int size, int stride) {
    return position < size ? 0 : (position - size) / stride + 1;
}
__device__ __forceinline__ int end_window(int position, int stride, int count) {
    return min(position / stride + 1, count);
}

// The largest value so far of V windows, and its index in the window; the first of equals. NaN counts as larger.
template <class A, class W, int V> struct Largest {
    A value[V];
    W tap[V];
    __device__ __forceinline__ Largest() {
#pragma unroll
        for (int v = 0; v < V; v++) value[v] = __uint_as_float(0xff800000), tap[v] = 0;  // -infinity
    }
    template <class T> __device__ __forceinline__ void meet(const Vector<T, V>& values, int at) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            A other = widen(values.at[v]);
            if (other > value[v] || other != other) value[v] = other, tap[v] = (W)at;
        }
    }
    template <class T> __device__ __forceinline__ void put(T* y, W* winners) const {
        Vector<T, V> values;
        Vector<W, V> taps;
#pragma unroll
        for (int v = 0; v < V; v++) values.at[v] = narrow<T>(value[v]), taps.at[v] = tap[v];
        store(y, values);
        store(winners, taps);
    }
};

template <class T, int V, class W>
__global__ void __launch_bounds__(THREADS, 4) max_pool(
    const T* __restrict__ x, T* __restrict__ y, W* __restrict__ winners, int rows, int width, GEOMETRY) {
    const Columns<V> at(channels, width);
    if (!at.active) return;
    for (long long row = at.first_row(); row < rows; row += at.row_step()) {
        const Pixel out(row, out_h, out_w);
        const T* image = x + (long long)out.n * height * in_w * channels + at.channel;
        const int i = out.i * stride_h - top, j = out.j * stride_w - left;
        Largest<WideOf<T>, W, V> largest;
        for (int a = max(0, -i); a < size_h && i + a < height; a++)
            for (int b = max(0, -j); b < size_w && j + b < in_w; b++)
                largest.meet(load<V>(image + ((long long)(i + a) * in_w + j + b) * channels), a * size_w + b);
        largest.put(y + row * channels + at.channel, winners + row * channels + at.channel);
    }
}

template <class T, int V, class W>
__global__ void __launch_bounds__(THREADS, 4) max_pool_backward(
    const T* __restrict__ dy, const W* __restrict__ winners, T* __restrict__ dx, int rows, int width, GEOMETRY) {
    typedef WideOf<T> A;
    const Columns<V> at(channels, width);
    if (!at.active) return;
    for (long long row = at.first_row(); row < rows; row += at.row_step()) {
        const Pixel in(row, height, in_w);
        const int y = in.i + top, x = in.j + left;
        const int end_i = end_window(y, stride_h, out_h), end_j = end_window(x, stride_w, out_w);
        A sums[V] = {};
        for (int i = first_window(y, size_h, stride_h); i < end_i; i++)
            for (int j = first_window(x, size_w, stride_w); j < end_j; j++) {
                const long long from = (((long long)in.n * out_h + i) * out_w + j) * channels + at.channel;
                const Vector<T, V> gradients = load<V>(dy + from);
                const Vector<W, V> taps = load<V>(winners + from);
                const int tap = (y - i * stride_h) * size_w + x - j * stride_w;
#pragma unroll
                for (int v = 0; v < V; v++) sums[v] += taps.at[v] == tap ? widen(gradients.at[v]) : (A)0;
            }
        Vector<T, V> out;
#pragma unroll
        for (int v = 0; v < V; v++) out.at[v] = narrow<T>(sums[v]);
        store(dx + row * channels + at.channel, out);
    }
}

// The common case of 2 by 2 windows side by side without padding: each window's four loads are under way together, and
// its backward reads dy once and writes all four pixels.
template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) max_pool_2x2(
    const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ winners, int rows, int width, int height,
    int in_w, int out_h, int out_w, int channels) {
    const Columns<V> at(channels, width);
    if (!at.active) return;
    const long long below = (long long)in_w * channels;
    for (long long row = at.first_row(); row < rows; row += at.row_step()) {
        const Pixel out(row, out_h, out_w);
        const T* from = x + ((long long)out.n * height + 2 * out.i) * below + 2 * out.j * channels + at.channel;
        const Vector<T, V> values[4] = {
            load<V>(from), load<V>(from + channels), load<V>(from + below), load<V>(from + below + channels)};
        Largest<WideOf<T>, unsigned char, V> largest;
#pragma unroll
        for (int tap = 0; tap < 4; tap++) largest.meet(values[tap], tap);
        largest.put(y + row * channels + at.channel, winners + row * channels + at.channel);
    }
}

// A row is a window; where the image's height or width is odd, also a window of which only a part lies in the image.
template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) max_pool_2x2_backward(
    const T* __restrict__ dy, const unsigned char* __restrict__ winners, T* __restrict__ dx, int rows, int width,
    int height, int in_w, int out_h, int out_w, int channels) {
    const Columns<V> at(channels, width);
    if (!at.active) return;
    for (long long row = at.first_row(); row < rows; row += at.row_step()) {
        const Pixel window(row, (height + 1) / 2, (in_w + 1) / 2);
        Vector<T, V> gradients = {};
        Vector<unsigned char, V> taps = {};
        if (window.i < out_h && window.j < out_w) {
            const long long from =
                (((long long)window.n * out_h + window.i) * out_w + window.j) * channels + at.channel;
            gradients = load<V>(dy + from);
            taps = load<V>(winners + from);
        }
#pragma unroll
        for (int tap = 0; tap < 4; tap++) {
            const int i = 2 * window.i + tap / 2, j = 2 * window.j + tap % 2;
            Vector<T, V> out;
#pragma unroll
            for (int v = 0; v < V; v++) out.at[v] = taps.at[v] == tap ? gradients.at[v] : (T)0;
            if (i < height && j < in_w)
                store(dx + (((long long)window.n * height + i) * in_w + j) * channels + at.channel, out);
        }
    }
}

// The mean of each window; padding counts as zeros.
template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) average_pool(
    const T* __restrict__ x, T* __restrict__ y, int rows, int width, GEOMETRY) {
    typedef WideOf<T> A;
    const Columns<V> at(channels, width);
    if (!at.active) return;
    const A area = (A)size_h * size_w;
    for (long long row = at.first_row(); row < rows; row += at.row_step()) {
        const Pixel out(row, out_h, out_w);
        const T* image = x + (long long)out.n * height * in_w * channels + at.channel;
        const int i = out.i * stride_h - top, j = out.j * stride_w - left;
        A sums[V] = {};
        for (int a = max(0, -i); a < size_h && i + a < height; a++)
            for (int b = max(0, -j); b < size_w && j + b < in_w; b++) {
                const Vector<T, V> values = load<V>(image + ((long long)(i + a) * in_w + j + b) * channels);
#pragma unroll
                for (int v = 0; v < V; v++) sums[v] += widen(values.at[v]);
            }
        Vector<T, V> means;
#pragma unroll
        for (int v = 0; v < V; v++) means.at[v] = narrow<T>(sums[v] / area);
        store(y + row * channels + at.channel, means);
    }
}

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) average_pool_backward(
    const T* __restrict__ dy, T* __restrict__ dx, int rows, int width, GEOMETRY) {
    typedef WideOf<T> A;
    const Columns<V> at(channels, width);
    if (!at.active) return;
    const A area = (A)size_h * size_w;
    for (long long row = at.first_row(); row < rows; row += at.row_step()) {
        const Pixel in(row, height, in_w);
        const int y = in.i + top, x = in.j + left;
        const int end_i = end_window(y, stride_h, out_h), end_j = end_window(x, stride_w, out_w);
        A sums[V] = {};
        for (int i = first_window(y, size_h, stride_h); i < end_i; i++)
            for (int j = first_window(x, size_w, stride_w); j < end_j; j++) {
                const long long from = (((long long)in.n * out_h + i) * out_w + j) * channels + at.channel;
                const Vector<T, V> gradients = load<V>(dy + from);
#pragma unroll
                for (int v = 0; v < V; v++) sums[v] += widen(gradients.at[v]);
            }
        Vector<T, V> out;
#pragma unroll
        for (int v = 0; v < V; v++) out.at[v] = narrow<T>(sums[v] / area);
        store(dx + row * channels + at.channel, out);
    }
}

// Global pools: a block for each image (the grid's x) and slice of channels; its lanes take every `lanes`-th pixel. The
// results (N, C) are of the wide type.
template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) global_average_pool(
    const T* __restrict__ x, WideOf<T>* __restrict__ y, int pixels, int channels, int width) {
    typedef WideOf<T> A;
    constexpr int BATCH = 4;  // loads in flight
    __shared__ A columns[V][PITCH<V>];
    const Columns<V> at(channels, width);
    const T* image = x + (long long)blockIdx.x * pixels * channels + at.channel;
    A sums[V] = {};
    if (at.active)
        for (long long pixel = at.lane; pixel < pixels; pixel += BATCH * at.lanes) {
            Vector<T, V> values[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (pixel + i * at.lanes < pixels) values[i] = load<V>(image + (pixel + i * at.lanes) * channels);
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (pixel + i * at.lanes < pixels)
#pragma unroll
                    for (int v = 0; v < V; v++) sums[v] += widen(values[i].at[v]);
        }
    put_column<V>(columns, sums);
    add_lanes<V, V>(columns, at);
    for (int i = threadIdx.x; i < at.count; i += THREADS)
        y[(long long)blockIdx.x * channels + at.first + i] = columns[i % V][i / V] / pixels;
}

// Whether a value at pixel `other_at` replaces one at `at`: NaN counts as largest, the first of equals wins.
template <class A> __device__ __forceinline__ bool replaces(A other, int other_at, A value, int at) {
    const bool nan = value != value, other_nan = other != other;
    if (nan || other_nan) return other_nan && (!nan || other_at < at);
    return other > value || (other == value && other_at < at);
}

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) global_max_pool(
    const T* __restrict__ x, WideOf<T>* __restrict__ y, int* __restrict__ winners, int pixels, int channels,
    int width) {
    typedef WideOf<T> A;
    __shared__ A columns[V][PITCH<V>];
    __shared__ int places[V][PITCH<V>];
    const Columns<V> at(channels, width);
    const T* image = x + (long long)blockIdx.x * pixels * channels + at.channel;
    A largest[V] = {};
    int place[V] = {};
    if (at.active)
        for (int pixel = at.lane; pixel < pixels; pixel += at.lanes) {
            const Vector<T, V> values = load<V>(image + (long long)pixel * channels);
#pragma unroll
            for (int v = 0; v < V; v++) {
                const A other = widen(values.at[v]);
                if (pixel == at.lane || replaces(other, pixel, largest[v], place[v]))
                    largest[v] = other, place[v] = pixel;
            }
        }
    put_column<V>(columns, largest);
    put_column<V>(places, place);
    for (int rest = min(at.lanes, pixels); rest > 1;) {  // pairwise, as in `add_lanes`; lanes without a pixel left out
        int half = (rest + 1) / 2;
        __syncthreads();
        if (at.lane + half < rest)
#pragma unroll
            for (int v = 0; v < V; v++) {
                const A value = columns[v][threadIdx.x], other = columns[v][threadIdx.x + half * at.width];
                const int place = places[v][threadIdx.x], other_place = places[v][threadIdx.x + half * at.width];
                const bool better = replaces(other, other_place, value, place);
                columns[v][threadIdx.x] = better ? other : value;
                places[v][threadIdx.x] = better ? other_place : place;
            }
        rest = half;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < at.count; i += THREADS) {
        const long long to = (long long)blockIdx.x * channels + at.first + i;
        y[to] = columns[i % V][i / V];
        winners[to] = places[i % V][i / V];
    }
}

// Every pixel gets dy / pixels or, where there are winners, the winning pixel gets dy and the others 0. The grid's z
// divides an image's pixels into chunks.
template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) global_pool_backward(
    const WideOf<T>* __restrict__ dy, const int* __restrict__ winners, T* __restrict__ dx, int pixels, int channels,
    int width, int chunk) {
    typedef WideOf<T> A;
    __shared__ __align__(16) A gradients[MAX_WIDTH<V> * V];  // so that neighbouring threads load neighbours
    __shared__ __align__(16) int places[MAX_WIDTH<V> * V];
    const Columns<V> at(channels, width);
    for (int i = threadIdx.x; i < at.count; i += THREADS) {
        const long long from = (long long)blockIdx.x * channels + at.first + i;
        gradients[i] = winners ? dy[from] : dy[from] / pixels;
        places[i] = winners ? winners[from] : -1;
    }
    __syncthreads();
    if (!at.active) return;
    A gradient[V];
    int place[V];
    get_own<V>(gradient, gradients + at.own);
    get_own<V>(place, places + at.own);
    Vector<T, V> own;
#pragma unroll
    for (int v = 0; v < V; v++) own.at[v] = narrow<T>(gradient[v]);
    T* image = dx + (long long)blockIdx.x * pixels * channels + at.channel;
    const int end = min((int)(blockIdx.z + 1) * chunk, pixels);
    for (int pixel = blockIdx.z * chunk + at.lane; pixel < end; pixel += at.lanes) {
        Vector<T, V> out = own;
#pragma unroll
        for (int v = 0; v < V; v++)
            if (winners && place[v] != pixel) out.at[v] = 0;
        store(image + (long long)pixel * channels, out);
    }
}
