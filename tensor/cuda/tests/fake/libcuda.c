// A driver without a GPU, for tests: what is "on the GPU" lies in the host's memory, streams run at once or record. A
// stream that a library beside the driver has given work to (as NCCL does), or that waits for such a stream, runs in a
// thread of its own from then on.
//
// It counts what is made and freed, keeps to the rules of recording, and fails at a chosen call with a chosen code,
// so that every error path of the shell runs for real, through the linker. Of what the plain fake compiler makes it can run
// `fill`; of what the emulating one makes (`libnvrtc.c`), every kernel, on the processor.
// Compiled with -DWITH_CUDA_H it takes NVIDIA's own declarations, and the compiler compares.
//
// FAKE_CUDA_STUB makes it a toolkit's library for linking, which refuses everything. FAKE_CUDA_VERSION, FAKE_CUDA_INIT (a
// code), FAKE_CUDA_DEVICES and FAKE_CUDA_CAPABILITY (90 is 9.0) describe the machine.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#ifdef WITH_CUDA_H
#include <cuda.h>
#else
typedef int CUresult, CUdevice, CUdevice_attribute, CUfunction_attribute, CUstreamCaptureMode;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
#endif

// A kernel with a fault, which a test of a test needs. It writes 0 beyond the end where there are 997 numbers.
#ifdef FILLS_ONE_TOO_MANY
#define TOO_MANY (work->bytes == 997)
#else
#define TOO_MANY 0
#endif

enum { CONTEXT, MODULE, MEMORY, HOST, STREAM, EVENT, GRAPH, EXEC, KINDS };
static long made[KINDS], freed[KINDS], wrong, calls, fail_at, fail_code, launches, replays;
static const char *last_call = "";

// What tests ask and tell.
void fake_fail(long at, long code) { calls = 0; fail_at = at; fail_code = code; }
long fake_calls(void) { return calls; }
long fake_live(int kind) { return made[kind] - freed[kind]; }
long fake_made(int kind) { return made[kind]; }
long fake_wrong(void) { return wrong; }
long fake_launches(void) { return launches; }
long fake_replays(void) { return replays; }
const char *fake_last_call(void) { return last_call; }

