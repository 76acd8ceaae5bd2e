// From a tile's sums in registers to global memory, by way of shared memory: so warps write whole lines of memory.

// Two neighbours in one store.
__device__ __forceinline__ void store_pair(bf16* to, float a, float b) { *(unsigned*)to = pack_bf16(a, b); }
__device__ __forceinline__ void store_pair(float* to, float a, float b) {
    *(unsigned long long*)to = __float_as_uint(a) | (unsigned long long)__float_as_uint(b) << 32;
}
__device__ __forceinline__ void store_pair(double* to, double a, double b) { *(double2*)to = {a, b}; }

// A tile of P (a Product), or where that does not fit in LIMIT bytes half of each warp's columns at a time. After it in
// shared memory: for each row of the tile its row of the output, -1 for none.
template <class O, class P, int ROWS, int COLS, int LIMIT> struct Stage {
    typedef typename P::W W;
    static constexpr int parts = ROWS * (COLS + 8) * (int)sizeof(O) + ROWS * 4 <= LIMIT ? 1 : 2;
    static constexpr int cols = COLS / parts, pitch = cols + 8;  // 8 more: rows begin in different banks
    static constexpr int warp_cols = P::warp_cols / parts, bytes = ROWS * pitch * (int)sizeof(O);
    static_assert(bytes + ROWS * 4 <= LIMIT, "the tile does not fit");
    O* sums;
    int* target;

    __device__ __forceinline__ Stage(char* shared) : sums((O*)shared), target((int*)(shared + bytes)) {}
    // The tile's column that is column q of a part.
    static __device__ __forceinline__ int tile_col(int part, int q) {
        return q / warp_cols * P::warp_cols + part * warp_cols + q % warp_cols;
    }

    // Put a part's sums, plus bias (may be null), no less than `floor`. The tile begins at column col0 of all_cols.
    __device__ __forceinline__ void put(const P& product, int part, const W* bias, W floor, int col0, int all_cols) {
        const int first = product.col0 / P::warp_cols * warp_cols + 2 * product.member;
#pragma unroll
        for (int j = 0; j < warp_cols / 8; j++) {
            const int piece = part * (warp_cols / 8) + j, col = col0 + product.col0 + product.col(piece, 0);
            const W left = bias && col < all_cols ? bias[col] : (W)0;
            const W right = bias && col + 1 < all_cols ? bias[col + 1] : (W)0;
#pragma unroll
            for (int i = 0; i < P::high; i++)
#pragma unroll
                for (int e = 0; e < 4; e += 2) {
                    const W a = product.sum[i][piece][e] + left, b = product.sum[i][piece][e + 1] + right;
                    O* to = sums + (product.row0 + product.row(i, e)) * pitch + first + 8 * j;
                    store_pair(to, a < floor ? floor : a, b < floor ? floor : b);  // NaN stays NaN
                }
        }
    }
    // The activation `kind` of all; a loop, since code for each sum in registers would be long.
    __device__ __forceinline__ void activate(int kind) {
#pragma unroll 1
        for (int i = threadIdx.x; i < ROWS * cols; i += TILE_THREADS) {
            O& value = sums[i / cols * pitch + i % cols];
            value = narrow<O>(activated<W>(widen(value), kind));
        }
    }
    // Copy to `out`, of which rows have `all_cols` elements, V at a time.
    template <int V> __device__ __forceinline__ void write(O* out, int part, int col0, int all_cols) const {
#pragma unroll 4
        for (int i = threadIdx.x; i < ROWS * cols / V; i += TILE_THREADS) {
            const int row = i / (cols / V), q = i % (cols / V) * V, col = col0 + tile_col(part, q), to = target[row];
            if (to < 0 || col >= all_cols) continue;
            O* place = out + (long long)to * all_cols + col;
            if constexpr (V > 1) *(int4*)place = *(const int4*)(sums + row * pitch + q);
            else *place = sums[row * pitch + q];
        }
    }
    // Each column's mean over the first `count` rows, and the sum of squared distances from it: to out (2, all_cols).
    __device__ __forceinline__ void statistics(W* out, int part, int count, int col0, int all_cols) const {
        const int q = threadIdx.x, col = col0 + tile_col(part, q);
        if (q >= cols || col >= all_cols) return;
        W mean = 0, squares = 0;
        for (int r = 0; r < count; r++) mean += widen(sums[r * pitch + q]);
        mean /= count;
        for (int r = 0; r < count; r++) {
            const W distance = widen(sums[r * pitch + q]) - mean;
            squares += distance * distance;
        }
        out[col] = mean;
        out[all_cols + col] = squares;
    }
};
