// The emulator's functions for the host: memory, launches and costs. Built as one translation unit, for speed.
//
// A launch runs the blocks of the grid one after another, and reports what is wrong, one problem a line. Problems name
// places in the code as "@address", which the caller looks up.
#include "warp.h"

namespace cc {
static std::string text;  // that was returned last

static const char* bad_launch(const unsigned* grid, const unsigned* block, size_t shared) {
    size_t size = (size_t)block[0] * block[1] * block[2];
    if (size < 1 || size > MAX_THREADS) return "a block has 1 to 1024 threads";
    if (block[2] > 64 || grid[1] > 65535 || grid[2] > 65535) return "the grid or the block is too large in y or z";
    if ((size_t)grid[0] * grid[1] * grid[2] >= (NUMBER - 1) / MAX_THREADS) return "too many blocks for the emulator";
    if (shared > MAX_SHARED) return "too much shared memory";
    return nullptr;
}

extern "C" {
void* cc_arena(size_t* size) {
    if (!arena) {
        make_memory();
        make_fibers();
    }
    *size = ARENA;
    return arena;
}
void cc_live(size_t offset, size_t size) { make_live(offset, size); }
void cc_dead(size_t offset) { make_dead(offset); }
int cc_is_live(size_t offset, size_t size) { return offset < ARENA && find_array(offset, size); }

const char* cc_launch(void (*kernel)(void**), void** args, const unsigned* grid, const unsigned* block, size_t shared,
                      int with_order, int check) {
    if (const char* reason = bad_launch(grid, block, shared)) return reason;
    problems.clear();
    accused.clear();
    counters.clear();
    stopped = false;
    checking = check;
    entry = kernel;
    entry_args = args;
    order = with_order;
    random_state = order;
    std::memcpy(grid_size, grid, sizeof grid_size);
    block_size = block[0] * block[1] * block[2];
    for (int i = 0; i < block_size; i++) {
        std::memcpy(threads[i].position[BLOCK_DIM], block, 3 * sizeof *block);
        std::memcpy(threads[i].position[GRID_DIM], grid, 3 * sizeof *grid);
    }
    use_shared_memory((const void*)kernel, shared);
    launch_began = ++now;
    std::vector<uint32_t> blocks(grid[0] * grid[1] * grid[2]);
    for (size_t i = 0; i < blocks.size(); i++) blocks[i] = order == 1 ? blocks.size() - 1 - i : i;
    if (order > 1)
        for (size_t i = blocks.size() - 1; i > 0; i--) std::swap(blocks[i], blocks[random_below(i + 1)]);
    for (uint32_t block_number : blocks) {
        acquired.clear();
        poison_shared_memory();
        run_block(block_number);
        if (counting) add_up_requests();
        if (stopped) break;
    }
    running = nullptr;
    ++now;
    if (!checking || !problems.empty()) check_margins();  // and make them whole for the launches that follow
    text.clear();
    for (auto& each : problems) text += each + "\n";
    return text.c_str();
}

void cc_count(int on) {
    counting = on;
    costs.clear();
}
const char* cc_costs() {  // "@address shared|global requests moved ideal", one place a line
    text.clear();
    for (auto& [place, cost] : costs) {
        char line[128];
        snprintf(line, sizeof line, "@%zu %s %zu %zu %zu\n", (size_t)place.first, place.second ? "shared" : "global",
                 cost.requests, cost.moved, cost.ideal);
        text += line;
    }
    return text.c_str();
}
}
}  // namespace cc