static long environment(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

static int begin(const char *name) {
    calls++;
    if (getenv("FAKE_CUDA_STUB")) return 34;
    if (fail_at && calls == fail_at) { last_call = name; return (int)fail_code; }
    return 0;
}
#define CALL do { int failed = begin(__func__); if (failed) return failed; } while (0)
#define ABOUT(test) do { if (!(test)) { wrong++; return 1; } } while (0)
#define EXPORT __attribute__((visibility("default")))

// Recorded work.
enum { COPY, SET, FILL, NOTHING, KERNEL, KERNEL_ONCE, CALL_HOST, MARK, WAIT };
typedef struct Launch Launch;
typedef struct {
    int what; void *to; const void *from; size_t bytes; int byte; float value; Launch *launch;
    void (*call)(void *); CUevent event; long marks;
} Work;
typedef struct { Work *works; size_t count, room; } Works;
struct CUgraph_st { Works works; };
struct CUgraphExec_st { Works works; };
struct CUstream_st {
    // First, as in the streams of other fakes: so one library gives work to a stream of another.
    void (*call)(void *stream, void (*call)(void *), void *argument);
    int records, broken; Works works;
    // Of one with a thread: what is still to be done, from `next` on.
    int is_threaded, is_ending; Works later; size_t next;
    pthread_t thread; pthread_mutex_t lock; pthread_cond_t changed; CUstream after;
};
// How often it was put into a stream, and how often it was reached.
struct CUevent_st { atomic_long asked, reached; };
// With a handle, the library that the emulating compiler made.
struct CUmod_st { char *text; size_t bytes; void *handle; CUfunction functions; };
struct CUfunc_st { int fills; const void *kernel; void (*run)(const void *, const unsigned *, void **); unsigned count, sizes[64]; CUfunction next; };
static struct CUfunc_st the_fill = {1}, another = {0};
// A launch with copies of its arguments, as the driver takes them. Kept until the process ends: recorded graphs share them.
struct Launch { CUfunction function; unsigned shape[7]; void *arguments[64]; };
// What a recording forbids, it forbids to its own thread: the mode is thread-local.
static __thread int recording;

static void add(Works *works, Work work) {
    if (works->count == works->room) {
        works->room = works->room ? 2 * works->room : 16;
        works->works = realloc(works->works, works->room * sizeof(Work));
    }
    works->works[works->count++] = work;
}
static void nap(void) { usleep(50); }
static void free_launch(Launch *launch) {
    for (unsigned i = 0; i < launch->function->count; i++) free(launch->arguments[i]);
    free(launch);
}
static void run(Work *work) {
    switch (work->what) {
    case CALL_HOST: work->call(work->to); break;
    case MARK: work->event->reached++; break;
    case WAIT: while (work->event->reached < work->marks) nap(); break;
    case KERNEL_ONCE: {
        Launch *launch = work->launch;
        launch->function->run(launch->function->kernel, launch->shape, launch->arguments);
        free_launch(launch); break;
    }
    case COPY: memcpy(work->to, work->from, work->bytes); break;
    case SET: memset(work->to, work->byte, work->bytes); break;
    case KERNEL: work->launch->function->run(work->launch->function->kernel, work->launch->shape, work->launch->arguments); break;
    case FILL: for (size_t i = 0; i < work->bytes + TOO_MANY; i++) ((float *)work->to)[i] = i < work->bytes ? work->value : 0; break;
    }
}
static void *serve(void *argument) {
    CUstream stream = argument;
    pthread_mutex_lock(&stream->lock);
    for (;;) {
        while (stream->next == stream->later.count && !stream->is_ending) pthread_cond_wait(&stream->changed, &stream->lock);
        if (stream->next == stream->later.count) break;
        Work work = stream->later.works[stream->next];
        pthread_mutex_unlock(&stream->lock);
        run(&work);
        pthread_mutex_lock(&stream->lock);
        if (++stream->next == stream->later.count) {
            stream->next = stream->later.count = 0;
            pthread_cond_broadcast(&stream->changed);
        }
    }
    pthread_mutex_unlock(&stream->lock);
    return 0;
}
static CUresult give(CUstream stream, Work work) {
    ABOUT(stream);
    if (stream->records) { add(&stream->works, work); return 0; }
    if (!stream->is_threaded) { run(&work); return 0; }
    pthread_mutex_lock(&stream->lock);
    add(&stream->later, work);
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    return 0;
}
// Streams with threads.
static CUstream threaded;
static pthread_mutex_t threads = PTHREAD_MUTEX_INITIALIZER;
static void start_thread(CUstream stream) {
    pthread_mutex_lock(&threads);
    if (!stream->is_threaded) {
        stream->is_threaded = 1; stream->after = threaded; threaded = stream;
        pthread_create(&stream->thread, 0, serve, stream);
    }
    pthread_mutex_unlock(&threads);
}
// What the other library calls.
static void call_on(void *to, void (*call)(void *), void *argument) {
    start_thread(to);
    give(to, (Work){CALL_HOST, argument, .call = call});
}
static int is_idle(CUstream stream) {
    pthread_mutex_lock(&stream->lock);
    int idle = stream->later.count == 0;
    pthread_mutex_unlock(&stream->lock);
    return idle;
}
static void finish(CUstream stream) { while (!is_idle(stream)) nap(); }
// What frees memory or code waits for all that is under way, as the driver does: also for what never ends.
static void finish_all(void) {
    pthread_mutex_lock(&threads);
    for (CUstream stream = threaded; stream; stream = stream->after) finish(stream);
    pthread_mutex_unlock(&threads);
}
// A call that a recording does not survive.
#define FORBIDDEN(stream) do { if ((stream)->records) { (stream)->broken = 1; return 900; } } while (0)

EXPORT CUresult cuInit(unsigned int flags) {
    CALL; ABOUT(flags == 0);
    return environment("FAKE_CUDA_INIT", 0);
}
EXPORT CUresult cuDriverGetVersion(int *version) { CALL; *version = (int)environment("FAKE_CUDA_VERSION", 13000); return 0; }
EXPORT CUresult cuGetErrorName(CUresult code, const char **text) {
    if (getenv("FAKE_CUDA_STUB")) return 34;
    switch ((int)code) {
    case 2: *text = "CUDA_ERROR_OUT_OF_MEMORY"; return 0;
    case 34: *text = "CUDA_ERROR_STUB_LIBRARY"; return 0;
    case 100: *text = "CUDA_ERROR_NO_DEVICE"; return 0;
    case 700: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; return 0;
    case 900: *text = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; return 0;
    default: *text = 0; return 1;
    }
}
EXPORT CUresult cuGetErrorString(CUresult code, const char **text) {
    if (getenv("FAKE_CUDA_STUB")) return 34;
    *text = code == 2 ? "out of memory" : "";
    return 0;
}

EXPORT CUresult cuDeviceGetCount(int *count) { CALL; *count = (int)environment("FAKE_CUDA_DEVICES", 1); return 0; }
EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    CALL; ABOUT(ordinal >= 0 && ordinal < environment("FAKE_CUDA_DEVICES", 1));
    *device = ordinal; return 0;
}
EXPORT CUresult cuDeviceGetName(char *name, int room, CUdevice device) { CALL; snprintf(name, room, "Fake GPU %d", (int)device); return 0; }
EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) { CALL; (void)device; *bytes = (size_t)80 << 30; return 0; }
EXPORT CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
    CALL; (void)device;
    long capability = environment("FAKE_CUDA_CAPABILITY", 90);
    *value = which == 75 ? capability / 10 : which == 76 ? capability % 10 : which == 16 ? 132 : which == 97 ? 232448 : 0;
    return 0;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    CALL; made[CONTEXT]++; *context = (CUcontext)(size_t)(device + 1); return 0;
}
EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { (void)device; freed[CONTEXT]++; CALL; return 0; }
EXPORT CUresult cuCtxSetCurrent(CUcontext context) { CALL; ABOUT(context); return 0; }

