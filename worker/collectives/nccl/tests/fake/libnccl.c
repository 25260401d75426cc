// An NCCL without a GPU, for tests: it moves bytes between processes or threads in host memory, over Unix sockets in a
// folder that the unique id names. A stream is its own (`fake_stream`), or that of any fake whose streams begin with a
// function that takes a call, as the fake CUDA driver's do. It keeps NCCL's rules for communicators that do not block, and counts where a caller
// breaks them: what NVIDIA's library would answer with a crash or a hang later is a number here at once.
//
// FAKE_NCCL_DIR      the folder (ncclGetUniqueId needs it)
// FAKE_NCCL_RULE     "fail CALL N CODE": the N-th call of a name gives a code. "hang CALL N": it does not return before
//                    the communicator is revoked or aborted. The name "stream" is for the transfers of a group.
// FAKE_NCCL_POLLS    how often "in progress" is said after what was begun is done (3)
// FAKE_NCCL_FLIPS    the lowest bit of each transfer arrives as another
// FAKE_NCCL_SILENT   a peer that dies is not noticed, as between GPUs of one machine
//
// -DVERSION=22809    what it says to be
// -DNO_REVOKE        ncclCommRevoke is not there
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef WITH_NCCL_H
typedef struct ncclComm* ncclComm_t;
typedef struct { char internal[128]; } ncclUniqueId;
typedef void* cudaStream_t;
typedef enum {
  ncclSuccess, ncclUnhandledCudaError, ncclSystemError, ncclInternalError, ncclInvalidArgument, ncclInvalidUsage,
  ncclRemoteError, ncclInProgress
} ncclResult_t;
typedef enum { ncclUint8 = 1, ncclFloat32 = 7 } ncclDataType_t;
typedef enum { ncclSum } ncclRedOp_t;
typedef struct {
  size_t size;
  unsigned magic, version;
  int blocking, cgaClusterSize, minCTAs, maxCTAs;
  const char* netName;
  int splitShare, trafficClass;
  const char* commName;
  int collnetEnable, CTAPolicy, shrinkShare, nvlsCTAs, nChannelsPerNetPeer, nvlinkCentricSched;
} ncclConfig_t;
#endif

#ifndef VERSION
#define VERSION 22809
#endif
#define RANKS_MAX 16
#define ALIVE 0x616c6976
#define HEADER 8

enum kind { SEND, RECEIVE, BROADCAST, ALL_REDUCE };

struct op {
  enum kind kind;
  const char* from;
  char* to;
  size_t bytes;
  int peer;
  ncclComm_t comm;
  cudaStream_t stream;
};

// One way of an op to or from one peer: a header with the length, then the bytes.
struct wire {
  char* address;
  size_t bytes, done;
  int peer, is_send;
  uint64_t header;
};

// A group that was given to a stream.
struct job {
  ncclComm_t comm;
  struct op* ops;
  int count;
};

struct call {
  struct call* next;
  void (*call)(void*);
  void* argument;
};

struct stream {
  // All that is known of a stream of another library.
  void (*give)(void* stream, void (*call)(void*), void* argument);
  pthread_mutex_t lock;
  pthread_cond_t changed;
  struct call *first, *last;
  int is_running, is_ending;
  pthread_t thread;
};

struct ncclComm {
  int alive, rank, world, listener, has_worker;
  int peers[RANKS_MAX];
  char base[108];
  pthread_t worker;
  atomic_int stop, result, working, polls, callers, jobs, finalized;
};

static atomic_int violations, living;
static char last_violation[256], last_error[256];
static pthread_mutex_t texts = PTHREAD_MUTEX_INITIALIZER;

// A group is its thread's, as in NCCL.
static __thread int depth, grouped;
static __thread struct op* group;
static __thread ncclResult_t group_error;

