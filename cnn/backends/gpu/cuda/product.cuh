// The product of one tile: its operands' slices in shared memory, its sums in registers.
//
// A block computes ROWS x COLS sums over an index k, of which a slice of 64 bytes is in shared memory at a time. Each
// of its four warps has a rectangle of the sums: 64 x 64 in the largest tiles, 128 x 128 and 256 x 64, for which it
// reads 8 KiB of shared memory per slice and 64 mma instructions. Eight warps of 64 x 32 would read half as much again,
// and shared memory, not the tensor cores, would set the pace. The price is 128 sums a thread: two blocks fill the
// registers of a multiprocessor.
//
// What an H100 could reach, by counting (not measured): per slice of a 128 x 128 tile in bfloat16, the mma of a warp
// take about 410 clocks at the rate of mma.sync, 5/8 of the peak that only wgmma reaches; 48 KiB pass through shared
// memory, 384 clocks; and a warp issues 220 to 230 instructions, of two warps a scheduler. So up to 5/8 of the peak,
// limited by the tensor cores and almost as much by shared memory. TF32, of half that peak, issues 300 to 330.

enum Math { PLAIN, TF32, BF16 };  // multiply-adds of single threads, in T; or tensor cores, which sum in float32

constexpr int TILE_THREADS = 128;  // of a block
template <class T> constexpr int VEC = 16 / (int)sizeof(T);    // elements in a chunk of 16 bytes
template <class T> constexpr int DEPTH = 64 / (int)sizeof(T);  // elements of k in a slice

// The layout of a slice, LENGTH rows (or columns) x DEPTH, as the operand lies in global memory: with neighbours along
// k in one line, or neighbours across it. All that a warp writes or reads at once, with copy16, ldmatrix or plain loads
// of a fragment, lies in different banks. Lines of 64 bytes are permuted for that (a swizzle of 16-byte chunks); long
// lines have 8 elements between them, so that addresses differ by constants.
template <class T, bool ALONG_K, int LENGTH> struct Layout {
    static constexpr bool along_k = ALONG_K;
    static constexpr int lines = ALONG_K ? LENGTH : DEPTH<T>, line = ALONG_K ? DEPTH<T> : LENGTH;
    static constexpr int pitch = ALONG_K ? line : line + 8, size = lines * pitch;  // elements from line to line; of all
    static constexpr int period = ALONG_K ? 8 : 1;  // lines after which the permutation repeats

    static __device__ __forceinline__ int place(unsigned i, unsigned element) {  // an element of line i
        if (!ALONG_K) return i * pitch + element;
        return i * pitch + (element / VEC<T> ^ (i >> 1 & 3)) * VEC<T> + element % VEC<T>;
    }
    static __device__ __forceinline__ int at(int i, int k) { return ALONG_K ? place(i, k) : place(k, i); }
    // From at(i, k) to at(i + n, k), where n is a multiple of the period.
    static __device__ __forceinline__ int down(int n) { return ALONG_K ? n * pitch : n; }
};

// The tensor cores cut the lower 13 bits off, down to TF32's 10 bits of significand. A third to two thirds of the last
// bit that is left, 1/2 on average, added before makes that a rounding to nearest in most cases, with half the
// instructions. Numbers of 10 bits stay as they are, and so do infinities and NaN.
__device__ __forceinline__ unsigned tf32_bits(unsigned x) {
    return __float_as_uint(__uint_as_float(x) * (1 + 1 / 3072.0f));
}

