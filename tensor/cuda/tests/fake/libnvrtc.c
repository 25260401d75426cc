// A compiler that makes what the fake driver loads: the source behind a head. For tests.
//
// A source with the word BROKEN does not compile, one with the word CRASH makes the compiler fail. -DBEFORE_CUBINS
// leaves out what the first versions had not, -DVERSION and -DMINOR are the version's.
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION 13
#endif
#ifndef MINOR
#define MINOR 0
#endif

#ifdef WITH_NVRTC_H
#include <nvrtc.h>
#else
typedef int nvrtcResult;
typedef struct _nvrtcProgram *nvrtcProgram;
#endif

struct _nvrtcProgram { char *text; char *log; };
static long live, compiled;
long fake_live(void) { return live; }
long fake_compiled(void) { return compiled; }

nvrtcResult nvrtcVersion(int *major, int *minor) { *major = VERSION; *minor = MINOR; return 0; }
nvrtcResult nvrtcCreateProgram(nvrtcProgram *program, const char *text, const char *name, int count,
                               const char *const *headers, const char *const *names) {
    if (!text || !name || (count > 0 && (!headers || !names))) return 3;
    *program = calloc(1, sizeof **program);
    (*program)->text = strdup(text); (*program)->log = strdup("");
    live++; return 0;
}
nvrtcResult nvrtcDestroyProgram(nvrtcProgram *program) {
    free((*program)->text); free((*program)->log); free(*program);
    *program = 0; live--; return 0;
}
static void say(nvrtcProgram program, const char *text) { free(program->log); program->log = strdup(text); }
nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int count, const char *const *options) {
    int knows_arch = 0;
    for (int i = 0; i < count; i++) knows_arch |= !strncmp(options[i], "--gpu-architecture=sm_", 22);
    if (!knows_arch) return 5;
    if (strstr(program->text, "BROKEN")) { say(program, "a.cu(1): error: identifier \"BROKEN\" is undefined\n"); return 6; }
    if (strstr(program->text, "CRASH")) { say(program, "nvrtc: error: failed to open libnvrtc-builtins.so\n"); return 7; }
    compiled++;
    say(program, "ptxas info    : Compiling entry function 'fill' for 'sm_90'\n"
                 "ptxas info    : Used 10 registers, used 0 barriers\n");
    return 0;
}
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, size_t *bytes) { *bytes = strlen(program->log) + 1; return 0; }
nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char *log) { strcpy(log, program->log); return 0; }
#ifndef BEFORE_CUBINS
// The head of an ELF file for NVIDIA's processors whose table of no sections lies at its end, and the source behind it.
enum { HEAD = 64 };
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t *bytes) { *bytes = HEAD + strlen(program->text) + 1; return 0; }
nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char *cubin) {
    unsigned short kind = 2, machine = 190;
    unsigned long long end = HEAD + strlen(program->text) + 1;
    memset(cubin, 0, HEAD);
    memcpy(cubin, "\177ELF\2\1", 6);
    memcpy(cubin + 16, &kind, 2); memcpy(cubin + 18, &machine, 2); memcpy(cubin + 40, &end, 8);
    strcpy(cubin + HEAD, program->text);
    return 0;
}
#endif