static void say(char* to, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  pthread_mutex_lock(&texts);
  vsnprintf(to, 256, format, arguments);
  pthread_mutex_unlock(&texts);
  va_end(arguments);
}
#define VIOLATION(...) (atomic_fetch_add(&violations, 1), say(last_violation, __VA_ARGS__))
#define ERROR(...) say(last_error, __VA_ARGS__)

int fake_violations(void) { return violations; }
int fake_living(void) { return living; }
const char* fake_last_violation(void) { return last_violation; }

static void nap(void) { usleep(200); }

static int polls(void) {
  const char* text = getenv("FAKE_NCCL_POLLS");
  return text ? atoi(text) : 3;
}

// What the rule says of this call: 0, a code, or -1 to hang.
static int rule(const char* call) {
  static char action[8], name[40];
  static int number, code, is_read, count;
  pthread_mutex_lock(&texts);
  const char* text = getenv("FAKE_NCCL_RULE");
  if (!is_read && text) sscanf(text, "%7s %39s %d %d", action, name, &number, &code);
  is_read = 1;
  int is_it = !strcmp(name, call) && ++count == number;
  pthread_mutex_unlock(&texts);
  if (!is_it) return 0;
  if (!strcmp(action, "hang")) return -1;
  ERROR("so says the test");
  return code;
}

static void hang(ncclComm_t comm) {
  while (!comm || !comm->stop) nap();
}

// The beginning of every call on a communicator but abort and revoke. Gives whether it may go on.
static ncclResult_t enter(ncclComm_t comm, const char* call, int needs_ready) {
  if (!comm || comm->alive != ALIVE) {
    VIOLATION("%s on a communicator that is no more", call);
    return ncclInvalidArgument;
  }
  if (atomic_fetch_add(&comm->callers, 1)) VIOLATION("%s while another thread is in a call", call);
  int code = rule(call);
  if (code < 0) hang(comm), code = ncclInternalError;
  if (code) {
    comm->result = code;
    return code;
  }
  if (needs_ready && (comm->working || comm->polls > 0)) {
    VIOLATION("%s before what was begun was done", call);
    return ncclInvalidArgument;
  }
  return needs_ready ? comm->result : ncclSuccess;
}

static ncclResult_t leave(ncclComm_t comm, ncclResult_t result) {
  if (comm && comm->alive == ALIVE) atomic_fetch_sub(&comm->callers, 1);
  return result;
}

ncclResult_t ncclGetVersion(int* version) {
  *version = VERSION;
  return rule("ncclGetVersion");
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static atomic_int made;
  int code = rule("ncclGetUniqueId");
  if (code) return code;
  const char* dir = getenv("FAKE_NCCL_DIR");
  if (!dir) {
    ERROR("FAKE_NCCL_DIR is not set");
    return ncclSystemError;
  }
  memset(id, 0, sizeof *id);
  snprintf(id->internal, sizeof id->internal, "%s/%d.%d", dir, getpid(), atomic_fetch_add(&made, 1));
  return ncclSuccess;
}

static void address_of(struct sockaddr_un* to, const char* base, int rank) {
  memset(to, 0, sizeof *to);
  to->sun_family = AF_UNIX;
  snprintf(to->sun_path, sizeof to->sun_path, "%.98s.%d", base, rank);
}

// Waits for bytes or a caller; 0 if the communicator is to stop.
static int wait_for(ncclComm_t comm, int fd) {
  struct pollfd ready = { fd, POLLIN, 0 };
  while (poll(&ready, 1, 2) <= 0)
    if (comm->stop) return 0;
  return 1;
}

