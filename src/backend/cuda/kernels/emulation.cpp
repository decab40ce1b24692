// A CUDA driver that runs kernels on the CPU: the part of libcuda.so that phi calls. Tests build it together with the kernels
// and have phi load it in the driver's place.

#include "emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <mutex>
#include <vector>

namespace emulation {

Machine machine;

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

// Goes on with the next thread that has not ended.
static void next() {
    for (uint32_t i = 1; i <= machine.threads; i++) {
        uint32_t other = (machine.current + i) % machine.threads;
        if (!machine.fibers[other].done) {
            machine.current = other;
            _longjmp(machine.fibers[other].place, 1);
        }
    }
    _longjmp(machine.home, 1);
}

void yield() {
    if (_setjmp(machine.fibers[machine.current].place) == 0) {
        next();
    }
}

void wait(Barrier& barrier) {
    uint32_t round = barrier.round;
    if (++barrier.arrived == barrier.members) {
        barrier.arrived = 0;
        barrier.round++;
    }
    while (barrier.round == round) {
        yield();
    }
}

// Who has ended is not waited for.
static void leave(Barrier& barrier) {
    barrier.members--;
    if (barrier.members > 0 && barrier.arrived == barrier.members) {
        barrier.arrived = 0;
        barrier.round++;
    }
}

static ucontext_t first, beginning;

// A fiber runs one block's thread after the other.
static void fiber() {
    if (_setjmp(machine.fibers[machine.current].place) == 0) {
        swapcontext(&beginning, &first);
    }
    for (;;) {
        machine.run(machine.parameters);
        machine.fibers[machine.current].done = true;
        leave(machine.block);
        leave(warp());
        if (_setjmp(machine.fibers[machine.current].place) == 0) {
            next();
        }
    }
}

static void begin_fibers() {
    const size_t STACK = 256 << 10;
    for (uint32_t i = 0; i < MOST_THREADS; i++) {
        machine.current = i;
        machine.fibers[i].thread = {i, 0, 0};
        getcontext(&beginning);
        beginning.uc_stack.ss_sp = malloc(STACK);
        beginning.uc_stack.ss_size = STACK;
        beginning.uc_link = nullptr;
        makecontext(&beginning, fiber, 0);
        swapcontext(&first, &beginning);
    }
}

static void run_block(uint32_t threads) {
    machine.threads = threads;
    machine.block = {threads, 0, 0};
    for (uint32_t i = 0; i < threads; i++) {
        machine.fibers[i].done = false;
        machine.warps[i / 32] = {threads - i / 32 * 32 < 32 ? threads % 32 : 32, 0, 0};
    }
    machine.current = 0;
    if (_setjmp(machine.home) == 0) {
        _longjmp(machine.fibers[0].place, 1);
    }
}

// Allocations end where a page does that must not be touched.
static std::map<uint64_t, std::pair<void*, size_t>> allocations;
static size_t taken;
const size_t TOTAL = 1ull << 30, PAGE = 4096;

static std::mutex running;

}  // namespace emulation

using namespace emulation;

static uint32_t launch(const Kernel& kernel, dim3 groups, uint32_t threads, uint32_t shared, const void* parameters) {
    std::lock_guard<std::mutex> guard(running);
    auto [x, y, z] = groups;
    if (x == 0 || y == 0 || z == 0 || y > 65535 || z > 65535 || threads != kernel.threads || shared != 0) {
        return 1;
    }
    static bool begun = false;
    if (!begun) {
        begun = true;
        begin_fibers();
    }
    machine.run = kernel.run;
    machine.parameters = parameters;
    machine.blocks = groups;
    for (uint64_t i = 0; i < (uint64_t)x * y * z; i++) {
        machine.block_number = {(uint32_t)(i % x), (uint32_t)(i / x % y), (uint32_t)(i / x / y)};
        run_block(threads);
    }
    return 0;
}

// As cuda.h has it.
struct KernelNode {
    const Kernel* function;
    uint32_t groups[3], threads[3], shared;
    void** parameters;
    void** extra;
};

struct Node {
    const Kernel* kernel;
    dim3 groups;
    uint32_t threads;
    std::vector<char> parameters;

    explicit Node(const KernelNode& given)
        : kernel(given.function), groups{given.groups[0], given.groups[1], given.groups[2]}, threads(given.threads[0]),
          parameters((const char*)given.parameters[0], (const char*)given.parameters[0] + kernel->parameter_bytes) {}
};

typedef std::vector<Node> Graph;

extern "C" {

uint32_t cuInit(uint32_t) {
    return 0;
}

uint32_t cuDriverGetVersion(int* version) {
    *version = 12040;
    return 0;
}

uint32_t cuDeviceGetCount(int* count) {
    *count = 1;
    return 0;
}

uint32_t cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return 0;
}

uint32_t cuDeviceGetName(char* name, int length, int) {
    snprintf(name, (size_t)length, "emulated GPU");
    return 0;
}

uint32_t cuDeviceGetAttribute(int* value, int attribute, int) {
    // 75 and 76 are the compute capability's two parts.
    *value = attribute == 75 ? 8 : 0;
    return 0;
}