// Cubins are ELF files, real ones and the fake compiler's: the table of sections ends them, or that of segments does.
static size_t size_of(const unsigned char *image) {
    unsigned short kind, machine; unsigned long long sections, segments;
    memcpy(&kind, image + 16, 2); memcpy(&machine, image + 18, 2);
    if (kind != 2 || machine != 190) return 0;
    memcpy(&segments, image + 32, 8); memcpy(&sections, image + 40, 8);
    size_t a = segments + (image[54] | image[55] << 8) * (image[56] | image[57] << 8);
    size_t b = sections + (image[58] | image[59] << 8) * (image[60] | image[61] << 8);
    return a > b ? a : b;
}
// A library of the emulating compiler's: its table of sections ends it.
static CUresult load_library(CUmodule *module, const char *image) {
    unsigned long long sections; unsigned short size, count;
    memcpy(&sections, image + 40, 8); memcpy(&size, image + 58, 2); memcpy(&count, image + 60, 2);
    size_t bytes = sections + (size_t)size * count;
    char path[] = "/tmp/elastic-kernels-XXXXXX";
    int file = mkstemp(path);
    if (file < 0 || write(file, image, bytes) != (ssize_t)bytes) return 200;
    close(file);
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    unlink(path);
    if (!handle) { fprintf(stderr, "%s\n", dlerror()); return 200; }
    *module = calloc(1, sizeof **module);
    (*module)->handle = handle;
    made[MODULE]++; return 0;
}
EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    CALL;
    if (recording) return 900;
    unsigned short kind, machine; memcpy(&kind, (const char *)image + 16, 2); memcpy(&machine, (const char *)image + 18, 2);
    if (kind == 3 && machine == 62) return load_library(module, image);
    size_t bytes = size_of(image);
    if (!bytes) return 200;
    *module = calloc(1, sizeof **module);
    (*module)->text = malloc(bytes); (*module)->bytes = bytes;
    memcpy((*module)->text, image, bytes);
    made[MODULE]++; return 0;
}
// An object is freed even where the call is told to fail: what counts is that the shell let go of it.
EXPORT CUresult cuModuleUnload(CUmodule module) {
    finish_all();
    freed[MODULE]++;
    while (module->functions) { CUfunction next = module->functions->next; free(module->functions); module->functions = next; }
    if (module->handle) dlclose(module->handle);
    free(module->text); free(module); CALL; return 0;
}
EXPORT CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    CALL;
    if (module->handle) {
        const void *(*find)(const char *) = dlsym(module->handle, "emulator_find");
        unsigned (*sizes)(const void *, unsigned *) = dlsym(module->handle, "emulator_sizes");
        const void *kernel = find(name);
        if (!kernel) return 500;
        CUfunction found = calloc(1, sizeof *found);
        found->kernel = kernel; found->run = dlsym(module->handle, "emulator_run"); found->count = sizes(kernel, found->sizes);
        found->next = module->functions; module->functions = found; *function = found; return 0;
    }
    char called[256], section[256];
    snprintf(called, sizeof called, "KERNEL(%s,", name);
    snprintf(section, sizeof section, ".text.%s", name);
    if (!memmem(module->text, module->bytes, called, strlen(called)) &&
        !memmem(module->text, module->bytes, section, strlen(section) + 1)) return 500;
    *function = strcmp(name, "fill") ? &another : &the_fill; return 0;
}
EXPORT CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function) {
    CALL; ABOUT(function); *value = which == 4 ? 10 : 0; return 0;
}
EXPORT CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
    CALL; ABOUT(function && which == 8);
    return value <= 232448 ? 0 : 1;
}

EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *bytes) { CALL; *free_bytes = (size_t)79 << 30; *bytes = (size_t)80 << 30; return 0; }
EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    CALL; ABOUT(bytes > 0);
    if (recording) return 900;
    if (bytes > (size_t)1 << 32) return 2;
    void *memory = malloc(bytes); memset(memory, 0xff, bytes); // NaN in every float
    *address = (CUdeviceptr)memory; made[MEMORY]++; return 0;
}
EXPORT CUresult cuMemFree_v2(CUdeviceptr address) { finish_all(); freed[MEMORY]++; free((void *)address); CALL; return 0; }
EXPORT CUresult cuMemHostAlloc(void **memory, size_t bytes, unsigned int flags) {
    CALL; ABOUT(bytes > 0 && flags == 0);
    *memory = malloc(bytes); memset(*memory, 0xff, bytes); made[HOST]++; return 0;
}
EXPORT CUresult cuMemFreeHost(void *memory) { finish_all(); freed[HOST]++; free(memory); CALL; return 0; }

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    CALL; ABOUT(flags == 1);
    *stream = calloc(1, sizeof **stream); (*stream)->call = call_on;
    pthread_mutex_init(&(*stream)->lock, 0); pthread_cond_init(&(*stream)->changed, 0);
    made[STREAM]++; return 0;
}
EXPORT CUresult cuStreamDestroy_v2(CUstream stream) {
    freed[STREAM]++;
    if (stream->is_threaded) {
        pthread_mutex_lock(&stream->lock);
        stream->is_ending = 1;
        pthread_cond_broadcast(&stream->changed);
        pthread_mutex_unlock(&stream->lock);
        pthread_join(stream->thread, 0);
        pthread_mutex_lock(&threads);
        CUstream *at = &threaded;
        while (*at != stream) at = &(*at)->after;
        *at = stream->after;
        pthread_mutex_unlock(&threads);
        free(stream->later.works);
    }
    free(stream->works.works); free(stream); CALL; return 0;
}
EXPORT CUresult cuStreamSynchronize(CUstream stream) { CALL; FORBIDDEN(stream); finish(stream); return 0; }
EXPORT CUresult cuStreamQuery(CUstream stream) { CALL; FORBIDDEN(stream); return is_idle(stream) ? 0 : 600; }
EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
    CALL; ABOUT(stream && event && !flags);
    if (!stream->records && event->reached < event->asked) start_thread(stream);
    return give(stream, (Work){WAIT, .event = event, .marks = event->asked});
}
EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    CALL; return give(stream, (Work){COPY, (void *)to, from, bytes, 0, 0});
}
EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    CALL; return give(stream, (Work){COPY, to, (const void *)from, bytes, 0, 0});
}
EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    CALL; return give(stream, (Work){COPY, (void *)to, (const void *)from, bytes, 0, 0});
}
EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char byte, size_t bytes, CUstream stream) {
    CALL; return give(stream, (Work){SET, (void *)to, 0, bytes, byte, 0});
}