// Connects to the lower ranks, and hears the higher ones, until all are there.
static void* connect_all(void* argument) {
  ncclComm_t comm = argument;
  for (int peer = 0; peer < comm->rank; peer++) {
    struct sockaddr_un to;
    address_of(&to, comm->base, peer);
    int fd = comm->peers[peer] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    while (connect(fd, (struct sockaddr*)&to, sizeof to)) {
      if (comm->stop) goto out;
      nap();
    }
    unsigned char own = comm->rank;
    if (send(fd, &own, 1, MSG_NOSIGNAL) != 1) comm->result = ncclSystemError;
  }
  for (int left = comm->world - comm->rank - 1; left > 0; left--) {
    if (!wait_for(comm, comm->listener)) goto out;
    int fd = accept4(comm->listener, 0, 0, SOCK_CLOEXEC);
    unsigned char peer = RANKS_MAX;
    if (fd < 0 || !wait_for(comm, fd) || read(fd, &peer, 1) != 1 || peer >= comm->world) {
      comm->result = ncclSystemError;
      goto out;
    }
    comm->peers[peer] = fd;
  }
out:
  comm->working = 0;
  return 0;
}

static void work(ncclComm_t comm, void* (*what)(void*)) {
  comm->working = 1;
  comm->polls = polls();
  if (comm->has_worker) pthread_join(comm->worker, 0);
  comm->has_worker = 1;
  pthread_create(&comm->worker, 0, what, comm);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* out, int world, ncclUniqueId id, int rank, ncclConfig_t* config) {
  int code = rule("ncclCommInitRankConfig");
  if (code > 0) return code;
  size_t size = VERSION < 22700 ? 48 : VERSION < 22800 ? 72 : 80;
  if (config->magic != 0xcafebeef || config->size != size || config->version > VERSION) {
    ERROR("a config of %zu bytes for version %u, not as NCCL_CONFIG_INITIALIZER makes it", config->size, config->version);
    return ncclInvalidArgument;
  }
  if (config->blocking != 0 || config->minCTAs != INT32_MIN || config->netName) {
    ERROR("the fake is for communicators that do not block, with nothing else said");
    return ncclInvalidArgument;
  }
  if (rank < 0 || rank >= world || world > RANKS_MAX) {
    ERROR("rank %d of %d", rank, world);
    return ncclInvalidArgument;
  }
  ncclComm_t comm = calloc(1, sizeof *comm);
  comm->alive = ALIVE;
  comm->rank = rank;
  comm->world = world;
  for (int i = 0; i < RANKS_MAX; i++) comm->peers[i] = -1;
  snprintf(comm->base, sizeof comm->base, "%.100s", id.internal);
  struct sockaddr_un own;
  address_of(&own, comm->base, rank);
  comm->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(comm->listener, (struct sockaddr*)&own, sizeof own) || listen(comm->listener, RANKS_MAX)) {
    ERROR("%s: %s", own.sun_path, strerror(errno));
    close(comm->listener);
    free(comm);
    return ncclSystemError;
  }
  atomic_fetch_add(&living, 1);
  *out = comm;
  work(comm, connect_all);
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  ncclResult_t code = enter(comm, "ncclCommGetAsyncError", 0);
  if (code) return leave(comm, code);
  if (comm->result) *state = comm->result;
  else if (comm->working) *state = ncclInProgress;
  else *state = comm->polls > 0 && atomic_fetch_sub(&comm->polls, 1) > 0 ? ncclInProgress : ncclSuccess;
  return leave(comm, ncclSuccess);
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int* count) {
  ncclResult_t code = enter(comm, "ncclCommCount", 1);
  if (!code) *count = comm->world;
  return leave(comm, code);
}

ncclResult_t ncclCommUserRank(const ncclComm_t comm, int* rank) {
  ncclResult_t code = enter(comm, "ncclCommUserRank", 1);
  if (!code) *rank = comm->rank;
  return leave(comm, code);
}

// Gives up what the communicator has. Its memory stays, so that a later call on it is seen and is not a crash.
static void end(ncclComm_t comm) {
  comm->stop = 1;
  if (comm->has_worker) pthread_join(comm->worker, 0);
  while (comm->jobs) nap();
  for (int i = 0; i < comm->world; i++)
    if (comm->peers[i] >= 0) close(comm->peers[i]);
  close(comm->listener);
  struct sockaddr_un own;
  address_of(&own, comm->base, comm->rank);
  unlink(own.sun_path);
  comm->alive = 0;
  atomic_fetch_sub(&living, 1);
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (!comm || comm->alive != ALIVE) {
    VIOLATION("ncclCommAbort of a communicator that is no more");
    return ncclInvalidArgument;
  }
  if (depth) VIOLATION("ncclCommAbort inside a group");
  if (comm->callers) VIOLATION("ncclCommAbort while a thread is in a call");
  int code = rule("ncclCommAbort");
  end(comm);
  return code > 0 ? code : ncclSuccess;
}

