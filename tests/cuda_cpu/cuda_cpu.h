// What a .cu file sees when g++ compiles it for a test: the words, types and functions of CUDA C++ that kernels use.
// runtime.cpp runs the kernels, with a fiber for each CUDA thread.
#pragma once
#include <math.h>
#include <stdlib.h>

#include <type_traits>
#include <utility>

#define CUDA_CPU 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)  // the stand-in for CuPy reads these in the source
#define __constant__ static const
// The shared variables of a module are its .bss, which the runtime finds, poisons before each block, and checks.
// The stand-in for CuPy rewrites `extern __shared__ T x[];` as CC_DYNAMIC(T, x).
#define __shared__ static
#define CC_DYNAMIC(type, name) type* name = (type*)cc::dynamic_shared()

struct __align__(4) uchar4 { unsigned char x, y, z, w; };
struct __align__(4) ushort2 { unsigned short x, y; };
struct __align__(8) ushort4 { unsigned short x, y, z, w; };
struct __align__(8) int2 { int x, y; };
struct __align__(16) int4 { int x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct __align__(16) longlong2 { long long x, y; };
struct __align__(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(16) double2 { double x, y; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
inline uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w) { return {x, y, z, w}; }
inline ushort2 make_ushort2(unsigned short x, unsigned short y) { return {x, y}; }
inline ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z, unsigned short w) {
    return {x, y, z, w};
}
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

namespace cc {
// A place in the .cu file: a default argument, and so the place of the call.
struct Where {
    const char* file;
    int line;
    static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};
#define CC_HERE cc::Where::here()

// A thread's position never changes while it runs: these functions are "const", so that g++ hoists them out of loops.
enum Position { THREAD, BLOCK, BLOCK_DIM, GRID_DIM };
__attribute__((const)) unsigned position(Position which, int axis);
template <Position WHICH, int AXIS> struct Coordinate {
    operator unsigned() const { return position(WHICH, AXIS); }
};
template <Position WHICH> struct Index {
    Coordinate<WHICH, 0> x;
    Coordinate<WHICH, 1> y;
    Coordinate<WHICH, 2> z;
};

char* dynamic_shared();
void block_barrier(Where where);
enum Vote { AND, OR, COUNT };
int block_vote(int value, Vote vote, Where where);
void warp_barrier(unsigned mask, Where where);
enum Shuffle { FROM, UP, DOWN, XOR };
unsigned shuffle(unsigned value, Shuffle kind, int by, int width, unsigned mask, Where where);
unsigned ballot(bool value, unsigned mask, Where where);
void fence();
void trap(Where where);
enum Atomic { ADD, MAX, MIN, OR_BITS, AND_BITS, EXCHANGE, INCREMENT, SWAP_IF_EQUAL };
long long atomic(void* address, unsigned size, bool is_signed, Atomic kind, long long value, long long expected = 0);
void mma(float* d, const unsigned* a, const unsigned* b, bool bf16, Where where);
void ldmatrix4(unsigned* to, const void* row, bool transposed, Where where);
void copy16(void* to, const void* from, bool valid);
void copies_commit();
void copies_wait(int pending);

template <class To, class From> To cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
template <class T> T shuffle_any(T value, Shuffle kind, int by, int width, unsigned mask, Where where) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4 or 8 bytes");
    if constexpr (sizeof(T) == 4) {
        return cast<T>(shuffle(cast<unsigned>(value), kind, by, width, mask, where));
    } else {
        unsigned long long bits = cast<unsigned long long>(value);
        unsigned low = shuffle((unsigned)bits, kind, by, width, mask, where);
        unsigned high = shuffle((unsigned)(bits >> 32), kind, by, width, mask, where);
        return cast<T>((unsigned long long)high << 32 | low);
    }
}

// How a kernel declares its arguments, so that the stand-in for CuPy can check what it is given.
template <class T> constexpr char code() {
    if (std::is_pointer_v<T>) return 'p';
    if (std::is_same_v<T, bool>) return '?';
    if (std::is_class_v<T>) return 's';
    if (std::is_same_v<T, float>) return 'f';
    if (std::is_same_v<T, double>) return 'd';
    constexpr char letters[] = "bBhHiIqQ";
    int size = sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : 3;
    return letters[2 * size + !std::is_signed_v<T>];
}
template <class P> constexpr char pointee() {  // '.' where any type will do
    using T = std::remove_cv_t<std::remove_pointer_t<P>>;
    if constexpr (!std::is_pointer_v<P> || std::is_void_v<T> || std::is_same_v<T, char>) return '.';
    else return code<T>();
}
template <class... A> struct Kernel {
    void (*function)(A...);
    static const char* codes() {
        static const char text[] = {code<A>()..., 0};
        return text;
    }
    static const char* pointees() {  // of arguments that are pointers
        static const char text[] = {pointee<A>()..., 0};
        return text;
    }
    static const int* sizes() {
        static const int list[] = {(int)sizeof(A)..., 0};
        return list;
    }
    template <size_t... I> __attribute__((no_sanitize("thread"))) void call(void** args, std::index_sequence<I...>) {
        function(*(A*)args[I]...);
    }
    void call(void** args) { call(args, std::index_sequence_for<A...>{}); }
};
constexpr int first(int value, ...) { return value; }  // of the arguments of __launch_bounds__
template <class... A> Kernel<A...> kernel(void (*function)(A...)) { return {function}; }
}  // namespace cc

