// How the operands of a convolution's products lie in global memory, and how slices of them get into shared memory.
//
//   FORWARD  y:        rows (n, i, j) of y,   sum over taps and channels,  left x,  right weight
//   INPUT    dx:       rows (n, i, j) of dx,  sum over taps and filters,   left dy, right weight, its last axes swapped
//   WEIGHT   d_weight: rows taps and channels, sum over (n, i, j) of dy,   left x,  right dy
//
// The left operand is gathered from an image (x or dy), never stored as a matrix. All divisions are done once, before
// the loop over slices: in it, each thread moves its own place on by a fixed number of elements, with carries.

enum Pass { FORWARD, INPUT, WEIGHT };

// Copy V elements; zeros where not `valid`. 16 bytes are copied in the background, single elements at once.
template <int V, class T> __device__ __forceinline__ void copy(T* to, const T* from, bool valid) {
    if constexpr (V * sizeof(T) == 16) copy16(to, from, valid);
    else *to = valid ? *from : T(0);
}

// One axis of the pixels and of the window. Pixel i and tap a meet element i * step + shift + a of the gathered image.
struct Axis {
    int size;           // of the gathered image
    int pixels, taps;   // that this block has to do with
    int step, shift;
    int first, stride;  // pixel i is number first + stride * i of the output
    int last_tap;       // of the window, that tap 0 is: in INPUT taps go backwards, `stride` at a time
};
template <int PASS> __device__ __forceinline__ Axis make_axis(int size, int pixels, int window, int stride, int before, int phase) {
    if (PASS != INPUT) return {size, pixels, window, stride, -before, 0, 1, 0};
    // Element o of dy reaches pixel o * stride - before + tap. So the pixels whose number plus `before` leaves the
    // remainder `phase` see the taps that leave the same remainder, and no others.
    const int first = (phase + stride - before % stride) % stride, taps = (window - phase + stride - 1) / stride;
    const int shift = (first + before - phase) / stride - (taps - 1);
    return {size, (pixels - first + stride - 1) / stride, taps, 1, shift, first, stride, phase + stride * (taps - 1)};
}

// Which lines and elements of a slice a thread copies: the same element of every `step`th line.
template <class LAYOUT, int V> struct Copies {
    static constexpr int across = LAYOUT::line / V, step = TILE_THREADS / across, count = LAYOUT::lines / step;
    static __device__ __forceinline__ int line() { return threadIdx.x / across; }
    static __device__ __forceinline__ int element() { return threadIdx.x % across * V; }
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

// Of each row of a tile, the first element of its window in the gathered image, which may lie outside.
template <int ROWS> struct Corners {
    int y[ROWS], x[ROWS];
    long long offset[ROWS];
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
    __device__ __forceinline__ void load(T* slice, Tap tap, int offset, Axis down, Axis across) const {
#pragma unroll
        for (int i = 0; i < C::count; i++) {
            bool valid = tap.a < down.taps && (unsigned)(y[i] + tap.a) < (unsigned)down.size &&
                         (unsigned)(x[i] + tap.b) < (unsigned)across.size;
            copy<V>(slice + LAYOUT::place(C::line() + i * C::step, C::element()), from[i] + offset, valid);
        }
    }
};

// Right operand of INPUT: a line is a column, a channel of x, with the filters of its tap side by side.
template <class T, class LAYOUT, int V> struct Filters {
    typedef Copies<LAYOUT, V> C;
    const T* from;
    int valid, step;  // number of lines that are columns of the matrix; elements from one line to the next

    __device__ __forceinline__ Filters(const T* weight, int col0, int cols, int filters)
        : from(weight + (long long)(col0 + C::line()) * filters), valid(cols - col0 - C::line()), step(C::step * filters) {}
    __device__ __forceinline__ void load(T* slice, int offset, bool in_window) const {
#pragma unroll
        for (int i = 0; i < C::count; i++)
            copy<V>(slice + LAYOUT::place(C::line() + i * C::step, C::element()), from + i * step + offset,
                    in_window && i * C::step < valid);
    }
};

// Right operand of FORWARD and WEIGHT: a matrix of which a line is a row, lines `first` to `last`.
template <class T, class LAYOUT, int V> struct Lines {
    typedef Copies<LAYOUT, V> C;
    const T* from;
    long long jump;  // elements to the next line of this thread
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
            copy<V>(slice + LAYOUT::place(C::line() + i * C::step, C::element()), from, i * C::step < left);
            from += jump;
        }
        left -= DEPTH<T>;
    }
};

// Left operand of WEIGHT: a line is a pixel, with neighbouring channels of one tap side by side.
template <class T, class LAYOUT, int V> struct Pixels {
    typedef Copies<LAYOUT, V> C;
    const T* from;
    int y, x, y_end, x_end;  // in the gathered image: of this pixel and tap, and where they wrap around
    int dy, dx, x_wrap;      // to the next pixel, before carries; elements by which a carry from x to y moves `from`
    long long jump, y_wrap;  // elements, as well
    int k, last;

    // (n, i, j) is mixed-radix: pixels are C::step apart, and so are its digits, with carries.
    __device__ __forceinline__ Pixels(const T* gathered, Tap tap, int first, int last, Axis down, Axis across, int pitch)
        : k(first + C::line()), last(tap.a < down.taps ? last : 0) {
        const int in_row = across.pixels, in_image = in_row * down.pixels;
        const int line = across.size * pitch, step = C::step;
        const long long image = (long long)down.size * line;
        const int i = k % in_image / in_row, j = k % in_row;
        y = i * down.step + down.shift + tap.a;
        x = j * across.step + across.shift + tap.b;
        from = gathered + k / in_image * image + (long long)y * line + x * pitch + tap.channel;
        y_end = down.pixels * down.step + down.shift + tap.a;
        x_end = across.pixels * across.step + across.shift + tap.b;
        dy = step % in_image / in_row * down.step;
        dx = step % in_row * across.step;
        jump = step / in_image * image + (long long)dy * line + dx * pitch;
        x_wrap = down.step * line - across.pixels * across.step * pitch;
        y_wrap = image - (long long)down.pixels * down.step * line;
    }
    __device__ __forceinline__ void load(T* slice, Axis down, Axis across) {
#pragma unroll
        for (int i = 0; i < C::count; i++) {
            const bool valid = k < last && (unsigned)y < (unsigned)down.size && (unsigned)x < (unsigned)across.size;
            copy<V>(slice + LAYOUT::place(C::line() + i * C::step, C::element()), from, valid);
            k += C::step;
            y += dy;
            x += dx;
            from += jump;
            if (x >= x_end) {
                x -= across.pixels * across.step;
                y += down.step;
                from += x_wrap;
            }
            if (y >= y_end) {
                y -= down.pixels * down.step;
                from += y_wrap;
            }
        }
    }
};
