// A compiler that makes what the fake driver loads: the source behind a head. For tests.
//
// With -DEMULATES it hands the source to the C++ compiler with `emulator.h` in front (-DEMULATOR names the file), and what
// it makes is a library that the fake driver runs on the processor.
//
// Else a source with the word BROKEN does not compile, one with the word CRASH makes the compiler fail. -DBEFORE_CUBINS
// leaves out what the first versions had not, -DVERSION and -DMINOR are the version's.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

struct _nvrtcProgram {
    char *text; char *log;
    char **headers, **names; int header_count;
    char *image; size_t image_bytes;
};
static long live, compiled;
long fake_live(void) { return live; }
long fake_compiled(void) { return compiled; }

nvrtcResult nvrtcVersion(int *major, int *minor) { *major = VERSION; *minor = MINOR; return 0; }
nvrtcResult nvrtcCreateProgram(nvrtcProgram *program, const char *text, const char *name, int count,
                               const char *const *headers, const char *const *names) {
    if (!text || !name || (count > 0 && (!headers || !names))) return 3;
    *program = calloc(1, sizeof **program);
    (*program)->text = strdup(text); (*program)->log = strdup("");
    (*program)->headers = calloc(count + 1, sizeof(char *)); (*program)->names = calloc(count + 1, sizeof(char *));
    (*program)->header_count = count;
    for (int i = 0; i < count; i++) {
        (*program)->headers[i] = strdup(headers[i]); (*program)->names[i] = strdup(names[i]);
    }
    live++; return 0;
}
nvrtcResult nvrtcDestroyProgram(nvrtcProgram *program) {
    for (int i = 0; i < (*program)->header_count; i++) { free((*program)->headers[i]); free((*program)->names[i]); }
    free((*program)->headers); free((*program)->names); free((*program)->image);
    free((*program)->text); free((*program)->log); free(*program);
    *program = 0; live--; return 0;
}
static void say(nvrtcProgram program, const char *text) { free(program->log); program->log = strdup(text); }
#ifdef EMULATES
static void write_to(const char *dir, const char *name, const char *text) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "w");
    if (file) { fputs(text, file); fclose(file); }
}
static char *read_from(const char *dir, const char *name, size_t *bytes) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    fseek(file, 0, SEEK_END); *bytes = ftell(file); rewind(file);
    char *text = calloc(1, *bytes + 1);
    *bytes = fread(text, 1, *bytes, file);
    fclose(file);
    return text;
}
static int emulate(nvrtcProgram program) {
    char dir[] = "/tmp/elastic-emulated-XXXXXX", command[16384];
    if (!mkdtemp(dir)) return 1;
    write_to(dir, "kernel.cu", program->text);
    for (int i = 0; i < program->header_count; i++) write_to(dir, program->names[i], program->headers[i]);
    // A NaN's bits and the order of sums are the source's; nothing may be contracted or assumed away.
    snprintf(command, sizeof command,
             "c++ -std=c++17 -O2 -mfma -ffp-contract=off -fno-strict-aliasing -fvisibility=hidden -w -fPIC -shared -I %s "
             "-include %s -x c++ %s/kernel.cu -o %s/kernel.so 2>%s/log", dir, EMULATOR, dir, dir, dir);
    int failed = system(command);
    size_t bytes = 0;
    char *log = read_from(dir, "log", &bytes);
    if (log) { free(program->log); program->log = log; }
    if (!failed) program->image = read_from(dir, "kernel.so", &program->image_bytes);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    if (system(command)) return 1;
    if (failed || !program->image) return 6;
    compiled++;
    return 0;
}
#endif
nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int count, const char *const *options) {
    int knows_arch = 0;
    for (int i = 0; i < count; i++) knows_arch |= !strncmp(options[i], "--gpu-architecture=sm_", 22);
    if (!knows_arch) return 5;
#ifdef EMULATES
    return emulate(program);
#endif
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
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t *bytes) {
    if (program->image) { *bytes = program->image_bytes; return 0; }
    *bytes = HEAD + strlen(program->text) + 1; return 0;
}
nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char *cubin) {
    if (program->image) { memcpy(cubin, program->image, program->image_bytes); return 0; }
    unsigned short kind = 2, machine = 190;
    unsigned long long end = HEAD + strlen(program->text) + 1;
    memset(cubin, 0, HEAD);
    memcpy(cubin, "\177ELF\2\1", 6);
    memcpy(cubin + 16, &kind, 2); memcpy(cubin + 18, &machine, 2); memcpy(cubin + 40, &end, 8);
    strcpy(cubin + HEAD, program->text);
    return 0;
}
#endif