static const cc::Index<cc::THREAD> threadIdx;
static const cc::Index<cc::BLOCK> blockIdx;
static const cc::Index<cc::BLOCK_DIM> blockDim;
static const cc::Index<cc::GRID_DIM> gridDim;
constexpr int warpSize = 32;

// Barriers and warps
inline void __syncthreads(cc::Where at = CC_HERE) { cc::block_barrier(at); }
inline int __syncthreads_and(int value, cc::Where at = CC_HERE) { return cc::block_vote(value, cc::AND, at); }
inline int __syncthreads_or(int value, cc::Where at = CC_HERE) { return cc::block_vote(value, cc::OR, at); }
inline int __syncthreads_count(int value, cc::Where at = CC_HERE) { return cc::block_vote(value, cc::COUNT, at); }
inline void __syncwarp(unsigned mask = 0xffffffff, cc::Where at = CC_HERE) { cc::warp_barrier(mask, at); }
template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32, cc::Where at = CC_HERE) {
    return cc::shuffle_any(value, cc::FROM, lane, width, mask, at);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, cc::Where at = CC_HERE) {
    return cc::shuffle_any(value, cc::UP, by, width, mask, at);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, cc::Where at = CC_HERE) {
    return cc::shuffle_any(value, cc::DOWN, by, width, mask, at);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32, cc::Where at = CC_HERE) {
    return cc::shuffle_any(value, cc::XOR, by, width, mask, at);
}
inline unsigned __ballot_sync(unsigned mask, int value, cc::Where at = CC_HERE) { return cc::ballot(value, mask, at); }
inline int __any_sync(unsigned mask, int value, cc::Where at = CC_HERE) { return cc::ballot(value, mask, at) != 0; }
inline int __all_sync(unsigned mask, int value, cc::Where at = CC_HERE) { return cc::ballot(!value, mask, at) == 0; }
inline void __trap(cc::Where at = CC_HERE) { cc::trap(at); }
inline void __threadfence() { cc::fence(); }
inline void __threadfence_block() {}

// Atomics: on integers only. A floating-point sum would depend on the order of threads.
#define CC_ATOMIC(name, kind)                                                                    \
    template <class T> inline T name(T* address, std::common_type_t<T> value) {                  \
        static_assert(std::is_integral_v<T> && sizeof(T) >= 4, "only int, unsigned, long long"); \
        return (T)cc::atomic(address, sizeof(T), std::is_signed_v<T>, cc::kind, (long long)value); \
    }
