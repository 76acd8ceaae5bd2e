// The order in which threads run, and where they wait for each other: warps, blocks and their barriers.
#pragma once
#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "fibers.h"

namespace cc {
static int block_size;         // threads in a block
static unsigned grid_size[3];  // blocks
static int order;              // 0 forwards, 1 backwards, others seed a random order
static uint64_t random_state;
static bool stopped;  // the block cannot continue

// Time, for finding races: each barrier is a tick. Two accesses of a block are ordered where a barrier of both threads
// lies between them.
static uint32_t now = 1, launch_began, block_began, block_synced;
struct Warp {
    unsigned alive, ready, waiting;  // lanes; `waiting` at a collective, and what is alive and in neither, at a barrier
    uint32_t synced;
};
static Warp warps[MAX_THREADS / 32];

static std::set<std::string> problems;
static void problem(const std::string& text) {
    if (problems.size() < 20) problems.insert(text);
}
static std::string name(const Thread& thread) {
    char text[96];
    auto& p = thread.position;
    snprintf(text, sizeof text, "thread (%u,%u,%u) of block (%u,%u,%u)", p[THREAD][0], p[THREAD][1], p[THREAD][2],
             p[BLOCK][0], p[BLOCK][1], p[BLOCK][2]);
    return text;
}
static std::string name(Where where) { return std::string(where.file) + ":" + std::to_string(where.line); }
static bool same(Where a, Where b) { return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file)); }

static unsigned random_below(unsigned n) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (random_state >> 33) % n;
}
static int pick(unsigned lanes) {  // one of them, by the order of this launch
    if (order == 0) return __builtin_ctz(lanes);
    if (order == 1) return 31 - __builtin_clz(lanes);
    for (int skip = random_below(__builtin_popcount(lanes)); skip; skip--) lanes &= lanes - 1;
    return __builtin_ctz(lanes);
}

static void finish_thread() {
    Warp& warp = warps[running->index / 32];
    warp.alive &= ~(1u << running->index % 32);
    if (!running->copies.empty())
        problem(name(*running) + " ends before its cp.async has arrived, from @" +
                std::to_string((size_t)running->copies[0].where));
    if (*(uint64_t*)running->stack != CANARY) {
        fprintf(stderr, "cuda_cpu: a thread needs more than %zu bytes of stack\n", STACK);
        abort();
    }
}
// Ends the launch where the running thread cannot continue.
static void abandon() {
    stopped = true;
    give_way();
}
static void wait_for_warp(Collective run, void* operand, unsigned mask, Where where) {
    running->run = run;
    running->operand = operand;
    running->mask = mask;
    running->where = where;
    if (!(mask >> running->index % 32 & 1)) {
        problem(name(*running) + " is not in its own mask at " + name(where));
        abandon();
    }
    warps[running->index / 32].waiting |= 1u << running->index % 32;
    give_way();
}

// Runs a warp until every lane waits for its block or has finished.
static void run_warp(int number) {
    Warp& warp = warps[number];
    Thread* lanes = threads + 32 * number;
    for (;;) {
        while (warp.ready && !stopped) {
            int lane = pick(warp.ready);
            warp.ready &= ~(1u << lane);
            resume(lanes[lane]);
        }
        if (!warp.waiting || stopped) return;
        const Thread& first = lanes[__builtin_ctz(warp.waiting)];
        unsigned together = first.mask & warp.waiting, missing = first.mask & warp.alive & ~warp.waiting;
        void* operands[32];
        for (unsigned rest = together; rest; rest &= rest - 1) {
            Thread& each = lanes[__builtin_ctz(rest)];
            operands[each.index % 32] = each.operand;
            if (each.run != first.run || each.mask != first.mask || !same(each.where, first.where))
                missing |= 1u << each.index % 32;
        }
        if (missing) {
            const Thread& other = lanes[__builtin_ctz(missing)];
            problem("a warp is not together: " + name(first) + " is at " + name(first.where) + ", but " + name(other) +
                    " at " + name(other.where));
            stopped = true;
            return;
        }
        warp.waiting &= ~together;
        warp.ready |= together;
        first.run(number, operands, together);
    }
}

// Lets the threads of a block pass a barrier that all of them have reached. False where there are none.
static bool pass_block_barrier() {
    const Thread *first = nullptr, *ended = nullptr;
    int votes = 0, voters = 0;
    for (int i = 0; i < block_size; i++) {
        Thread& thread = threads[i];
        if (!(warps[i / 32].alive >> i % 32 & 1)) {
            ended = &thread;
            continue;
        }
        if (!first) first = &thread;
        if (!same(first->where, thread.where)) {
            problem("a block is not together: " + name(*first) + " waits at " + name(first->where) + ", but " +
                    name(thread) + " at " + name(thread.where));
            stopped = true;
            return false;
        }
        voters++;
        votes += thread.operand && *(int*)thread.operand;
    }
    if (!first) return false;
    if (ended) problem(name(*ended) + " ends without the barrier that others wait at, " + name(first->where));
    for (int i = 0; i < block_size; i++)
        if (threads[i].operand && warps[i / 32].alive >> i % 32 & 1)
            *(int*)threads[i].operand = threads[i].mask == AND  ? votes == voters
                                        : threads[i].mask == OR ? votes > 0
                                                                : votes;
    for (int i = 0; i < (block_size + 31) / 32; i++) warps[i].ready = warps[i].alive;
    block_synced = ++now;
    return true;
}

static void run_block(uint32_t number) {
    block_began = block_synced = ++now;
    const unsigned* dims = threads[0].position[BLOCK_DIM];
    unsigned wide = grid_size[0], high = grid_size[1];
    unsigned block[3] = {number % wide, number / wide % high, number / wide / high};
    int count = (block_size + 31) / 32;
    for (int i = 0; i < block_size; i++) {
        Thread& thread = threads[i];
        unsigned at[3] = {i % dims[0], i / dims[0] % dims[1], i / dims[0] / dims[1]};
        std::memcpy(thread.position[THREAD], at, sizeof at);
        std::memcpy(thread.position[BLOCK], block, sizeof block);
        thread.number = number * MAX_THREADS + i + 1;
        thread.fenced = thread.fenced_block = 0;
        thread.copies.clear();
        thread.group = 0;
        start_fiber(thread);
    }
    std::vector<int> sequence(count);
    for (int i = 0; i < count; i++) {
        int lanes = std::min(32, block_size - 32 * i);
        unsigned all = lanes == 32 ? 0xffffffff : (1u << lanes) - 1;
        warps[i] = {all, all, 0, now};
        sequence[i] = order == 1 ? count - 1 - i : i;
    }
    do {
        if (order > 1)
            for (int i = count - 1; i > 0; i--) std::swap(sequence[i], sequence[random_below(i + 1)]);
        for (int warp : sequence)
            if (!stopped) run_warp(warp);
    } while (!stopped && pass_block_barrier());
}

// What the kernels call

__attribute__((const)) unsigned position(Position which, int axis) { return running->position[which][axis]; }

static int wait_for_block(int* vote, unsigned kind, Where where) {
    running->where = where;
    running->operand = vote;
    running->mask = kind;
    give_way();
    return vote ? *vote : 0;
}
void block_barrier(Where where) { wait_for_block(nullptr, 0, where); }
int block_vote(int value, Vote vote, Where where) {
    value = value != 0;
    return wait_for_block(&value, vote, where);
}
void trap(Where where) { problem("__trap at " + name(where)); }
}  // namespace cc
