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
constexpr uint32_t IN_BYTES = 1u << 30;      // of a word's writer: each byte has its own cell
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
    for (int i = 0; i < block_size; i++)
        until[i] = visible(threads[i]) ? std::max(of_block, threads[i].fenced) : of_block;
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

static uint32_t block_of(uint32_t number) { return (number - 1) / MAX_THREADS; }
static bool of_other_block(uint32_t number) { return block_of(number) != block_of(running->number); }
// Whether no barrier orders that access of a thread of this block, or of many, before this one.
static bool unordered(uint32_t number, uint32_t when, bool many_warps) {
    if (when < block_synced) return false;
    int warp = running->index / 32;
    return many_warps || (number - 1) % MAX_THREADS / 32 != (uint32_t)warp || when >= warps[warp].synced;
}
static void __attribute__((noinline)) accuse_of_race(const char* what, uint32_t number, bool shared, void* where) {
    std::string other = of_other_block(number)
                            ? "block " + std::to_string(block_of(number))
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
template <Access ACCESS> static inline void check_cell(Cell& cell, const void* p, void* where, bool shared) {
    const uint32_t self = running->number, began = shared ? block_synced : launch_began;
    if (shared && ACCESS != WRITE && __builtin_expect(cell.written < block_began, 0)) {
        accuse("shared memory is read that was never written", where);
        return;
    }
    if (cell.written >= began && (cell.writer & NUMBER) != self) {
        uint32_t number = cell.writer & NUMBER;
        bool by_atomic = cell.writer & BY_ATOMIC;
        bool race = of_other_block(number) ? !ordered_by_counter(p, number, cell.written, by_atomic)
                                           : unordered(number, cell.written, false);
        if (race && !(ACCESS == ATOMIC && by_atomic))
            accuse_of_race(ACCESS == READ ? "write and read" : "two writes", number, shared, where);
    }
    if (ACCESS == READ) {
        constexpr uint32_t ALL = MANY | MANY_WARPS;
        if (cell.read >= block_synced && (cell.reader & ALL) == ALL)  // nothing to add: this is only faster
            cell.reader = (cell.reader & ~NUMBER) | self;
        else
            cell.reader = cell.read >= began ? with_reader(cell, self) : self;
        cell.read = now;
        return;
    }
    if (cell.read >= began && cell.reader != self) {
        uint32_t number = cell.reader & NUMBER;
        bool others = cell.reader & OTHER_BLOCKS || of_other_block(number);
        if ((others && !after_other_blocks()) ||
            ((number != self || cell.reader & MANY) && !of_other_block(number) &&
             unordered(number, cell.read, cell.reader & MANY_WARPS)))
            accuse_of_race("read and write", number, shared, where);
    }
    cell.written = now;
    cell.writer = self | (ACCESS == ATOMIC ? BY_ATOMIC : 0);
}
// A half or a byte, or a word that had one.
template <Access ACCESS>
static void __attribute__((noinline))
check_bytes(Records& records, size_t offset, unsigned size, const void* p, void* where, bool shared) {
    Cell &word = records.words[offset / WORD], *bytes = records.bytes + offset / WORD * WORD;
    if (!(word.writer & IN_BYTES)) {
        std::fill_n(bytes, WORD, word);
        word.writer |= IN_BYTES;
    }
    word.written = now;  // when any of its bytes was last accessed
    for (Cell* byte = bytes + offset % WORD; size; size--, byte++) check_cell<ACCESS>(*byte, p, where, shared);
}
template <Access ACCESS>
static inline void check_access(
    Records& records, size_t offset, unsigned size, const void* p, void* where, bool shared) {
    if (size < WORD) return check_bytes<ACCESS>(records, offset, size, p, where, shared);
    Cell* word = records.words + offset / WORD;
    for (unsigned done = 0; done < size; done += WORD, word++) {
        if (__builtin_expect(word->writer & IN_BYTES, 0)) {
            if (word->written >= (shared ? block_began : launch_began)) {
                check_bytes<ACCESS>(records, offset + done, WORD, p, where, shared);
                continue;
            }
            *word = {};  // too old to matter
        }
        check_cell<ACCESS>(*word, p, where, shared);
    }
}

// An access to neither the arena, nor shared memory, nor the thread's own variables: a constant, or a mistake.
// False where there may be no memory at all.
static bool __attribute__((noinline)) check_elsewhere(const char* p, unsigned size, Access access, void* where) {
    if (access == READ && p >= module.first && p + size <= module.last) return true;
    if ((size_t)(p - stacks) < STACK * MAX_THREADS) return accuse("another thread's local variable is used", where);
    const char* what = p < (char*)4096 ? "a null pointer is used" : "host memory, or none, is used";
    accuse(what, where, std::to_string(size) + " bytes");
    return false;
}

// False where the access must not be made.
template <Access ACCESS> static inline bool touch(const void* address, unsigned size, void* where) {
    if (!running || !checking) return true;
    const char* p = (const char*)address;
    size_t offset = p - arena;
    Records* records = &arena_records;
    bool shared = true;
    if (__builtin_expect((uintptr_t)p & (size - 1) && (size_t)(p - running->stack) >= STACK, 0)) {
        accuse("misaligned access", where, std::to_string(size) + " bytes");
        return false;  // the CPU's own instructions for 16 bytes would crash
    }
    if (offset < ARENA) {
        if (__builtin_expect(!find_array(offset, size), 0))
            return accuse(ACCESS == READ ? "read out of bounds" : "write out of bounds", where,
                          std::to_string(size) + " bytes, " + beside(offset));
        shared = false;
    } else if ((offset = p - shared_room) < MAX_SHARED) {
        if (offset + size > shared_size)
            return accuse("shared memory out of bounds", where,
                          std::to_string(offset + size - shared_size) + " bytes too far");
        records = &shared_records;
    } else if (p >= module.bss_first && p < module.bss_last) {
        offset = p - (char*)((uintptr_t)module.bss_first / PAGE * PAGE);  // aligned as the address is
        records = &static_records;
    } else if ((size_t)(p - running->stack) < STACK) {
        return true;
    } else {
        return check_elsewhere(p, size, ACCESS, where);
    }
    if (__builtin_expect(counting, 0)) count_access(p, size, where, shared);
    check_access<ACCESS>(*records, offset, size, p, where, shared);
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
#define CC_HOOK(name, ACCESS, size)                                                              \
    void __tsan_##name##size(void* p) {                                                          \
        if (checking && !touch<ACCESS>(p, size, __builtin_return_address(0))) abandon();         \
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