#ifndef NO_REVOKE
ncclResult_t ncclCommRevoke(ncclComm_t comm, int flags) {
  if (!comm || comm->alive != ALIVE || flags) {
    VIOLATION("ncclCommRevoke of a communicator that is no more");
    return ncclInvalidArgument;
  }
  comm->stop = 1;
  return ncclInProgress;
}
#endif

// Each rank says that it is at the end, and hears it of all.
static void* say_goodbye(void* argument) {
  ncclComm_t comm = argument;
  char word = 'z';
  while (comm->jobs && !comm->stop) nap();
  for (int i = 0; i < comm->world; i++)
    if (comm->peers[i] >= 0 && send(comm->peers[i], &word, 1, MSG_NOSIGNAL) != 1) comm->result = ncclRemoteError;
  for (int i = 0; i < comm->world && !comm->result; i++) {
    if (comm->peers[i] < 0) continue;
    if (!wait_for(comm, comm->peers[i])) break;
    if (read(comm->peers[i], &word, 1) != 1 || word != 'z') comm->result = ncclRemoteError;
  }
  comm->working = 0;
  return 0;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  ncclResult_t code = enter(comm, "ncclCommFinalize", 1);
  if (code) return leave(comm, code);
  if (atomic_exchange(&comm->finalized, 1)) {
    VIOLATION("ncclCommFinalize twice");
    return leave(comm, ncclInvalidArgument);
  }
  work(comm, say_goodbye);
  return leave(comm, ncclInProgress);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  ncclResult_t code = enter(comm, "ncclCommDestroy", 1);
  if (comm && comm->alive == ALIVE) {
    if (!comm->finalized) VIOLATION("ncclCommDestroy of what was not finalized");
    leave(comm, code);
    end(comm);
  }
  return code;
}

static void run_group(void* job);

static ncclResult_t close_group(void) {
  struct op* ops = group;
  int count = grouped;
  ncclResult_t failed = group_error;
  group = 0, grouped = 0, group_error = 0;
  for (int i = 1; i < count && !failed; i++)
    if (ops[i].comm != ops[0].comm || ops[i].stream != ops[0].stream) {
      ERROR("the fake knows groups of one communicator and stream");
      failed = ncclInvalidUsage;
    }
  if (!count || failed) {
    free(ops);
    return failed;
  }
  struct job* job = calloc(1, sizeof *job);
  job->comm = ops[0].comm, job->ops = ops, job->count = count;
  atomic_fetch_add(&job->comm->jobs, 1);
  int later = job->comm->polls = polls();
  struct stream* stream = (struct stream*)ops[0].stream;
  stream->give(stream, run_group, job);
  return later > 0 ? ncclInProgress : ncclSuccess;
}

static ncclResult_t add(const char* call, struct op op) {
  ncclComm_t comm = op.comm;
  ncclResult_t code = enter(comm, call, 1);
  if (!code && comm->finalized) {
    VIOLATION("%s after ncclCommFinalize", call);
    code = ncclInvalidUsage;
  }
  if (!code && (op.peer < 0 || op.peer >= comm->world || !op.stream)) {
    ERROR("%s with rank %d of %d", call, op.peer, comm->world);
    code = ncclInvalidArgument;
  }
  if (code) {
    if (depth) group_error = code;
    return leave(comm, code);
  }
  group = realloc(group, (grouped + 1) * sizeof *group);
  group[grouped++] = op;
  leave(comm, ncclSuccess);
  return depth ? ncclSuccess : close_group();
}

