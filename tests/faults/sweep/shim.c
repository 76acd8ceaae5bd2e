/* Calls of the system below one folder, traced or made to fail. Loaded with LD_PRELOAD; shim.py drives it.

   A call is known by its kind, its path and how often this pair came before, not by its number in the process: so the
   same call fails whatever order threads run in. Random parts of temporary names are written as '#'.
   While one is traced or armed, fsync does not reach the disk: what is tested is what happens when it fails. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MAX_FILES = 4096, LENGTH = 1024, SHORT = -1, DONE = -2 };

static char names[MAX_FILES][LENGTH]; /* the path of each open file below the folder; empty for others */
static char folder[LENGTH], wanted_kind[32], wanted_path[LENGTH];
static long wanted_time, times, hits;
static int wanted_error, stays, active, trace = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Driven from Python ------------------------------------------------------------------------------------------- */

void shim_folder(const char *path) { snprintf(folder, LENGTH, "%s", path); }

void shim_trace(int descriptor) {
    trace = descriptor;
    active = descriptor >= 0;
}

/* Let the call of this kind and path fail the nth time, counted from 1, and with `permanent` each time from then on.
   An error of SHORT writes half of the bytes. */
void shim_arm(const char *kind, const char *path, long nth, int error, int permanent) {
    snprintf(wanted_kind, sizeof wanted_kind, "%s", kind);
    snprintf(wanted_path, LENGTH, "%s", path);
    wanted_time = nth, wanted_error = error, stays = permanent, times = hits = 0;
    active = 1;
}

long shim_hits(void) { return hits; }

/* Which call this is ------------------------------------------------------------------------------------------- */

static int is_random(const char *text, int length) {
    for (int i = 0; i < length; i++)
        if (!strchr("0123456789abcdefghijklmnopqrstuvwxyz_", text[i]) || !text[i]) return 0;
    return 1;
}

/* Write a path below the folder, relative to it, without the random parts of temporary names. Returns 0 for others. */
static int normalise(const char *path, char *out) {
    size_t length = strlen(folder);
    if (!length || strncmp(path, folder, length) || (path[length] && path[length] != '/')) return 0;
    snprintf(out, LENGTH, "%s", path[length] ? path + length + 1 : ".");
    char *end = strstr(out, ".partial");
    if (end && end - out > 8 && is_random(end - 8, 8)) memmove(end - 7, end, strlen(end) + 1), end[-8] = '#';
    char *own = strstr(out, ".logpose-");
    if (own && is_random(own + 9, 8)) own[9] = '#', memmove(own + 10, own + 17, strlen(own + 17) + 1);
    return 1;
}

/* The error with which this call fails, or 0. */
static int failing(const char *kind, const char *path) {
    char own[LENGTH], line[LENGTH + 64];
    if (!active || !path || !normalise(path, own)) return 0;
    int error = 0;
    pthread_mutex_lock(&lock);
    if (trace >= 0) {
        int length = snprintf(line, sizeof line, "%s\t%s\n", kind, own);
        syscall(SYS_write, trace, line, length);
    } else if (!strcmp(kind, wanted_kind) && !strcmp(own, wanted_path)) {
        times++;
        if (times == wanted_time || (stays && times > wanted_time)) hits++, error = wanted_error;
    }
    pthread_mutex_unlock(&lock);
    return error;
}

static const char *name_of(int descriptor) {
    return descriptor >= 0 && descriptor < MAX_FILES && names[descriptor][0] ? names[descriptor] : NULL;
}

static int below(const char *path) {
    char own[LENGTH];
    return path && normalise(path, own);
}

static void remember(int descriptor, const char *path) {
    if (descriptor >= 0 && descriptor < MAX_FILES) {
        if (below(path)) snprintf(names[descriptor], LENGTH, "%s", path);
        else names[descriptor][0] = 0;
    }
}

/* The path of a call that takes a folder's descriptor. */
static const char *at(int descriptor, const char *path, char *out) {
    if (!path || path[0] == '/' || descriptor == AT_FDCWD) return path;
    const char *base = name_of(descriptor);
    if (!base) return NULL;
    if (!path[0]) return base;
    snprintf(out, LENGTH, "%s/%s", base, path);
    return out;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL(kind, path) do { int e_ = failing(kind, path); if (e_ > 0) { errno = e_; return -1; } } while (0)

/* The calls ---------------------------------------------------------------------------------------------------- */

static const char *open_kind(int flags) { return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? "create" : "open"; }

#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); \
    mode = va_arg(a, mode_t); va_end(a); }
#define OPEN(name) int name(const char *path, int flags, ...) { MODE(flags) REAL(name); FAIL(open_kind(flags), path); \
    int d = real(path, flags, mode); remember(d, path); return d; }
