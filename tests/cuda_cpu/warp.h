// What the lanes of a warp do together: shuffles, ballots, and products on tensor cores.
#pragma once
#include "checker.h"

namespace cc {
void warp_barrier(unsigned mask, Where where) {
    auto run = [](int warp, void**, unsigned) { warps[warp].synced = ++now; };
    wait_for_warp(run, nullptr, mask, where);
}

struct ShuffleOperand {
    unsigned value, result;
    Shuffle kind;
    int by, width;
};
static void run_shuffle(int, void** operands, unsigned lanes) {
    for (unsigned rest = lanes; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        auto& s = *(ShuffleOperand*)operands[lane];
        int base = lane & ~(s.width - 1), end = base + s.width, from = lane;
        if (s.kind == FROM) from = base + (s.by & (s.width - 1));
        if (s.kind == UP && lane - s.by >= base) from = lane - s.by;
        if (s.kind == DOWN && lane + s.by < end) from = lane + s.by;
        if (s.kind == XOR && (lane ^ s.by) < end) from = lane ^ s.by;
        // What a lane reads from one that takes no part is undefined: NaN.
        s.result = lanes >> from & 1 ? ((ShuffleOperand*)operands[from])->value : 0xffffffff;
    }
}
unsigned shuffle(unsigned value, Shuffle kind, int by, int width, unsigned mask, Where where) {
    ShuffleOperand operand{value, 0, kind, by, width};
    wait_for_warp(run_shuffle, &operand, mask, where);
    return operand.result;
}

struct BallotOperand {
    bool value;
    unsigned result;
};
static void run_ballot(int, void** operands, unsigned lanes) {
    unsigned votes = 0;
    for (int lane = 0; lane < 32; lane++)
        if (lanes >> lane & 1 && ((BallotOperand*)operands[lane])->value) votes |= 1u << lane;
    for (int lane = 0; lane < 32; lane++)
        if (lanes >> lane & 1) ((BallotOperand*)operands[lane])->result = votes;
}
unsigned ballot(bool value, unsigned mask, Where where) {
    BallotOperand operand{value, 0};
    wait_for_warp(run_ballot, &operand, mask, where);
    return operand.result;
}

// D += A B. Fragments as the PTX ISA lays them out: "Matrix fragments for mma.m16n8k8" with .tf32 and
// "mma.m16n8k16" with .bf16. g is a lane's group of four, t its place there.
struct MmaOperand {
    float* d;
    const unsigned *a, *b;
};
static float bf16_value(unsigned bits) { return cast<float>(bits << 16); }
static float tf32_value(unsigned bits) { return cast<float>(bits & 0xffffe000); }  // the instruction ignores the rest
template <bool BF16> static void run_mma(int, void** operands, unsigned lanes) {
    if (lanes != 0xffffffff) return problem("mma by less than a warp");
    constexpr int DEPTH = BF16 ? 16 : 8;
    float a[16][DEPTH], b[DEPTH][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        auto& m = *(MmaOperand*)operands[lane];
        int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 4; r++) {
            if constexpr (BF16) {
                a[g + 8 * (r & 1)][2 * t + 8 * (r >> 1)] = bf16_value(m.a[r] & 0xffff);
                a[g + 8 * (r & 1)][2 * t + 8 * (r >> 1) + 1] = bf16_value(m.a[r] >> 16);
            } else {
                a[g + 8 * (r & 1)][t + 4 * (r >> 1)] = tf32_value(m.a[r]);
            }
            d[g + 8 * (r >> 1)][2 * t + (r & 1)] = m.d[r];
        }
        for (int r = 0; r < 2; r++) {
            if constexpr (BF16) {
                b[2 * t + 8 * r][g] = bf16_value(m.b[r] & 0xffff);
                b[2 * t + 8 * r + 1][g] = bf16_value(m.b[r] >> 16);
            } else {
                b[t + 4 * r][g] = tf32_value(m.b[r]);
            }
        }
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < DEPTH; k++)
            for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < 32; lane++)
        for (int r = 0; r < 4; r++)
            ((MmaOperand*)operands[lane])->d[r] = d[lane / 4 + 8 * (r >> 1)][2 * (lane % 4) + (r & 1)];
}
void mma(float* d, const unsigned* a, const unsigned* b, bool bf16, Where where) {
    MmaOperand operand{d, a, b};
    wait_for_warp(bf16 ? run_mma<true> : run_mma<false>, &operand, 0xffffffff, where);
}

// Four 8x8 matrices of 16-bit values: lane i gives the address of row i % 8 of matrix i / 8, and gets of each matrix
// the two values in row i / 4, columns 2 (i % 4) and the next; transposed, in those rows of that column.
struct LdmatrixOperand {
    unsigned* to;
    const char* row;
    void* where;
};
template <bool TRANSPOSED> static void run_ldmatrix4(int warp, void** operands, unsigned lanes) {
    if (lanes != 0xffffffff) return problem("ldmatrix by less than a warp");
    Thread* before = running;
    for (int matrix = 0; matrix < 4; matrix++) {
        uint16_t rows[8][8];
        for (int r = 0; r < 8; r++) {
            auto& operand = *(LdmatrixOperand*)operands[8 * matrix + r];
            running = &threads[32 * warp + 8 * matrix + r];
            if ((size_t)(operand.row - arena) < ARENA) accuse("ldmatrix from global memory", operand.where);
            if (touch<READ>(operand.row, 16, operand.where)) std::memcpy(rows[r], operand.row, 16);
            else stopped = true;
        }
        for (int lane = 0; lane < 32; lane++) {
            int g = lane / 4, t = 2 * (lane % 4);
            unsigned low = TRANSPOSED ? rows[t][g] : rows[g][t], high = TRANSPOSED ? rows[t + 1][g] : rows[g][t + 1];
            ((LdmatrixOperand*)operands[lane])->to[matrix] = low | high << 16;
        }
    }
    running = before;
}
void ldmatrix4(unsigned* to, const void* row, bool transposed, Where where) {
    LdmatrixOperand operand{to, (const char*)row, __builtin_return_address(0)};
    wait_for_warp(transposed ? run_ldmatrix4<true> : run_ldmatrix4<false>, &operand, 0xffffffff, where);
}

// Asynchronous copies arrive as late as they may: when their thread waits for them.
void copy16(void* to, const void* from, bool valid) {
    void* where = __builtin_return_address(0);
    if ((uintptr_t)to % 16 || (valid && (uintptr_t)from % 16)) accuse("misaligned cp.async", where);
    if ((size_t)((char*)to - arena) < ARENA) accuse("cp.async to global memory", where);
    if (valid && !touch<READ>(from, 16, where)) abandon();
    if (!touch<WRITE>(to, 16, where)) abandon();  // from now on it may arrive
    running->copies.push_back({(char*)to, (const char*)from, valid, running->group, where});
}
void copies_commit() { running->group++; }
void copies_wait(int pending) {
    auto& copies = running->copies;
    size_t arrived = 0;
    bool was_counting = counting;
    counting = false;  // each copy is one request, counted when it began
    for (; arrived < copies.size() && copies[arrived].group < running->group - pending; arrived++) {
        Copy& copy = copies[arrived];
        touch<WRITE>(copy.to, 16, copy.where);
        if (copy.valid) std::memcpy(copy.to, copy.from, 16);
        else std::memset(copy.to, 0, 16);
    }
    counting = was_counting;
    copies.erase(copies.begin(), copies.begin() + arrived);
}
}  // namespace cc