ncclResult_t ncclGroupStart(void) {
  int code = rule("ncclGroupStart");
  if (code > 0) return code;
  depth++;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
  if (!depth) {
    VIOLATION("ncclGroupEnd without a start");
    return ncclInvalidUsage;
  }
  depth--;
  ncclComm_t comm = grouped ? group[0].comm : 0;
  int code = rule("ncclGroupEnd");
  if (code < 0) hang(comm), code = ncclInternalError;
  if (code) {
    group_error = code;
    if (comm) comm->result = code;
  }
  return close_group();
}

static size_t size_of(ncclDataType_t type) { return type == ncclFloat32 ? 4 : 1; }

ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add("ncclSend", (struct op){ SEND, from, 0, count * size_of(type), peer, comm, stream });
}

ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
  return add("ncclRecv", (struct op){ RECEIVE, 0, to, count * size_of(type), peer, comm, stream });
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
  return add("ncclBroadcast", (struct op){ BROADCAST, from, to, count * size_of(type), root, comm, stream });
}

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  if (type != ncclFloat32 || op != ncclSum) {
    ERROR("the fake adds f32");
    return ncclInvalidArgument;
  }
  return add("ncclAllReduce", (struct op){ ALL_REDUCE, from, to, count * 4, 0, comm, stream });
}

static void fail(ncclComm_t comm, ncclResult_t code, const char* what, int peer) {
  ERROR("%s, rank %d", what, peer);
  comm->result = code;
}

