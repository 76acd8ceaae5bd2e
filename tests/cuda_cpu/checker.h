// Checks every load and store of the kernels: bounds, alignment, races, shared memory that was never written.
//
// g++ -fsanitize=thread puts a call before each load and store; here are the functions that it calls, in place of
// its own library. Races are found by time (scheduler.h): what has no barrier in between could happen in any order.
#pragma once
#include <map>
#include <tuple>

#include "costs.h"
#include "memory.h"

namespace cc {
// Flags beside the thread's number in a cell.
constexpr uint32_t BY_ATOMIC = 1u << 31;     // of a writer
constexpr uint32_t MANY = 1u << 31;          // of a reader: other threads of its block read too,
constexpr uint32_t MANY_WARPS = 1u << 30;    // also some of other warps, since the last barrier;
constexpr uint32_t OTHER_BLOCKS = 1u << 29;  // and other blocks
constexpr uint32_t NUMBER = OTHER_BLOCKS - 1;
static bool checking;

// Blocks are ordered through an integer that they count up: a block that has called __threadfence after its writes and
// then changed the counter by an atomic has released them to all blocks that change the counter later.
struct Counter {
    std::map<uint32_t, std::vector<uint32_t>> released;  // block -> for each thread, the time until which
};
struct Acquired {
    const void* address;
    uint32_t when;
    int thread;
};
static std::map<const void*, Counter> counters;
static std::vector<Acquired> acquired;  // by the block that runs

void fence() {
    running->fenced = ++now;
    running->fenced_block = block_synced;
}
static void acquire_and_release(const void* address) {
    std::vector<uint32_t> until(block_size);
    auto visible = [](const Thread& t) { return &t == running || t.fenced < block_synced; };
    uint32_t of_block = 0;  // a fence also covers what the other threads wrote before the barrier before it
    for (int i = 0; i < block_size; i++)
        if (visible(threads[i])) of_block = std::max(of_block, threads[i].fenced_block);
    for (int i = 0; i < block_size; i++) until[i] = visible(threads[i]) ? std::max(of_block, threads[i].fenced) : of_block;
    counters[address].released[(running->number - 1) / MAX_THREADS] = std::move(until);
    acquired.push_back({address, now, running->index});
}
static bool knows(const Acquired& each) { return each.thread == running->index || each.when < block_synced; }
static bool ordered_by_counter(const void* address, uint32_t number, uint32_t when, bool by_atomic) {
    for (auto& each : acquired) {
        if (!knows(each)) continue;
        if (by_atomic && each.address == address) return true;
        auto& released = counters[each.address].released;
        auto block = released.find((number - 1) / MAX_THREADS);
        if (block != released.end() && when < block->second[(number - 1) % MAX_THREADS]) return true;
    }
    return false;
}
static bool after_other_blocks() { return std::any_of(acquired.begin(), acquired.end(), knows); }

static std::set<std::tuple<void*, std::string>> accused;
static bool accuse(const std::string& what, void* where, const std::string& more = "") {
    if (!accused.insert({where, what}).second) return true;
    char code[32];
    snprintf(code, sizeof code, " at @%zu by ", (size_t)where);
    problem(what + code + name(*running) + (more.empty() ? "" : ": ") + more);
    return true;  // the run continues, to find more
}

static bool of_other_block(uint32_t number) { return (number - 1) / MAX_THREADS != (running->number - 1) / MAX_THREADS; }
// Whether no barrier orders that access of a thread of this block, or of many, before this one.
static bool unordered(uint32_t number, uint32_t when, bool many_warps) {
    if (when < block_synced) return false;
    int warp = running->index / 32;
    return many_warps || (number - 1) % MAX_THREADS / 32 != (uint32_t)warp || when >= warps[warp].synced;
}
static void __attribute__((noinline)) accuse_of_race(const char* what, uint32_t number, bool shared, void* where) {
    std::string other = of_other_block(number) ? "block " + std::to_string((number - 1) / MAX_THREADS)
                                               : "thread " + std::to_string((number - 1) % MAX_THREADS) + " of its block";
    if (!shared && !acquired.empty()) other += "; a counter orders only what came before a __threadfence";
    accuse(std::string("race in ") + (shared ? "shared" : "global") + " memory, " + what, where, "with " + other);
}

// Reads: what the cell says of its readers, with this one.
static inline uint32_t with_reader(const Cell& cell, uint32_t self) {
    uint32_t number = cell.reader & NUMBER;
    if (of_other_block(number)) return self | OTHER_BLOCKS;
    uint32_t flags = cell.reader & OTHER_BLOCKS;
    if (unordered(number, cell.read, cell.reader & MANY_WARPS)) {
        flags |= cell.reader & (MANY | MANY_WARPS);
        if (number != self) flags |= (number - 1) / 32 == (self - 1) / 32 ? MANY : MANY | MANY_WARPS;
    }
    return self | flags;
}
template <Access ACCESS>
static inline void check_cells(Cell* cell, int cells, const void* p, void* where, bool shared) {
    const uint32_t self = running->number, began = shared ? block_synced : launch_began;
    for (; cells > 0; cells--, cell++) {
        if (shared && ACCESS != WRITE && __builtin_expect(cell->written < block_began, 0))
{
            accuse("shared memory is read that was never written", where);
            return;
        }
        if (cell->written >= began && (cell->writer & NUMBER) != self) {
            uint32_t number = cell->writer & NUMBER;
            bool by_atomic = cell->writer & BY_ATOMIC;
            bool race = of_other_block(number) ? !ordered_by_counter(p, number, cell->written, by_atomic)
                                               : unordered(number, cell->written, false);
            if (race && !(ACCESS == ATOMIC && by_atomic))
                accuse_of_race(ACCESS == READ ? "write and read" : "two writes", number, shared, where);
        }
        if (ACCESS == READ) {
            cell->reader = cell->read >= began ? with_reader(*cell, self) : self;
            cell->read = now;
            continue;
        }
        if (cell->read >= began && cell->reader != self) {
            uint32_t number = cell->reader & NUMBER;
            bool others = cell->reader & OTHER_BLOCKS || of_other_block(number);
            if ((others && !after_other_blocks()) ||
                ((number != self || cell->reader & MANY) && !of_other_block(number) &&
                 unordered(number, cell->read, cell->reader & MANY_WARPS)))
                accuse_of_race("read and write", number, shared, where);
        }
        cell->written = now;
        cell->writer = self | (ACCESS == ATOMIC ? BY_ATOMIC : 0);
    }
}

// An access to neither the arena nor shared memory: the thread's own variables and constants, or a mistake.
// False where there may be no memory at all.
static bool __attribute__((noinline)) check_elsewhere(const char* p, unsigned size, Access access, void* where) {
    if ((size_t)(p - running->stack) < STACK || (access == READ && p >= module.first && p + size <= module.last)) return true;
    if ((size_t)(p - stacks) < STACK * MAX_THREADS) return accuse("another thread's local variable is used", where);
    accuse(p < (char*)4096 ? "a null pointer is used" : "host memory, or none, is used", where, std::to_string(size) + " bytes");
    return false;
}

// False where the access must not be made.
template <Access ACCESS> static inline bool touch(const void* address, unsigned size, void* where) {
    if (!running || !checking) return true;
    const char* p = (const char*)address;
    size_t offset = p - arena;
    Cell* cell;
    bool shared = true;
    if (offset < ARENA) {
        if (__builtin_expect(!find_array(offset, size), 0))
            return accuse(ACCESS == READ ? "read out of bounds" : "write out of bounds", where,
                          std::to_string(size) + " bytes, " + beside(offset));
        cell = arena_cells + offset / GRAIN;
        shared = false;
    } else if ((offset = p - shared_room) < MAX_SHARED) {
        if (offset + size > shared_size)
            return accuse("shared memory out of bounds", where, std::to_string(offset + size - shared_size) + " bytes too far");
        cell = &shared_cells[offset / GRAIN];
    } else if (p >= module.bss_first && p < module.bss_last) {
        cell = &static_cells[(p - module.bss_first) / GRAIN];
    } else {
        return check_elsewhere(p, size, ACCESS, where);
    }
    if (__builtin_expect(counting, 0)) count_access(p, size, where, shared);
    if (__builtin_expect((uintptr_t)p & (size - 1), 0)) return accuse("misaligned access", where, std::to_string(size) + " bytes");
    check_cells<ACCESS>(cell, (size + GRAIN - 1) / GRAIN, p, where, shared);
    return true;
}

long long atomic(void* address, unsigned size, bool is_signed, Atomic kind, long long value, long long expected) {
    if (!touch<ATOMIC>(address, size, __builtin_return_address(0))) abandon();
    if ((size_t)((char*)address - arena) < ARENA) acquire_and_release(address);
    long long old = 0;
    std::memcpy(&old, address, size);
    if (size == 4) old = is_signed ? (long long)(int)old : (long long)(unsigned)old;
    bool less = is_signed ? old < value : (unsigned long long)old < (unsigned long long)value;
    long long result = kind == ADD              ? old + value
                       : kind == MAX            ? (less ? value : old)
                       : kind == MIN            ? (less ? old : value)
                       : kind == OR_BITS        ? old | value
                       : kind == AND_BITS       ? old & value
                       : kind == EXCHANGE       ? value
                       : kind == INCREMENT      ? (less ? old + 1 : 0)
                       : old == expected        ? value
                                                : old;
    std::memcpy(address, &result, size);
    return old;
}

extern "C" {
#define CC_HOOK(name, ACCESS, size)                                                     \
    void __tsan_##name##size(void* p) {                                                 \
        if (!touch<ACCESS>(p, size, __builtin_return_address(0))) abandon();            \
    }
#define CC_HOOKS(size)                                                                  \
    CC_HOOK(read, READ, size)                                                           \
    CC_HOOK(write, WRITE, size)                                                         \
    CC_HOOK(unaligned_read, READ, size)                                                 \
    CC_HOOK(unaligned_write, WRITE, size)                                               \
    CC_HOOK(volatile_read, READ, size)                                                  \
    CC_HOOK(volatile_write, WRITE, size)
CC_HOOKS(1)
CC_HOOKS(2)
CC_HOOKS(4)
CC_HOOKS(8)
CC_HOOKS(16)
void __tsan_read_range(void* p, size_t size) {
    for (size_t i = 0; i < size; i += 4)
        if (!touch<READ>((char*)p + i, 4, __builtin_return_address(0))) abandon();
}
void __tsan_write_range(void* p, size_t size) {
    for (size_t i = 0; i < size; i += 4)
        if (!touch<WRITE>((char*)p + i, 4, __builtin_return_address(0))) abandon();
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
}  // namespace cc
