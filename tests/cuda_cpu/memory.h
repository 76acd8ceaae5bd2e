// Memory of the emulated device: an arena for device arrays, and the shared memory of the block that runs.
//
// Each array has margins, and is filled with 0xff (NaN) when it is allocated and when it is freed, so that neither
// reading what was never written nor what is dead gives plausible numbers.
#pragma once
#include <link.h>

#include "scheduler.h"

namespace cc {
constexpr size_t ARENA = size_t(2) << 30, MARGIN = 256, PAGE = 512;
constexpr size_t MAX_SHARED = 227 << 10;
constexpr int GRAIN = 2;  // bytes for which the checker keeps records: the smallest type that kernels store
enum Access { READ, WRITE, ATOMIC };

// The last write and the last read: when, and by which thread (Thread::number, with flags).
struct Cell {
    uint32_t written, writer, read, reader;
};
struct Array {
    size_t first, last;  // offsets in the arena
};
static char* arena;
static Cell* arena_cells;
static uint32_t* page_owner;  // of each page of the arena: index into `arrays`, 0 for none
static std::vector<Array> arrays(1);
static std::vector<uint32_t> free_numbers;

static char* shared_room;  // the dynamic shared memory
static size_t shared_size;
static char *static_first, *static_last;  // the static shared memory
static std::vector<Cell> shared_cells, static_cells;

static void make_memory() {
    arena = (char*)reserve(ARENA);
    arena_cells = (Cell*)reserve(ARENA / GRAIN * sizeof(Cell));
    page_owner = (uint32_t*)reserve(ARENA / PAGE * sizeof(uint32_t));
    shared_room = (char*)reserve(MAX_SHARED + PAGE);
    shared_cells.resize(MAX_SHARED / GRAIN);
}
// The array that an access of `size` bytes at `offset` lies in; null where there is none, or it crosses an end.
static const Array* find_array(size_t offset, size_t size) {
    const Array& array = arrays[page_owner[offset / PAGE]];
    return offset >= array.first && offset + size <= array.last ? &array : nullptr;
}
// For messages: the nearest array.
static std::string beside(size_t offset) {
    for (size_t away = 0; away < 64; away++)
        for (int side = -1; side <= 1; side += 2) {
            size_t page = offset / PAGE + side * away;
            uint32_t owner = page < ARENA / PAGE ? page_owner[page] : 0;
            if (!owner) continue;
            auto [first, last] = arrays[owner];
            std::string of = " a device array of " + std::to_string(last - first) + " bytes";
            if (offset >= last) return std::to_string(offset - last) + " bytes after the end of" + of;
            if (offset < first) return std::to_string(first - offset) + " bytes before" + of;
            return "across the end of" + of;
        }
    return "in freed or unallocated device memory";
}
static size_t pages(size_t size) { return size / PAGE + 1; }

static void make_live(size_t offset, size_t size) {
    if (free_numbers.empty()) {
        free_numbers.push_back(arrays.size());
        arrays.push_back({});
    }
    uint32_t owner = free_numbers.back();
    free_numbers.pop_back();
    arrays[owner] = {offset, offset + size};
    std::fill_n(page_owner + offset / PAGE, pages(size), owner);
    std::memset(arena + offset - MARGIN, 0xff, size + 2 * MARGIN);
}
static void make_dead(size_t offset) {
    uint32_t owner = page_owner[offset / PAGE];
    if (!owner) return;
    size_t size = arrays[owner].last - arrays[owner].first;
    std::fill_n(page_owner + offset / PAGE, pages(size), 0);
    std::memset(arena + offset, 0xff, size);
    arrays[owner] = {};
    free_numbers.push_back(owner);
}
// Finds writes beside arrays by the margins: what remains of the bounds check where loads and stores are not checked.
static void check_margins() {
    for (auto [first, last] : arrays) {
        if (!last) continue;
        auto intact = [](const char* p) {
            for (size_t i = 0; i < MARGIN; i++)
                if ((unsigned char)p[i] != 0xff) return false;
            return true;
        };
        if (intact(arena + first - MARGIN) && intact(arena + last)) continue;
        problem("a kernel wrote beside a device array of " + std::to_string(last - first) + " bytes");
        std::memset(arena + first - MARGIN, 0xff, MARGIN);
        std::memset(arena + last, 0xff, MARGIN);
    }
}

// The .bss of the module that `code` belongs to, which is its static shared memory.
struct FindBss {
    const void* code;
    char *first, *last;
};
static int find_bss(dl_phdr_info* info, size_t, void* data) {
    auto& find = *(FindBss*)data;
    bool ours = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        auto& h = info->dlpi_phdr[i];
        ours |= h.p_type == PT_LOAD && (uintptr_t)find.code - info->dlpi_addr - h.p_vaddr < h.p_memsz;
    }
    for (int i = 0; ours && i < info->dlpi_phnum; i++) {
        auto& h = info->dlpi_phdr[i];
        if (h.p_type != PT_LOAD || h.p_memsz == h.p_filesz) continue;
        find.first = (char*)info->dlpi_addr + h.p_vaddr + h.p_filesz;
        find.last = (char*)info->dlpi_addr + h.p_vaddr + h.p_memsz;
    }
    return ours;
}
static void use_shared_memory(const void* code, size_t dynamic) {
    FindBss find{code, nullptr, nullptr};
    dl_iterate_phdr(find_bss, &find);
    static_first = find.first;
    static_last = find.last;
    size_t cells = (static_last - static_first + GRAIN) / GRAIN;
    if (static_cells.size() < cells) static_cells.resize(cells);  // old records are older than any block to come
    shared_size = dynamic;
}
static void poison_shared_memory() {
    std::memset(shared_room, 0xff, shared_size);
    if (static_first) std::memset(static_first, 0xff, static_last - static_first);
}
char* dynamic_shared() { return shared_room; }
}  // namespace cc