// Moves what goes without waiting; 1 if something went.
static int push(ncclComm_t comm, struct wire* w) {
  int fd = comm->peers[w->peer];
  int is_header = w->done < HEADER;
  char* at = is_header ? (char*)&w->header + w->done : w->address + (w->done - HEADER);
  size_t left = (is_header ? HEADER : HEADER + w->bytes) - w->done;
  ssize_t n = w->is_send ? send(fd, at, left, MSG_DONTWAIT | MSG_NOSIGNAL) : recv(fd, at, left, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
  if (n <= 0) {
    if (!getenv("FAKE_NCCL_SILENT")) fail(comm, ncclRemoteError, "a peer is gone", w->peer);
    return 0;
  }
  w->done += n;
  if (!w->is_send && w->bytes && w->done == HEADER + w->bytes && getenv("FAKE_NCCL_FLIPS")) w->address[0] ^= 1;
  if (!w->is_send && w->done == HEADER && w->header != w->bytes)
    fail(comm, ncclInternalError, "the ends of a transfer differ in size", w->peer);
  return 1;
}

static void transfer(ncclComm_t comm, struct wire* wires, int count) {
  for (;;) {
    int is_open = 0, moved = 0;
    // Those of one way with one peer go in their order.
    char busy[2][RANKS_MAX] = { { 0 } };
    for (int i = 0; i < count; i++) {
      struct wire* w = &wires[i];
      if (w->done == HEADER + w->bytes) continue;
      is_open = 1;
      if (busy[w->is_send][w->peer]) continue;
      busy[w->is_send][w->peer] = 1;
      moved |= push(comm, w);
    }
    if (!is_open || comm->stop || comm->result) return;
    if (!moved) usleep(50);
  }
}

// As along a ring: each part of the sum begins at another rank, so that its order depends on how many there are.
static void add_up(struct op* op, const char* all) {
  size_t floats = op->bytes / 4;
  int world = op->comm->world;
  for (size_t at = 0; at < floats; at++) {
    float sum = 0;
    int first = at * world / floats;
    for (int j = 0; j < world; j++) sum += ((const float*)(all + (first + j) % world * op->bytes))[at];
    ((float*)op->to)[at] = sum;
  }
}

static void run_group(void* argument) {
  struct job* job = argument;
  ncclComm_t comm = job->comm;
  struct wire* wires = calloc(job->count * RANKS_MAX * 2, sizeof *wires);
  char** all = calloc(job->count, sizeof *all);
  int count = 0;
  for (int i = 0; i < job->count; i++) {
    struct op* op = &job->ops[i];
    if (op->kind == ALL_REDUCE) all[i] = malloc(op->bytes * comm->world);
    for (int peer = 0; peer < comm->world; peer++) {
      if (peer == comm->rank) continue;
      int sends = op->kind == ALL_REDUCE || (op->kind == SEND && peer == op->peer) ||
                  (op->kind == BROADCAST && op->peer == comm->rank);
      int hears = op->kind == ALL_REDUCE || (op->kind == RECEIVE && peer == op->peer) ||
                  (op->kind == BROADCAST && peer == op->peer);
      char* to = all[i] ? all[i] + peer * op->bytes : op->to;
      if (sends) wires[count++] = (struct wire){ (char*)op->from, op->bytes, 0, peer, 1, op->bytes };
      if (hears) wires[count++] = (struct wire){ to, op->bytes, 0, peer, 0, 0 };
    }
  }
  int code = rule("stream");
  if (code < 0) hang(comm);
  else if (code) comm->result = code;
  if (!comm->result) transfer(comm, wires, count);
  for (int i = 0; i < job->count; i++) {
    struct op* op = &job->ops[i];
    if (!all[i]) continue;
    memcpy(all[i] + comm->rank * op->bytes, op->from, op->bytes);
    add_up(op, all[i]);
    free(all[i]);
  }
  free(all);
  free(wires);
  free(job->ops);
  free(job);
  atomic_fetch_sub(&comm->jobs, 1);
}

static void* run_stream(void* argument) {
  struct stream* stream = argument;
  for (;;) {
    pthread_mutex_lock(&stream->lock);
    while (!stream->first && !stream->is_ending) pthread_cond_wait(&stream->changed, &stream->lock);
    struct call* now = stream->first;
    if (now) stream->first = now->next;
    stream->is_running = now != 0;
    pthread_mutex_unlock(&stream->lock);
    if (!now) return 0;
    now->call(now->argument);
    free(now);
    pthread_mutex_lock(&stream->lock);
    stream->is_running = 0;
    pthread_mutex_unlock(&stream->lock);
  }
}

void fake_stream_call(void* argument, void (*what)(void*), void* with) {
  struct stream* stream = argument;
  struct call* call = calloc(1, sizeof *call);
  call->call = what, call->argument = with;
  pthread_mutex_lock(&stream->lock);
  if (stream->first) stream->last->next = call;
  else stream->first = call;
  stream->last = call;
  pthread_cond_broadcast(&stream->changed);
  pthread_mutex_unlock(&stream->lock);
}

// A stream, and calls of the host on it.
void* fake_stream(void) {
  struct stream* stream = calloc(1, sizeof *stream);
  stream->give = fake_stream_call;
  pthread_mutex_init(&stream->lock, 0);
  pthread_cond_init(&stream->changed, 0);
  pthread_create(&stream->thread, 0, run_stream, stream);
  return stream;
}

int fake_stream_is_done(void* argument) {
  struct stream* stream = argument;
  pthread_mutex_lock(&stream->lock);
  int is_done = !stream->first && !stream->is_running;
  pthread_mutex_unlock(&stream->lock);
  return is_done;
}

void fake_stream_end(void* argument) {
  struct stream* stream = argument;
  pthread_mutex_lock(&stream->lock);
  stream->is_ending = 1;
  pthread_cond_broadcast(&stream->changed);
  pthread_mutex_unlock(&stream->lock);
  pthread_join(stream->thread, 0);
  free(stream);
}

const char* ncclGetErrorString(ncclResult_t code) {
  static const char* names[] = { "no error",         "unhandled cuda error", "unhandled system error",
                                 "internal error",   "invalid argument",     "invalid usage",
                                 "remote process exited", "operation in progress" };
  return code >= 0 && code < 8 ? names[code] : "unknown result code";
}

const char* ncclGetLastError(ncclComm_t comm) {
  (void)comm;
  return last_error;
}
