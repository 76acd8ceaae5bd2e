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
constexpr size_t MAX_MODULE = 64 << 20;  // static shared memory of all kernels of a module
enum Access { READ, WRITE, ATOMIC };

// The last write and the last read: when, and by which thread (Thread::number, with flags).
struct Cell {
    uint32_t written, writer, read, reader;
};
// The checker's records of some memory: a cell for each word of 4 bytes, and one for each byte of words that were
// accessed by halves or bytes.
constexpr size_t WORD = 4;
struct Records {
    Cell *words, *bytes;
    void make(size_t size) {
        words = (Cell*)reserve(size / WORD * sizeof(Cell));
        bytes = (Cell*)reserve(size * sizeof(Cell));
    }
};
struct Array {
    size_t first, last;  // offsets in the arena
};
static char* arena;
static Records arena_records, shared_records, static_records;
static uint32_t* page_owner;  // of each page of the arena: index into `arrays`, 0 for none
static std::vector<Array> arrays(1);
static std::vector<uint32_t> free_numbers;

static char* shared_room;  // the dynamic shared memory
static size_t shared_size;

static void make_memory() {
    arena = (char*)reserve(ARENA);
    arena_records.make(ARENA);
    shared_records.make(MAX_SHARED + PAGE);
    static_records.make(MAX_MODULE);
    page_owner = (uint32_t*)reserve(ARENA / PAGE * sizeof(uint32_t));
    shared_room = (char*)reserve(MAX_SHARED + PAGE);
}
// The array that an access of `size` bytes at `offset` lies in; null where there is none, or it crosses an end.
static const Array* find_array(size_t offset, size_t size) {
    const Array& array = arrays[page_owner[offset / PAGE]];
    return offset >= array.first && offset + size <= array.last ? &array : nullptr;
}
// For messages: where the nearest array lies.
static std::string beside(size_t offset) {
    size_t nearest = 32 * PAGE;
    std::string place = "in freed or unallocated device memory";
    size_t here = offset / PAGE, first_page = here - std::min<size_t>(here, 32);
    for (size_t page = first_page; page < std::min(here + 32, ARENA / PAGE); page++) {
        if (!page_owner[page]) continue;
        auto [first, last] = arrays[page_owner[page]];
        size_t away = offset >= last ? offset - last : offset < first ? first - offset : 0;
        if (away >= nearest) continue;
        nearest = away;
        place = std::to_string(away) + (offset >= last ? " bytes after" : " bytes before") + " a device array of " +
                std::to_string(last - first) + " bytes";
    }
    return place;
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

// The module that `code` belongs to: where it lies in memory, and its .bss, which is its static shared memory.
struct Module {
    const void* code;
    char *first, *last, *bss_first, *bss_last;
};
static Module module;
static int find_module(dl_phdr_info* info, size_t, void*) {
    module.first = (char*)~(uintptr_t)0;
    module.last = module.bss_first = module.bss_last = nullptr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        auto& h = info->dlpi_phdr[i];
        if (h.p_type != PT_LOAD) continue;
        char* first = (char*)info->dlpi_addr + h.p_vaddr;
        module.first = std::min(module.first, first);
        module.last = std::max(module.last, first + h.p_memsz);
        if (h.p_memsz == h.p_filesz) continue;
        module.bss_first = first + h.p_filesz;
        module.bss_last = first + h.p_memsz;
    }
    return module.code >= module.first && module.code < module.last;
}
static void use_shared_memory(const void* code, size_t dynamic) {
    module.code = code;
    dl_iterate_phdr(find_module, nullptr);
    if ((size_t)(module.bss_last - module.bss_first) + PAGE > MAX_MODULE) abort();
    shared_size = dynamic;
}
static void poison_shared_memory() {
    std::memset(shared_room, 0xff, shared_size);
    std::memset(module.bss_first, 0xff, module.bss_last - module.bss_first);
}
char* dynamic_shared() { return shared_room; }
}  // namespace cc