#define OPENAT(name) int name(int dir, const char *path, int flags, ...) { MODE(flags) REAL(name); char own[LENGTH]; \
    const char *whole = at(dir, path, own); FAIL(open_kind(flags), whole); \
    int d = real(dir, path, flags, mode); remember(d, whole); return d; }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

#define FOPEN(name) FILE *name(const char *path, const char *how) { REAL(name); \
    int e = failing(how[0] == 'r' ? "open" : "create", path); if (e > 0) { errno = e; return NULL; } \
    FILE *f = real(path, how); if (f) remember(fileno(f), path); return f; }
FOPEN(fopen) FOPEN(fopen64)

int close(int d) {
    REAL(close);
    const char *name = name_of(d);
    int error = name ? failing("close", name) : 0;
    if (d >= 0 && d < MAX_FILES) names[d][0] = 0;
    int result = real(d); /* it is closed even where an error is reported */
    if (error > 0) { errno = error; return -1; }
    return result;
}

ssize_t read(int d, void *to, size_t n) { REAL(read); FAIL("read", name_of(d)); return real(d, to, n); }
ssize_t readv(int d, const struct iovec *v, int n) { REAL(readv); FAIL("read", name_of(d)); return real(d, v, n); }
#define PREAD(name) ssize_t name(int d, void *to, size_t n, off_t o) { REAL(name); FAIL("pread", name_of(d)); \
    return real(d, to, n, o); }
PREAD(pread) PREAD(pread64)

static size_t half(size_t n) { return n > 1 ? n / 2 : n; }
ssize_t write(int d, const void *from, size_t n) {
    REAL(write);
    int error = failing("write", name_of(d));
    if (error > 0) { errno = error; return -1; }
    return real(d, from, error == SHORT ? half(n) : n);
}
ssize_t writev(int d, const struct iovec *v, int n) { REAL(writev); FAIL("write", name_of(d)); return real(d, v, n); }
#define PWRITE(name) ssize_t name(int d, const void *from, size_t n, off_t o) { REAL(name); \
    int error = failing("pwrite", name_of(d)); if (error > 0) { errno = error; return -1; } \
    return real(d, from, error == SHORT ? half(n) : n, o); }
PWRITE(pwrite) PWRITE(pwrite64)

#define SYNC(name) int name(int d) { REAL(name); FAIL("fsync", name_of(d)); return active && name_of(d) ? 0 : real(d); }
SYNC(fsync) SYNC(fdatasync)

#define TRUNCATE(name) int name(int d, off_t n) { REAL(name); FAIL("truncate", name_of(d)); return real(d, n); }
TRUNCATE(ftruncate) TRUNCATE(ftruncate64)
#define FALLOCATE(name) int name(int d, off_t o, off_t n) { REAL(name); int e = failing("truncate", name_of(d)); \
    return e > 0 ? e : real(d, o, n); }
FALLOCATE(posix_fallocate) FALLOCATE(posix_fallocate64)

/* With DONE, the call takes place and an error is reported, as when the answer of a file server is lost. */
#define TWICE(kind, path, call) do { int e_ = failing(kind, path); if (e_ > 0) { errno = e_; return -1; } \
    int r_ = call; if (e_ == DONE) { errno = EIO; return -1; } return r_; } while (0)
int rename(const char *from, const char *to) { REAL(rename); TWICE("rename", to, real(from, to)); }
int renameat(int d, const char *from, int e, const char *to) {
    REAL(renameat);
    char own[LENGTH];
    TWICE("rename", at(e, to, own), real(d, from, e, to));
}
int unlink(const char *path) { REAL(unlink); TWICE("unlink", path, real(path)); }
int unlinkat(int d, const char *path, int flags) {
    REAL(unlinkat);
    char own[LENGTH];
    TWICE(flags & AT_REMOVEDIR ? "rmdir" : "unlink", at(d, path, own), real(d, path, flags));
}
int rmdir(const char *path) { REAL(rmdir); TWICE("rmdir", path, real(path)); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); TWICE("mkdir", path, real(path, mode)); }
int mkdirat(int d, const char *path, mode_t mode) {
    REAL(mkdirat);
    char own[LENGTH];
    TWICE("mkdir", at(d, path, own), real(d, path, mode));
}
int link(const char *from, const char *to) { REAL(link); FAIL("link", to); return real(from, to); }
int symlink(const char *from, const char *to) { REAL(symlink); FAIL("link", to); return real(from, to); }
ssize_t readlink(const char *path, char *to, size_t n) { REAL(readlink); FAIL("stat", path); return real(path, to, n); }
int access(const char *path, int mode) { REAL(access); FAIL("stat", path); return real(path, mode); }
int chmod(const char *path, mode_t mode) { REAL(chmod); FAIL("chmod", path); return real(path, mode); }