EXPORT CUresult cuEventCreate(CUevent *event, unsigned int flags) { CALL; ABOUT(!flags); *event = calloc(1, sizeof **event); made[EVENT]++; return 0; }
// A stream with a thread may still hold it: its memory stays.
EXPORT CUresult cuEventDestroy_v2(CUevent event) { freed[EVENT]++; CALL; return 0; }
EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) {
    CALL; ABOUT(event && stream);
    event->asked++;
    return give(stream, (Work){MARK, .event = event});
}
EXPORT CUresult cuEventSynchronize(CUevent event) {
    CALL; ABOUT(event);
    while (event->reached < event->asked) nap();
    return 0;
}
EXPORT CUresult cuEventQuery(CUevent event) { CALL; return event->reached == event->asked ? 0 : 600; }
// The older name: a driver of CUDA 12 has no cuEventElapsedTime_v2.
#ifndef WITH_CUDA_H
EXPORT CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to) {
    CALL; ABOUT(from->reached && to->reached);
    *ms = 0.5f; return 0;
}
#endif

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
                               unsigned int by, unsigned int bz, unsigned int shared, CUstream stream, void **arguments,
                               void **extra) {
    CALL; ABOUT(function && gx && gy && gz && bx && by && bz && bx * by * bz <= 1024 && shared <= 232448 && !extra);
    launches++;
    if (function->kernel) {
        Launch *launch = calloc(1, sizeof *launch);
        launch->function = function;
        memcpy(launch->shape, (unsigned[]){gx, gy, gz, bx, by, bz, shared}, sizeof launch->shape);
        for (unsigned i = 0; i < function->count; i++) {
            launch->arguments[i] = malloc(function->sizes[i]);
            memcpy(launch->arguments[i], arguments[i], function->sizes[i]);
        }
        // A recording keeps its launches, for graphs share them.
        return give(stream, (Work){stream->records ? KERNEL : KERNEL_ONCE, .launch = launch});
    }
    if (!function->fills) return give(stream, (Work){NOTHING, 0, 0, 0, 0, 0});
    return give(stream, (Work){FILL, *(void **)arguments[0], 0, *(unsigned long long *)arguments[1], 0, *(float *)arguments[2]});
}

EXPORT CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
    CALL; ABOUT(mode == 1 && !stream->records);
    stream->records = 1; recording++; return 0;
}
EXPORT CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    ABOUT(stream->records);
    Works works = stream->works; int broken = stream->broken;
    stream->records = stream->broken = 0; recording--; stream->works = (Works){0, 0, 0};
    *graph = 0;
    int failed = begin(__func__);
    if (failed || broken) { free(works.works); return failed ? failed : 901; }
    *graph = calloc(1, sizeof **graph); (*graph)->works = works; made[GRAPH]++; return 0;
}
EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    CALL; ABOUT(!flags);
    *exec = calloc(1, sizeof **exec);
    for (size_t i = 0; i < graph->works.count; i++) add(&(*exec)->works, graph->works.works[i]);
    made[EXEC]++; return 0;
}
EXPORT CUresult cuGraphDestroy(CUgraph graph) { freed[GRAPH]++; free(graph->works.works); free(graph); CALL; return 0; }
EXPORT CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    CALL; replays++;
    for (size_t i = 0; i < exec->works.count; i++) give(stream, exec->works.works[i]);
    return 0;
}
EXPORT CUresult cuGraphExecDestroy(CUgraphExec exec) { freed[EXEC]++; free(exec->works.works); free(exec); CALL; return 0; }
