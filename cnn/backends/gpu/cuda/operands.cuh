// The operands of a convolution's matrix products: where they lie in global memory, and copying slices of them.
//
//   FORWARD  y:        rows (n, i, j) of y,        sum over taps and channels,  left x,   right weight
//   INPUT    dx:       rows (n, i, j) of dx,       sum over taps and filters,   left dy,  right weight, read by columns
//   WEIGHT   d_weight: rows of taps and channels,  sum over (n, i, j) of dy,    left x,   right dy
//
// The left operand is gathered from an image (x or dy), and never stored as a matrix. All divisions are done before the
// loop over slices: in it, each thread moves its own place on by a fixed number of elements, with carries.

enum Pass { FORWARD, INPUT, WEIGHT };

// Copy V elements; zeros where not `valid`. 16 bytes are copied in the background, single elements at once.
template <int V, class T> __device__ __forceinline__ void copy(T* to, const T* from, bool valid) {
    if constexpr (V * sizeof(T) == 16) copy16(to, from, valid);
    else *to = valid ? *from : T(0);
}

// The part of a slice that a thread copies, V elements at a time: the same elements of every `step`th line.
template <class LAYOUT, int V> struct Copies {
    static constexpr int across = LAYOUT::line / V, step = TILE_THREADS / across, count = LAYOUT::lines / step;
    static __device__ __forceinline__ int line() { return threadIdx.x / across; }
    static __device__ __forceinline__ int element() { return threadIdx.x % across * V; }
    // Where the copy number i goes.
    static __device__ __forceinline__ int place(int i) {
        if (step % LAYOUT::period == 0) return LAYOUT::place(line(), element()) + i * step * LAYOUT::pitch;
        return LAYOUT::place(line() + i * step, element());
    }
};

// Pixels and taps along one axis. Pixel i and tap a meet element i * step + shift + a of the gathered image.
struct Axis {
    int size;           // of the gathered image
    int pixels, taps;   // of this block
    int step, shift;
    int first, stride;  // pixel i is number first + stride * i of the output
    int last_tap;       // of the window, that tap 0 is: in INPUT taps run backwards, `stride` at a time
};
template <int PASS>
__device__ __forceinline__ Axis make_axis(int size, int pixels, int window, int stride, int before, int phase) {
    if (PASS != INPUT) return {size, pixels, window, stride, -before, 0, 1, 0};
    // Element o of dy reaches pixel o * stride - before + tap. So the pixels that, `before` added, leave the remainder
    // `phase` meet the taps that leave the same remainder, and no others.
    const int first = (phase + stride - before % stride) % stride, taps = (window - phase + stride - 1) / stride;
    const int shift = (first + before - phase) / stride - (taps - 1);
    return {size, (pixels - first + stride - 1) / stride, taps, 1, shift, first, stride, phase + stride * (taps - 1)};
}

struct Pixel {
    int image, i, j;
};

// A place in the sum over taps and channels.
struct Tap {
    int a, b, channel;
    __device__ __forceinline__ void advance(int by, int channels, int taps_across) {
        for (channel += by; channel >= channels; channel -= channels)
            if (++b == taps_across) {
                b = 0;
                a++;
            }
    }
};

// The pixels, taps and channels of a product, and the gathered image, with `pitch` elements from pixel to pixel.
struct Domain {
    Axis down, across;
    int channels, pitch;

    __device__ __forceinline__ int pixels() const { return down.pixels * across.pixels; }
    __device__ __forceinline__ int taps() const { return down.taps * across.taps; }
    __device__ __forceinline__ Pixel pixel(int number) const {
        const int line = number / across.pixels, image = line / down.pixels;
        return {image, line - image * down.pixels, number - line * across.pixels};
    }
    __device__ __forceinline__ Tap tap(int number) const {
        const int tap = number / channels, a = tap / max(across.taps, 1);  // INPUT: some phases have no taps
        return {a, tap - a * across.taps, number - tap * channels};
    }
    __device__ __forceinline__ long long offset(int image, int y, int x) const {
        return (((long long)image * down.size + y) * across.size + x) * pitch;
    }
    __device__ __forceinline__ bool inside(int y, int x) const {
        return ((unsigned)y < (unsigned)down.size) & ((unsigned)x < (unsigned)across.size);
    }
};

// Of each row of a tile, the first element of its window in the gathered image, which may lie outside.
template <int ROWS> struct Corners {
    int y[ROWS], x[ROWS];
    long long offset[ROWS];

    __device__ __forceinline__ void fill(const Domain& domain, int row0, int rows) {
        for (int r = threadIdx.x; r < ROWS; r += TILE_THREADS) {
            const Pixel pixel = domain.pixel(row0 + r);
            y[r] = pixel.i * domain.down.step + domain.down.shift;
            if (row0 + r >= rows) y[r] = -(1 << 30);  // outside, with any tap
            x[r] = pixel.j * domain.across.step + domain.across.shift;
            offset[r] = domain.offset(pixel.image, y[r], x[r]);
        }
    }
};