CC_ATOMIC(atomicAdd, ADD)
CC_ATOMIC(atomicMax, MAX)
CC_ATOMIC(atomicMin, MIN)
CC_ATOMIC(atomicOr, OR_BITS)
CC_ATOMIC(atomicAnd, AND_BITS)
CC_ATOMIC(atomicExch, EXCHANGE)
CC_ATOMIC(atomicInc, INCREMENT)
template <class T> inline T atomicSub(T* address, std::common_type_t<T> value) { return atomicAdd(address, (T)-value); }
template <class T> inline T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
    constexpr bool is_signed = std::is_signed_v<T>;
    return (T)cc::atomic(address, sizeof(T), is_signed, cc::SWAP_IF_EQUAL, (long long)value, (long long)expected);
}

// Memory, with hints to the cache that mean nothing here
template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldca(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline void __stcg(T* p, std::common_type_t<T> value) { *p = value; }
template <class T> inline void __stcs(T* p, std::common_type_t<T> value) { *p = value; }
template <class T> inline void __stwt(T* p, std::common_type_t<T> value) { *p = value; }

// Mathematics. CUDA's min and max have these overloads; calls with mixed types are ambiguous there too, or lossy.
#define CC_MIN_MAX(T)                                       \
    inline T min(T a, T b) { return a < b ? a : b; }        \
    inline T max(T a, T b) { return a > b ? a : b; }
CC_MIN_MAX(int)
CC_MIN_MAX(unsigned)
CC_MIN_MAX(long)
CC_MIN_MAX(unsigned long)
CC_MIN_MAX(long long)
CC_MIN_MAX(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __saturatef(float x) { return x > 0 ? x < 1 ? x : 1 : 0; }
// Sums and products that g++ must not contract into one fused operation, as nvcc does not.
__attribute__((noinline, noipa)) static float __fmul_rn(float a, float b) { return a * b; }
__attribute__((noinline, noipa)) static float __fadd_rn(float a, float b) { return a + b; }
__attribute__((noinline, noipa)) static float __fsub_rn(float a, float b) { return a - b; }
__attribute__((noinline, noipa)) static double __dmul_rn(double a, double b) { return a * b; }
__attribute__((noinline, noipa)) static double __dadd_rn(double a, double b) { return a + b; }

// Bits and conversions
inline unsigned __float_as_uint(float x) { return cc::cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return cc::cast<float>(x); }
inline int __float_as_int(float x) { return cc::cast<int>(x); }
inline float __int_as_float(int x) { return cc::cast<float>(x); }
inline long long __double_as_longlong(double x) { return cc::cast<long long>(x); }
inline double __longlong_as_double(long long x) { return cc::cast<double>(x); }
inline int __float2int_rn(float x) { return (int)rintf(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline int __float2int_rd(float x) { return (int)floorf(x); }
inline int __float2int_ru(float x) { return (int)ceilf(x); }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __double2float_rn(double x) { return (float)x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
inline int __mulhi(int a, int b) { return (long long)a * b >> 32; }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}

// What the product's ptx.cuh has as PTX instructions
inline void mma_tf32(float* d, const unsigned* a, const unsigned* b, cc::Where at = CC_HERE) {
    cc::mma(d, a, b, false, at);
}
inline void mma_bf16(float* d, const unsigned* a, const unsigned* b, cc::Where at = CC_HERE) {
    cc::mma(d, a, b, true, at);
}
inline void ldmatrix4(unsigned* to, const void* row, cc::Where at = CC_HERE) { cc::ldmatrix4(to, row, false, at); }
inline void ldmatrix4_transposed(unsigned* to, const void* row, cc::Where at = CC_HERE) {
    cc::ldmatrix4(to, row, true, at);
}
inline void copy16(void* to, const void* from, bool valid) { cc::copy16(to, from, valid); }
inline void copies_commit() { cc::copies_commit(); }
template <int N> inline void copies_wait() { cc::copies_wait(N); }
inline unsigned to_tf32(unsigned bits) {  // to the nearest, ties away from zero; infinities and NaN stay
    return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & 0xffffe000;
}
