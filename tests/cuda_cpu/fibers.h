// Fibers: each CUDA thread of the block that runs has a stack of its own, and gives way where it must wait.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda_cpu.h"

namespace cc {
// Saves the callee-saved registers on the stack and the stack pointer in *save, and continues at `load`.
extern "C" void cc_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(.text
.globl cc_switch
cc_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi); movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
// Words that a switch leaves on the stack, and which of them is the return address.
constexpr int FRAME = 7, RETURN = 6;
#elif defined(__aarch64__)
asm(R"(.text
.globl cc_switch
cc_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]; stp x21, x22, [sp, #16]; stp x23, x24, [sp, #32]; stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]; stp x29, x30, [sp, #80]; stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]
  mov x9, sp; str x9, [x0]; mov sp, x1
  ldp x19, x20, [sp, #0]; ldp x21, x22, [sp, #16]; ldp x23, x24, [sp, #32]; ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]; ldp x29, x30, [sp, #80]; ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]; ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr int FRAME = 20, RETURN = 11;
#else
#error "fibers are written for x86-64 and aarch64"
#endif

constexpr int MAX_THREADS = 1024;
constexpr size_t STACK = 64 << 10;
constexpr uint64_t CANARY = 0x5afe57ac5afe57ac;

struct Copy {  // a cp.async under way
    char* to;
    const char* from;
    bool valid;
    int group;
    void* where;
};
// An operation of several lanes: `run` gets the operands of the lanes in `lanes`.
using Collective = void (*)(int warp, void** operands, unsigned lanes);
struct Thread {
    unsigned position[4][3];  // by Position and axis
    uint32_t number;          // block * 1024 + index in the block + 1
    int index;
    void* stack_pointer;
    char* stack;
    // What it waits for, at a barrier or a collective operation
    Where where;
    Collective run;
    void* operand;
    unsigned mask;
    // When it last called __threadfence, and when the block's last barrier before that was
    uint32_t fenced, fenced_block;
    std::vector<Copy> copies;
    int group;  // of cp.async, that is open
};

static Thread threads[MAX_THREADS];
static Thread* running;  // null outside kernels
static void* scheduler_stack_pointer;
static char* stacks;
static void (*entry)(void**);
static void** entry_args;

static void* reserve(size_t size) {  // zeros, which take no memory before they are touched
    void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        abort();
    }
    return p;
}
static void give_way() { cc_switch(&running->stack_pointer, scheduler_stack_pointer); }
static void resume(Thread& thread) {
    running = &thread;
    cc_switch(&scheduler_stack_pointer, thread.stack_pointer);
}
static void finish_thread();  // in scheduler.h
static void begin_thread() {
    entry(entry_args);
    finish_thread();
    give_way();
    abort();  // a finished thread is never resumed
}
static void make_fibers() {
    stacks = (char*)reserve(STACK * MAX_THREADS);
    for (int i = 0; i < MAX_THREADS; i++) {
        threads[i].stack = stacks + i * STACK;
        threads[i].index = i;
        *(uint64_t*)threads[i].stack = CANARY;
    }
}
static void start_fiber(Thread& thread) {
    void** top = (void**)(thread.stack + STACK) - 2;
    *--top = nullptr;  // aligns the stack as after a call
    top -= FRAME;
    top[RETURN] = (void*)begin_thread;
    thread.stack_pointer = top;
}
}  // namespace cc
