// What the loads and stores of a kernel would cost a GPU, by place in the code: sectors of 32 bytes moved between
// caches and memory, and turns at the 32 banks of shared memory.
#pragma once
#include <map>
#include <set>
#include <tuple>
#include <vector>

#include "memory.h"

namespace cc {
// The accesses of a warp at one place of the code, each lane's nth time there, are one request.
struct Request {
    std::vector<std::pair<uintptr_t, unsigned>> of_lane[32];  // address, size
};
struct Cost {
    size_t requests, moved, ideal;
};
using Place = std::pair<void*, bool>;  // of the code; whether the memory is shared
static bool counting;
static std::map<std::tuple<Place, unsigned, int>, Request> requests;  // the place, which time, warp
static std::map<std::pair<Place, int>, unsigned> times;              // the place, thread
static std::map<Place, Cost> costs;

static void count_access(const void* p, unsigned size, void* where, bool shared) {
    if (!where) return;
    Place place{where, shared};
    unsigned time = times[{place, running->index}]++;
    requests[{place, time, running->index / 32}].of_lane[running->index % 32].push_back({(uintptr_t)p, size});
}
// Shared memory serves 32 words of 4 bytes at a time, from different banks; 8- and 16-byte accesses of a warp are
// served by halves and quarters.
static size_t bank_turns(const Request& request, size_t& ideal) {
    unsigned size = 4;
    for (auto& lane : request.of_lane)
        for (auto& access : lane) size = std::max(size, access.second);
    size_t turns = 0;
    for (int lanes = 128 / size, first = 0; first < 32; first += lanes) {
        std::set<uintptr_t> words[32];
        for (int i = first; i < first + lanes; i++)
            for (auto [address, bytes] : request.of_lane[i])
                for (uintptr_t word = address / 4; word <= (address + bytes - 1) / 4; word++)
                    words[word % 32].insert(word);
        size_t most = 0;
        for (auto& bank : words) most = std::max(most, bank.size());
        turns += most;
        ideal += most > 0;
    }
    return turns;
}
static size_t sectors(const Request& request, size_t& ideal) {
    std::set<uintptr_t> moved, bytes;
    for (auto& lane : request.of_lane)
        for (auto [address, size] : lane)
            for (uintptr_t byte = address; byte < address + size; byte++) {
                moved.insert(byte / 32);
                bytes.insert(byte);
            }
    ideal += (bytes.size() + 31) / 32;
    return moved.size();
}
static void add_up_requests() {  // of the block that ends
    for (auto& [key, request] : requests) {
        Place place = std::get<0>(key);
        Cost& cost = costs[place];
        cost.requests++;
        cost.moved += place.second ? bank_turns(request, cost.ideal) : sectors(request, cost.ideal);
    }
    requests.clear();
    times.clear();
}
}  // namespace cc