#define STAT(name) int name(const char *path, struct stat *to) { REAL(name); FAIL("stat", path); return real(path, to); }
#define STAT64(name) int name(const char *p, struct stat64 *to) { REAL(name); FAIL("stat", p); return real(p, to); }
STAT(stat) STAT(lstat) STAT64(stat64) STAT64(lstat64)
int fstat(int d, struct stat *to) { REAL(fstat); FAIL("fstat", name_of(d)); return real(d, to); }
int fstat64(int d, struct stat64 *to) { REAL(fstat64); FAIL("fstat", name_of(d)); return real(d, to); }
int fstatat(int d, const char *path, struct stat *to, int flags) {
    REAL(fstatat);
    char own[LENGTH];
    FAIL("stat", at(d, path, own));
    return real(d, path, to, flags);
}
int fstatat64(int d, const char *path, struct stat64 *to, int flags) {
    REAL(fstatat64);
    char own[LENGTH];
    FAIL("stat", at(d, path, own));
    return real(d, path, to, flags);
}
int statx(int d, const char *path, int flags, unsigned mask, struct statx *to) {
    REAL(statx);
    char own[LENGTH];
    FAIL("stat", at(d, path, own));
    return real(d, path, flags, mask, to);
}
/* Programs built with a C library before 2.33 call these. */
#define XSTAT(name, type, kind, path) int name(int v, type what, struct stat *to) { \
    static int (*real)(int, type, struct stat *); if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, #name); \
    FAIL(kind, path); return real(v, what, to); }
XSTAT(__xstat, const char *, "stat", what) XSTAT(__xstat64, const char *, "stat", what)
XSTAT(__lxstat, const char *, "stat", what) XSTAT(__lxstat64, const char *, "stat", what)
XSTAT(__fxstat, int, "fstat", name_of(what)) XSTAT(__fxstat64, int, "fstat", name_of(what))

DIR *opendir(const char *path) {
    REAL(opendir);
    int error = failing("opendir", path);
    if (error > 0) { errno = error; return NULL; }
    DIR *found = real(path);
    if (found) remember(dirfd(found), path);
    return found;
}
DIR *fdopendir(int d) {
    REAL(fdopendir);
    int error = failing("opendir", name_of(d));
    if (error > 0) { errno = error; return NULL; }
    return real(d);
}
#define READDIR(name, type) struct type *name(DIR *dir) { REAL(name); int e = failing("readdir", name_of(dirfd(dir))); \
    if (e > 0) { errno = e; return NULL; } return real(dir); }
READDIR(readdir, dirent) READDIR(readdir64, dirent64)
int closedir(DIR *dir) {
    REAL(closedir);
    int d = dirfd(dir);
    if (d >= 0 && d < MAX_FILES) names[d][0] = 0;
    return real(dir);
}

#define MMAP(name) void *name(void *a, size_t n, int p, int f, int d, off_t o) { REAL(name); \
    int e = d >= 0 ? failing("mmap", name_of(d)) : 0; if (e > 0) { errno = e; return MAP_FAILED; } \
    return real(a, n, p, f, d, o); }
MMAP(mmap) MMAP(mmap64)

int flock(int d, int how) { REAL(flock); FAIL("lock", name_of(d)); return real(d, how); }

#define FCNTL(name) int name(int d, int command, ...) { \
    static int (*real)(int, int, ...); if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, #name); \
    va_list a; va_start(a, command); void *argument = va_arg(a, void *); va_end(a); \
    const char *path = name_of(d); char kept[LENGTH]; \
    if (command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK) FAIL("lock", path); \
    if (command != F_DUPFD && command != F_DUPFD_CLOEXEC) return real(d, command, argument); \
    FAIL("dup", path); \
    if (path) snprintf(kept, LENGTH, "%s", path); \
    int copy = real(d, command, argument); remember(copy, path ? kept : NULL); return copy; }
FCNTL(fcntl) FCNTL(fcntl64)

#define SENDFILE(name) ssize_t name(int to, int from, off_t *o, size_t n) { REAL(name); \
    FAIL("copy", name_of(to)); return real(to, from, o, n); }
SENDFILE(sendfile) SENDFILE(sendfile64)
ssize_t copy_file_range(int from, off64_t *o, int to, off64_t *p, size_t n, unsigned flags) {
    REAL(copy_file_range);
    FAIL("copy", name_of(to));
    return real(from, o, to, p, n, flags);
}

int pthread_create(pthread_t *to, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    REAL(pthread_create);
    int error = failing("thread", folder); /* it has no path */
    return error > 0 ? error : real(to, attributes, run, argument);
}