// Left operand of FORWARD and INPUT: a line is a row, with the channels of its tap side by side.
template <class T, class LAYOUT, int V> struct Patches {
    typedef Copies<LAYOUT, V> C;
    const T* from[C::count];
    int y[C::count], x[C::count];

    __device__ __forceinline__ Patches(const T* gathered, const Corners<LAYOUT::lines>& corners) {
#pragma unroll
        for (int i = 0; i < C::count; i++) {
            const int row = C::line() + i * C::step;
            from[i] = gathered + corners.offset[row];
            y[i] = corners.y[row];
            x[i] = corners.x[row];
        }
    }
    __device__ __forceinline__ void load(T* slice, const Domain& domain, Tap tap) const {
        const int offset = (tap.a * domain.across.size + tap.b) * domain.pitch + tap.channel;
        const int a = tap.a < domain.down.taps ? tap.a : 1 << 29;  // past the last tap: outside
#pragma unroll
        for (int i = 0; i < C::count; i++)
            copy<V>(slice + C::place(i), from[i] + offset, domain.inside(y[i] + a, x[i] + tap.b));
    }
};

// Left operand of WEIGHT: a line is a pixel, with neighbouring channels of one tap side by side.
template <class T, class LAYOUT, int V> struct Pixels {
    typedef Copies<LAYOUT, V> C;
    const T* from;
    int y, x, y_end, x_end;  // in the gathered image: of this pixel and tap, and where they wrap around
    int y_step, x_step;      // to this thread's next pixel, before carries
    long long jump, y_wrap;  // elements by which `from` moves to it, and with a carry from y to the next image
    int x_wrap;              // and with a carry from x to y
    int left;                // pixels to `last`

    // (n, i, j) is a number of mixed radix: from pixel to pixel, C::step is added to it, digit by digit with carries.
    __device__ __forceinline__ Pixels(const T* gathered, const Domain& domain, Tap tap, int first, int last) {
        const Axis &down = domain.down, &across = domain.across;
        const Pixel pixel = domain.pixel(first + C::line()), step = domain.pixel(C::step);
        y = pixel.i * down.step + down.shift + tap.a;
        x = pixel.j * across.step + across.shift + tap.b;
        from = gathered + domain.offset(pixel.image, y, x) + tap.channel;
        y_end = down.pixels * down.step + down.shift + tap.a;
        x_end = across.pixels * across.step + across.shift + tap.b;
        y_step = step.i * down.step;
        x_step = step.j * across.step;
        jump = domain.offset(step.image, y_step, x_step);
        x_wrap = (down.step * across.size - across.pixels * across.step) * domain.pitch;
        y_wrap = domain.offset(1, -down.pixels * down.step, 0);
        left = tap.a < down.taps ? last - first - C::line() : 0;
    }
    __device__ __forceinline__ void load(T* slice, const Domain& domain) {
#pragma unroll
        for (int i = 0; i < C::count; i++) {
            copy<V>(slice + C::place(i), from, (i * C::step < left) & domain.inside(y, x));
            y += y_step;
            x += x_step;
            from += jump;
            if (x >= x_end) {
                x -= domain.across.pixels * domain.across.step;
                y += domain.down.step;
                from += x_wrap;
            }
            if (y >= y_end) {
                y -= domain.down.pixels * domain.down.step;
                from += y_wrap;
            }
        }
        left -= DEPTH<T>;
    }
};

// Right operand of FORWARD and WEIGHT: a matrix of which a line is a row, from `first` to `last`.
template <class T, class LAYOUT, int V> struct Lines {
    typedef Copies<LAYOUT, V> C;
    const T* from;
    long long jump;  // elements to this thread's next line
    int left;        // lines to `last`

    // `padding`: of every VEC lines, so many at the end do not exist and count as zeros.
    __device__ __forceinline__ Lines(const T* matrix, int first, int last, int col0, int cols, int padding) {
        static_assert(V == 1 || C::step % VEC<T> == 0, "a thread's lines are all padding, or none is");
        const int k = first + C::line(), real = VEC<T> - padding, col = col0 + C::element();
        from = matrix + (long long)(padding ? k / VEC<T> * real + k % VEC<T> : k) * cols + col;
        jump = (long long)(padding ? C::step / VEC<T> * real : C::step) * cols;
        left = col < cols && (!padding || k % VEC<T> < real) ? last - k : 0;
    }
    __device__ __forceinline__ void load(T* slice) {
#pragma unroll
        for (int i = 0; i < C::count; i++) {
            copy<V>(slice + C::place(i), from, i * C::step < left);
            from += jump;
        }
        left -= DEPTH<T>;
    }
};

// Right operand of INPUT: a line is a column, a channel of x, with the filters of its tap side by side.
template <class T, class LAYOUT, int V> struct Filters {
    typedef Copies<LAYOUT, V> C;
    const T* from;
    int left, step;            // lines to the last column; elements to this thread's next line
    int window_across, whole;  // taps in a line of the window; elements of one tap

    __device__ __forceinline__ Filters(const T* weight, int col0, int cols, int filters, int window_across)
        : from(weight + (long long)(col0 + C::line()) * filters), left(cols - col0 - C::line()),
          step(C::step * filters), window_across(window_across), whole(cols * filters) {}
    __device__ __forceinline__ void load(T* slice, const Domain& domain, Tap tap) const {
        const int a = domain.down.last_tap - tap.a * domain.down.stride;
        const int b = domain.across.last_tap - tap.b * domain.across.stride;
        const int offset = (a * window_across + b) * whole + tap.channel;
        const int valid = tap.a < domain.down.taps ? left : 0;
#pragma unroll
        for (int i = 0; i < C::count; i++) copy<V>(slice + C::place(i), from + i * step + offset, i * C::step < valid);
    }
};