uint32_t cuDevicePrimaryCtxRetain(void** context, int) {
    *context = &machine;
    return 0;
}

uint32_t cuDevicePrimaryCtxRelease_v2(int) {
    return 0;
}

uint32_t cuCtxSetCurrent(void*) {
    return 0;
}

uint32_t cuStreamCreate(void** stream, uint32_t) {
    *stream = &machine;
    return 0;
}

uint32_t cuStreamDestroy_v2(void*) {
    return 0;
}

uint32_t cuStreamSynchronize(void*) {
    return 0;
}

uint32_t cuMemGetInfo_v2(size_t* free, size_t* total) {
    std::lock_guard<std::mutex> guard(running);
    *free = TOTAL - taken;
    *total = TOTAL;
    return 0;
}

uint32_t cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
    std::lock_guard<std::mutex> guard(running);
    if (bytes == 0 || bytes > TOTAL - taken) {
        return bytes == 0 ? 1 : 2;
    }
    size_t pages = (bytes + PAGE - 1) / PAGE * PAGE;
    void* base = mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECKED(base != MAP_FAILED && mprotect((char*)base + pages, PAGE, PROT_NONE) == 0);
    memset(base, 0xff, pages);
    *pointer = (uint64_t)base + (pages - bytes) / 16 * 16;
    allocations[*pointer] = {base, pages + PAGE};
    taken += pages;
    return 0;
}

uint32_t cuMemFree_v2(uint64_t pointer) {
    std::lock_guard<std::mutex> guard(running);
    CHECKED(allocations.count(pointer));
    auto [base, size] = allocations[pointer];
    munmap(base, size);
    taken -= size - PAGE;
    allocations.erase(pointer);
    return 0;
}

uint32_t cuMemHostAlloc(void** pointer, size_t bytes, uint32_t) {
    *pointer = malloc(bytes);
    return 0;
}

uint32_t cuMemFreeHost(void* pointer) {
    free(pointer);
    return 0;
}

uint32_t cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void*) {
    memcpy((void*)to, from, bytes);
    return 0;
}

uint32_t cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void*) {
    memcpy(to, (void*)from, bytes);
    return 0;
}

uint32_t cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void*) {
    memcpy((void*)to, (void*)from, bytes);
    return 0;
}

uint32_t cuMemsetD8Async(uint64_t to, uint8_t byte, size_t bytes, void*) {
    memset((void*)to, byte, bytes);
    return 0;
}

// A module is the name that its PTX begins with: "// name".
uint32_t cuModuleLoadData(void** module, const void* image) {
    const char* name = (const char*)image + 3;
    *module = new std::string(name, strcspn(name, "\n"));
    return 0;
}

uint32_t cuModuleUnload(void* module) {
    delete (std::string*)module;
    return 0;
}

uint32_t cuModuleGetFunction(void** function, void* module, const char* name) {
    auto found = kernels().find(*(std::string*)module + "/" + name);
    if (found == kernels().end()) {
        return 500;
    }
    *function = &found->second;
    return 0;
}

uint32_t cuLaunchKernel(
    void* function, uint32_t x, uint32_t y, uint32_t z, uint32_t threads, uint32_t, uint32_t, uint32_t shared, void*,
    void** parameters, void**
) {
    return launch(*(const Kernel*)function, {x, y, z}, threads, shared, parameters[0]);
}

uint32_t cuGraphCreate(Graph** graph, uint32_t) {
    *graph = new Graph;
    return 0;
}

uint32_t cuGraphDestroy(Graph* graph) {
    delete graph;
    return 0;
}

// Nodes are numbers, from 1 on; each comes after the one before.
uint32_t cuGraphAddKernelNode(
    uintptr_t* node, Graph* graph, const uintptr_t* before, size_t count, const KernelNode* given
) {
    CHECKED(count == (graph->empty() ? 0 : 1) && (count == 0 || *before == graph->size()));
    graph->push_back(Node(*given));
    *node = graph->size();
    return 0;
}

uint32_t cuGraphInstantiateWithFlags(Graph** ready, Graph* graph, uint64_t) {
    // What a driver may always do: refuse.
    if (graph->size() > 1000) {
        return 2;
    }
    *ready = new Graph(*graph);
    return 0;
}

uint32_t cuGraphExecKernelNodeSetParams(Graph* ready, uintptr_t node, const KernelNode* given) {
    Node& old = ready->at(node - 1);
    if (old.kernel != given->function) {
        return 1;
    }
    old = Node(*given);
    return 0;
}

uint32_t cuGraphLaunch(Graph* ready, void*) {
    for (const Node& node : *ready) {
        uint32_t code = launch(*node.kernel, node.groups, node.threads, 0, node.parameters.data());
        if (code != 0) {
            return code;
        }
    }
    return 0;
}

uint32_t cuGraphExecDestroy(Graph* ready) {
    delete ready;
    return 0;
}

uint32_t cuGetErrorString(uint32_t code, const char** text) {
    *text = code == 2 ? "out of memory" : code == 500 ? "named symbol not found" : "invalid argument";
    return 0;
}

}  // extern "C"