// A warp's share of the tile. LEFT and RIGHT are layouts.
template <class T, int MATH, class LEFT, class RIGHT, int ROWS, int COLS> struct Product {
    typedef WideOf<T> W;
    static constexpr int warps_across = ROWS > 128 ? 1 : 2;
    static constexpr int warp_rows = ROWS * warps_across / 4, warp_cols = COLS / warps_across;
    static constexpr int high = warp_rows / 16, across = warp_cols / 8;  // pieces of 16 rows, and of 8 columns
    W sum[high][across][4];  // of each piece 16 x 8, four elements a thread, as mma.sync lays them out: see row, col
    int row0, col0, group, member;  // the warp's first row and column; the lane's group of four, and place in it

    __device__ __forceinline__ Product() {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        row0 = warp / warps_across * warp_rows;
        col0 = warp % warps_across * warp_cols;
        group = lane / 4;
        member = lane % 4;
#pragma unroll
        for (int i = 0; i < high; i++)
#pragma unroll
            for (int j = 0; j < across; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) sum[i][j][e] = 0;
    }
    // Where sum[i][j][e] lies, relative to the warp's first row and column.
    __device__ __forceinline__ int row(int i, int e) const { return 16 * i + group + 8 * (e >> 1); }
    __device__ __forceinline__ int col(int j, int e) const { return 8 * j + 2 * member + (e & 1); }

    // Add the product of two slices. `meanwhile` is called once the first fragments are requested.
    template <class F> __device__ __forceinline__ void add(const T* left, const T* right, F meanwhile) {
        if constexpr (MATH == PLAIN) {
            meanwhile();
#pragma unroll 4
            for (int k = 0; k < DEPTH<T>; k++) add_plain(left, right, k);
        } else {
            constexpr int step = MATH == TF32 ? 8 : 16;
#pragma unroll
            for (int k = 0; k < DEPTH<T>; k += step) {
                unsigned a[high][4], b[across][2];
                read_left(a, left, k);
                read_right(b, right, k);
                if (k == 0) meanwhile();
#pragma unroll
                for (int i = 0; i < high; i++)
#pragma unroll
                    for (int j = 0; j < across; j++)
                        if constexpr (MATH == TF32) mma_tf32(sum[i][j], a[i], b[j]);
                        else mma_bf16(sum[i][j], a[i], b[j]);
            }
        }
    }

  private:
    __device__ __forceinline__ void read_left(unsigned (&a)[high][4], const T* slice, int k) const {
        const int lane = threadIdx.x % 32;
        if constexpr (LEFT::along_k) slice += LEFT::at(row0 + lane % 16, k + lane / 16 * VEC<T>);
        else if constexpr (MATH == BF16) slice += LEFT::at(row0 + (lane & 8), k + lane % 8 + lane / 16 * 8);
        else slice += LEFT::at(row0 + group, k + member);
#pragma unroll
        for (int i = 0; i < high; i++) {
            const T* piece = slice + LEFT::down(16 * i);
            if constexpr (LEFT::along_k) ldmatrix4(a[i], piece);
            else if constexpr (MATH == BF16) ldmatrix4_transposed(a[i], piece);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if constexpr (!LEFT::along_k && MATH == TF32)
                    a[i][e] = __float_as_uint(piece[8 * (e & 1) + LEFT::pitch * 4 * (e >> 1)]);
                if constexpr (MATH == TF32) a[i][e] = tf32_bits(a[i][e]);
            }
        }
    }
    __device__ __forceinline__ void read_right(unsigned (&b)[across][2], const T* slice, int k) const {
        const int lane = threadIdx.x % 32;
        if constexpr (RIGHT::along_k)
            slice += RIGHT::at(col0 + lane % 8 + lane / 16 * 8, k + (lane / 8 & 1) * VEC<T>);
        else if constexpr (MATH == BF16) slice += RIGHT::at(col0 + lane / 16 * 8, k + lane % 16);
        else slice += RIGHT::at(col0 + group, k + member);
#pragma unroll
        for (int j = 0; j < across; j += 2) {
            const T* piece = slice + RIGHT::down(8 * j);
            unsigned two[4];  // both registers of piece j, then of piece j + 1
            if constexpr (RIGHT::along_k) ldmatrix4(two, piece);
            else if constexpr (MATH == BF16) ldmatrix4_transposed(two, piece);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                if constexpr (!RIGHT::along_k && MATH == TF32)
                    two[e] = __float_as_uint(piece[8 * (e >> 1) + RIGHT::pitch * 4 * (e & 1)]);
                b[j + e / 2][e % 2] = MATH == TF32 ? tf32_bits(two[e]) : two[e];
            }
        }
    }
    __device__ __forceinline__ void add_plain(const T* left, const T* right, int k) {
        left += LEFT::at(row0 + group, k);
        const T *even = right + RIGHT::at(col0 + 2 * member, k), *odd = right + RIGHT::at(col0 + 2 * member + 1, k);
        T a[2 * high], b[2 * across];
#pragma unroll
        for (int i = 0; i < 2 * high; i++) a[i] = left[LEFT::down(8 * i)];
#pragma unroll
        for (int j = 0; j < 2 * across; j++) b[j] = (j % 2 ? odd : even)[RIGHT::down(8 * (j / 2))];
#pragma unroll
        for (int i = 0; i < high; i++)
#pragma unroll
            for (int j = 0; j < across; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) sum[i][j][e] += a[2 * i + e / 2] * b[2 * j + e % 2];
    }
};
